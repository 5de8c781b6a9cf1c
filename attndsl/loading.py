"""Attentions from text: `load` a `.attn` file, `parse` a string. Neither ever executes code."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import Any

from torch import Tensor

from attndsl.attention import Attention
from attndsl.compiler import Compilation
from attndsl.diagnostics import CallError, ProgramError, Reporter, fail
from attndsl.frontend import parse as text
from attndsl.frontend.bindings import Bindings, Bound, Leaf, kind_of
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant


class Declaration(Attention):
    """An attention as a text declares it: call it with its parameters to get one with values.

    `load("gpt_oss.attn").gpt_oss(window=128, sink=t)`. Parameters with a default may be left out. With q, k, v it is
    called like any attention, provided every parameter has a default.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__(Compilation(variant), Bindings())

    def __call__(self, *args: Any, **values: Any) -> Any:
        if args:
            return self.bind()(*args, **values)
        return self.bind(**values)

    def bind(self, **values: Any) -> Attention:
        """The attention with values for its parameters; missing, unknown and unfit ones are reported together."""
        variant = self._compilation.source
        reporter = Reporter(CallError)
        known = {param.name: param for param in variant.params}
        listed = ", ".join(f"`{name}`" for name in known) or "none"
        for name in values:
            if name not in known:
                message = f"`{variant.name}` has no parameter `{name}`"
                reporter.error("unknown-parameter", message, None, f"its parameters are {listed}")
        bound = {name: _bound(param, values.get(name), reporter) for name, param in known.items()}
        reporter.check()
        captured = {name: value for name, value in bound.items() if value is not None}
        return Attention(self._compilation, Bindings(captured, {}, tuple(known)))

    def _values(self, device: Any = None) -> dict[str, Any]:
        return self.bind()._values(device)


class Namespace:
    """The attentions of one text, by name."""

    def __init__(self, variants: tuple[Variant, ...], name: str) -> None:
        self._name = name
        self._declarations = {variant.name: Declaration(variant) for variant in variants}

    def __getattr__(self, name: str) -> Declaration:
        declarations: dict[str, Declaration] = self.__dict__.get("_declarations", {})
        if name in declarations:
            return declarations[name]
        if name.startswith("__"):
            raise AttributeError(name)
        listed = ", ".join(f"`{known}`" for known in declarations) or "none"
        message = f"`{self.__dict__.get('_name')}` has no attention `{name}`"
        raise UnknownAttention(fail(ProgramError, "unknown-attention", message, None, f"it has {listed}").diagnostics)

    def __dir__(self) -> list[str]:
        return sorted(self._declarations)

    def __iter__(self) -> Iterator[Declaration]:
        return iter(self._declarations.values())

    def __repr__(self) -> str:
        return f"<{self._name}: {', '.join(self._declarations)}>"


class UnknownAttention(ProgramError, AttributeError):
    """A name a text does not declare."""


def load(path: str | PathLike[str]) -> Namespace:
    """The attentions of a `.attn` file. Raises `ProgramError` with every mistake, `OSError` when it cannot be read."""
    return Namespace(text.read(path), str(path))


def parse(source: str, name: str = "<text>") -> Namespace:
    """The attentions of a text; `name` is what diagnostics call it."""
    return Namespace(text.parse(source, name), name)


def _bound(param: Param, value: Any, reporter: Reporter) -> Bound | None:
    """A value in the place of a parameter; reports one that is missing or does not fit."""
    if value is None and isinstance(param, ScalarParam):
        value = param.default
    if value is None:
        reporter.error(
            "missing-parameter", f"`{param.name}` has no value", help=f"pass `{param.name}={_wanted(param)}`"
        )
        return None
    if not _fits(param, value):
        reporter.error("parameter-type", f"`{param.name}` wants {_wanted(param)}, got {_described(value)}")
        return None
    if isinstance(param, ScalarParam) and param.dtype.is_float:
        value = float(value)
    return Bound(value, param.dtype, Leaf())


def _fits(param: Param, value: Any) -> bool:
    if isinstance(param, TensorParam):
        return isinstance(value, Tensor) and kind_of(value) is param.dtype and value.dim() == param.rank
    accepted = (int, float) if param.dtype.is_float else int
    return isinstance(value, accepted) and not isinstance(value, bool)


def _wanted(param: Param) -> str:
    if isinstance(param, ScalarParam):
        return f"<{param.dtype.word}>"
    return f"<{param.dtype.word} tensor [{', '.join(param.dims)}]>"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of dtype {value.dtype} and shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"

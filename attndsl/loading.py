"""Attentions from text: `load` a `.attn` file, `parse` a string. Neither ever executes code."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from attndsl.attention import Attention
from attndsl.compiler import Compilation
from attndsl.diagnostics import CallError, ProgramError, Reporter, fail
from attndsl.frontend import parse as text
from attndsl.frontend.bindings import Bindings, Bound, Leaf, kind_of
from attndsl.frontend.declared import described
from attndsl.instance import Instance
from attndsl.ir.printer import print_variant
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant


class Declaration(Attention):
    """An attention as a text declares it: call it with its parameters to get one with values.

    `load("gpt_oss.attn").gpt_oss(window=128, sink=t)`. Parameters with a default may be left out. With q, k, v it is
    called like any attention, provided every parameter has a default.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__(Compilation(variant), Bindings())
        has_defaults = all(isinstance(param, ScalarParam) and param.default is not None for param in variant.params)
        # What a declaration is called as: one attention, so that what it learns of calls is kept.
        self._with_defaults = self.bind() if has_defaults else None

    def __call__(self, *args: Any, **values: Any) -> Any:
        names = {param.name for param in self._compilation.source.params}
        if args or {"q", "k", "v"} <= values.keys() - names:
            return (self._with_defaults or self.bind())(*args, **values)
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
        return Attention(self._compilation, Bindings(captured, {}, tuple(known)), self._facts)

    def _instance(self, device: torch.device | None = None) -> Instance:
        return (self._with_defaults or self.bind())._instance(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Declaration:
        """Itself: it holds no values."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_text, (print_variant(self._compilation.source),)


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


def _from_text(declared: str) -> Declaration:
    """What a pickle holds, as a declaration."""
    (variant,) = text.parse(declared, "<pickle>")
    return Declaration(variant)


def _bound(param: Param, value: Any, reporter: Reporter) -> Bound | None:
    """A value in the place of a parameter; reports one that is missing or does not fit."""
    if value is None and isinstance(param, ScalarParam):
        value = param.default
    if value is None:
        message = f"`{param.name}` has no value"
        reporter.error("missing-parameter", message, help=f"pass `{param.name}=...`, {_wanted(param)}")
        return None
    if not _fits(param, value):
        reporter.error("parameter-type", f"`{param.name}` is {_wanted(param)}, got {_described(value)}")
        return None
    if isinstance(param, ScalarParam):
        value = float(value) if param.dtype.is_float else int(value)
    return Bound(value, param.dtype, Leaf())


def _fits(param: Param, value: Any) -> bool:
    if isinstance(param, TensorParam):
        return isinstance(value, Tensor) and kind_of(value) is param.dtype and value.dim() == param.rank
    return isinstance(value, Real if param.dtype.is_float else Integral) and not isinstance(value, bool)


def _wanted(param: Param) -> str:
    return described(param.dtype, param.dims if isinstance(param, TensorParam) else None)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of dtype {value.dtype} and shape {tuple(value.shape)}"
    return f"a value of type {type(value).__name__}"

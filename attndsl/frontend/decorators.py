"""What users write variants with: functions of coordinates, their parameters, and the algebra of masks.

In: Python functions. Out: `Mod`s, which bind parameters when called with keywords alone and evaluate when called with
coordinates, inside a trace as well as on plain numbers and tensors.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from attndsl.diagnostics import Diagnostic, ProgramError, Reporter, fail
from attndsl.frontend.declared import FLOAT, Open, held
from attndsl.frontend.signatures import (
    REQUIRED,
    Signature,
    Stage,
    code_of,
    name_of,
    signature_of,
)
from attndsl.frontend.spans import argument_span
from attndsl.frontend.symbols import symbols_in
from attndsl.ir.types import Coordinate

NO_VALUES: Mapping[str, Any] = {}
COMBINE: Mapping[str, Callable[[Any, Any], Any]] = {"&": operator.and_, "|": operator.or_, "^": operator.xor}


class Mod:
    """A function of coordinates that edits one stage of attention, with some of its parameters bound."""

    def __init__(
        self,
        stage: Stage,
        function: Callable[..., Any],
        signature: Signature,
        bound: Mapping[str, Any] = NO_VALUES,
    ) -> None:
        self.stage = stage
        self.function = function
        self.signature = signature
        self.bound = dict(bound)
        self.label = name_of(stage, function)
        self.__name__ = self.label or stage.value
        self.__doc__ = getattr(function, "__doc__", None)
        self.__module__ = getattr(function, "__module__", None) or __name__
        self.__signature__ = self._declared()

    @property
    def order(self) -> tuple[str, ...]:
        """What its own positional arguments stand for."""
        return self.signature.order

    def parameters(self) -> dict[str, Any]:
        """A value for each parameter, or what it is declared as; what has neither is an error."""
        declared = {name: one for name, one in self.signature.declared.items() if name in self.open_names()}
        values = {**self.signature.defaults, **declared, **self.bound}
        missing = [name for name, value in values.items() if value is REQUIRED]
        if missing:
            listed = ", ".join(f"`{name}`" for name in missing)
            call = ", ".join(f"{name}=..." for name in missing)
            code = code_of(self.function)
            span = argument_span(code, missing[0]) if code is not None else None
            message = f"`{self.__name__}` has no value for {listed}"
            later = f'`{missing[0]}: int`, `{missing[0]}: ad.Tensor["H"]`'
            help_ = f"write `{self.__name__}({call})`, or declare in the function what is bound later: {later}"
            raise fail(ProgramError, "missing-parameter", message, span, help=help_)
        return {name: self._real(name, value) for name, value in values.items()}

    def open_names(self) -> set[str]:
        """The parameters without a value."""
        defaults = self.signature.defaults.items()
        return {name for name, value in defaults if value is REQUIRED and name not in self.bound}

    def bind(self, **values: Any) -> Mod:
        """The mod with values for more of its parameters."""
        reporter = Reporter()
        for name in values:
            if name not in self.signature.defaults:
                self._report_unknown(name, reporter)
            elif name in self.bound:
                message = f"`{name}` of `{self.__name__}` is bound already"
                help_ = f"bind it once, on the unbound mod: `{self.__name__}({name}=...)`"
                reporter.error("duplicate-parameter", message, help=help_)
            elif (problem := _unfit(self.__name__, name, values[name])) is not None:
                reporter.error(problem.code, problem.message, help=problem.help)
        reporter.check()
        return type(self)(self.stage, self.function, self.signature, {**self.bound, **values})

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The function's result, where coordinates have these values by name."""
        self.check(values)
        parameters = {name: held(value) for name, value in self.parameters().items()}
        missing = [f"`{name}`, {value}" for name, value in parameters.items() if isinstance(value, Open)]
        if missing:
            message = f"`{self.__name__}` has no value for {'; '.join(missing)}"
            raise fail(ProgramError, "missing-parameter", message, help=self._usage())
        return invoke(self.function, self.signature, values, parameters)

    def check(self, values: Mapping[str, Any]) -> None:
        """That every coordinate it needs is there."""
        absent = [name for name in self.order if name not in values]
        if absent:
            listed = ", ".join(f"`{name}`" for name in absent)
            raise fail(ProgramError, "missing-coordinate", f"`{self.__name__}` needs {listed}", help=self._usage())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        known = set(self.stage.known) - self.signature.defaults.keys()
        coordinates = {name: value for name, value in kwargs.items() if name in known}
        parameters = {name: value for name, value in kwargs.items() if name not in coordinates}
        if not args and not coordinates:
            return self.bind(**parameters) if parameters else self
        mod = self.bind(**parameters) if parameters else self
        values = {**self._placed(args), **coordinates}
        symbol = next(symbols_in(values), None)
        return mod.evaluate(values) if symbol is None else symbol.recorder.evaluate(mod, values)

    def __repr__(self) -> str:
        bound = ", ".join(f"{name}={_short(value)}" for name, value in self.bound.items())
        return f"<{self.stage.decorator} {self.__name__}{f'({bound})' if bound else ''}>"

    def _placed(self, args: tuple[Any, ...]) -> dict[str, Any]:
        """Positional values by name: in its own order, else in FlexAttention's."""
        for order in (self.order, self.stage.flex_order or ()):
            if len(args) == len(order):
                return dict(zip(order, args, strict=True))
        if not args:
            return {}
        message = f"`{self.__name__}` is called with {len(args)} coordinate(s)"
        raise fail(ProgramError, "wrong-arity", message, help=self._usage())

    def _usage(self) -> str:
        calls = [f"`{self.__name__}({', '.join(order)})`" for order in (self.order, self.stage.flex_order) if order]
        parameters = ", ".join(f"{name}=..." for name in self.signature.defaults)
        if parameters:
            calls.append(f"`{self.__name__}({parameters})` to bind parameters")
        return "write " + " or ".join(dict.fromkeys(calls))

    def _real(self, name: str, value: Any) -> Any:
        """A parameter annotated as a float is one, whatever it was bound to."""
        return float(value) if self.signature.declared.get(name) == FLOAT and type(value) is int else value

    def _report_unknown(self, name: str, reporter: Reporter) -> None:
        known = list(self.signature.defaults)
        near = get_close_matches(name, known, n=1)
        listed = ", ".join(f"`{one}`" for one in sorted(known)) or "none"
        help_ = f"did you mean `{near[0]}`?" if near else "keyword-only arguments of the function are its parameters"
        message = f"`{self.__name__}` has no parameter `{name}`"
        reporter.error("unknown-parameter", message, None, f"its parameters are {listed}", help=help_)

    def _declared(self) -> inspect.Signature:
        """Positional arguments as tools that count them expect."""
        flex = self.stage.flex_order
        order = self.order if flex is None or len(self.order) == len(flex) else flex
        return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in order])


class MaskMod(Mod):
    """A mask: true where a key is visible. Masks combine with `&`, `|`, `^` and `~`."""

    def __and__(self, other: Any) -> MaskMod:
        return _combined("&", self, other)

    def __rand__(self, other: Any) -> MaskMod:
        return _combined("&", other, self)

    def __or__(self, other: Any) -> MaskMod:
        return _combined("|", self, other)

    def __ror__(self, other: Any) -> MaskMod:
        return _combined("|", other, self)

    def __xor__(self, other: Any) -> MaskMod:
        return _combined("^", self, other)

    def __rxor__(self, other: Any) -> MaskMod:
        return _combined("^", other, self)

    def __invert__(self) -> MaskMod:
        return CombinedMask("~", (self,))


class CombinedMask(MaskMod):
    """Masks joined by an operator."""

    def __init__(self, symbol: str, parts: tuple[MaskMod, ...]) -> None:
        names = {name for part in parts for name in part.order}
        order = tuple(coordinate.value for coordinate in Coordinate if coordinate.value in names)
        super().__init__(Stage.MASK, self.combine, Signature(tuple(zip(order, order, strict=True)), {}))
        self.symbol = symbol
        self.parts = parts
        self.label = "_".join(dict.fromkeys(part.label for part in parts if part.label is not None)) or None
        self.__name__ = self.label or Stage.MASK.value

    def bind(self, **values: Any) -> MaskMod:
        """Values for parameters of its parts, each bound wherever a part still wants it."""
        wanted = [{name for name in part.open_names() if name in values} for part in self.parts]
        reporter = Reporter()
        for name in values.keys() - set[str]().union(*wanted):
            open_names = ", ".join(f"`{one}`" for one in sorted(self.open_names())) or "none"
            message = f"`{self.__name__}` has no parameter `{name}`"
            reporter.error("unknown-parameter", message, None, f"parameters not bound yet are {open_names}")
        reporter.check()
        parts = (
            part.bind(**{name: values[name] for name in names}) if names else part
            for part, names in zip(self.parts, wanted, strict=True)
        )
        return CombinedMask(self.symbol, tuple(parts))  # type: ignore[arg-type]

    def open_names(self) -> set[str]:
        """The parameters of its parts without a value."""
        return set[str]().union(*(part.open_names() for part in self.parts))

    def combine(self, results: list[Any]) -> Any:
        """The operator on the results of the parts."""
        if self.symbol == "~":
            return not results[0] if isinstance(results[0], bool) else ~results[0]
        return COMBINE[self.symbol](*results)

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The operator on what each part says."""
        return self.combine([part.evaluate(values) for part in self.parts])


def mask_mod(function: Callable[..., Any]) -> MaskMod:
    """A mask from a function of coordinates: `def causal(q_idx, kv_idx): return kv_idx <= q_idx`."""
    mod = as_mod(Stage.MASK, function)
    assert isinstance(mod, MaskMod)
    return mod


def score_mod(function: Callable[..., Any]) -> Mod:
    """A change of the score: `def alibi(score, h, q_idx, kv_idx, *, slopes): ...`; `score` is the scaled product."""
    return as_mod(Stage.SCORE, function)


def normalizer(function: Callable[..., Any]) -> Mod:
    """The weight as a function of the final score and of row statistics: `ad.row_max`, `ad.row_sum`, `ad.row_solve`."""
    return as_mod(Stage.NORMALIZER, function)


def weight_mod(function: Callable[..., Any]) -> Mod:
    """A change of the normalized weight: `def decay(weight, q_idx, kv_idx, *, log_gamma): ...`."""
    return as_mod(Stage.WEIGHT, function)


def as_mod(stage: Stage, function: Any, positional: bool = False) -> Mod:
    """A mod of one stage from a mod or a plain function; `positional`: in FlexAttention's order."""
    if isinstance(function, Mod):
        if function.stage is stage:
            return function
        message = f"`{function.__name__}` is a {function.stage.decorator}, expected a {stage.decorator}"
        raise fail(ProgramError, "wrong-stage", message, help=f"pass it as `{function.stage.decorator}=`")
    if not callable(function):
        message = f"a {stage.decorator} is a function of coordinates, got {type(function).__name__}"
        raise fail(ProgramError, "not-a-function", message, help=EXAMPLES[stage])
    kind = MaskMod if stage is Stage.MASK else Mod
    return kind(stage, function, signature_of(stage, function, positional))


EXAMPLES = {
    Stage.MASK: "write `lambda q_idx, kv_idx: kv_idx <= q_idx`",
    Stage.SCORE: "write `lambda score, q_idx, kv_idx: score + ...`",
    Stage.NORMALIZER: "write `ad.softmax()`, or a function of `score` under `@ad.normalizer`",
    Stage.WEIGHT: "write `lambda weight, q_idx, kv_idx: weight * ...`",
}


def invoke(
    function: Callable[..., Any], signature: Signature, values: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Any:
    """Call a user's function with coordinates by name."""
    if signature.by_keyword:
        return function(**{name: values[meaning] for name, meaning in signature.arguments}, **parameters)
    return function(*(values[meaning] for meaning in signature.order), **parameters)


def _combined(symbol: str, left: Any, right: Any) -> MaskMod:
    return CombinedMask(symbol, (mask_mod(left), mask_mod(right)))


def _unfit(mod: str, name: str, value: Any) -> Diagnostic | None:
    """Why a value cannot be a parameter."""
    is_array = type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", 0) > 0
    if not is_array and not (isinstance(value, list | tuple) and not any(callable(item) for item in value)):
        return None
    message = f"`{name}` of `{mod}` is of type {type(value).__name__}"
    help_ = f"index a tensor instead: `{mod}({name}=torch.as_tensor(...))`"
    return Diagnostic("parameter-type", message, help=help_)


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"tensor{list(shape)}"

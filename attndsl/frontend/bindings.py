"""The values of a variant's parameters: what was captured, how the rest is computed from it, and how to swap values.

In: what a trace captured. Out: at each call, a value for every parameter, with gradients to what was captured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch

from attndsl.diagnostics import CallError, Reporter
from attndsl.frontend.declared import Open
from attndsl.ir.types import DType

Value = int | float | torch.Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Recipe:
    """A torch operation on captured tensors; arguments hold `Leaf`s and other recipes where a tensor goes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    item: int | None = None


@dataclass(eq=False, slots=True)
class Leaf:
    """A captured tensor as recipes refer to it, whatever value is bound to it later."""

    reads_shape: bool = False
    """Whether Python code read its sizes while it was traced."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A captured value, or what it will be.

    `made_inside` marks a table the variant itself makes, which follows the device of a call.
    """

    value: Value | Open
    dtype: DType
    leaf: Leaf
    dotted: str | None = None
    made_inside: bool = False


@dataclass(frozen=True, slots=True)
class Bindings:
    """`captured` by name, and for each parameter that is computed from captured tensors its recipe."""

    captured: Mapping[str, Bound] = field(default_factory=dict)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    params: tuple[str, ...] = ()

    @property
    def are_fixed(self) -> bool:
        """Whether `resolve` gives the same values every time: all are there, none is computed, nor moved to where it
        is needed."""
        return not (self.recipes or self.are_open) and not any(bound.made_inside for bound in self.captured.values())

    @property
    def are_open(self) -> bool:
        """Whether some parameter has no value yet."""
        return any(isinstance(bound.value, Open) for bound in self.captured.values())

    def resolve(self, device: torch.device | None = None) -> dict[str, Value]:
        """A value for every parameter, in their order; those without one are an error."""
        self.check()
        return self.known(device)

    def known(self, device: torch.device | None = None) -> dict[str, Value]:
        """The values of parameters that have one; recipes are replayed, so gradients reach captured tensors."""
        values = {
            name: _placed(bound.value, bound.made_inside, device)
            for name, bound in self.captured.items()
            if not isinstance(bound.value, Open)
        }
        leaves = {self.captured[name].leaf: value for name, value in values.items()}
        done: dict[int, Any] = {}
        return {
            name: replay(self.recipes[name], leaves, done) if name in self.recipes else values[name]
            for name in self.params
            if name in self.recipes or name in values
        }

    def check(self) -> None:
        """That every parameter has a value."""
        if not self.are_open:
            return
        reporter = Reporter(CallError)
        for name, bound in self.captured.items():
            if isinstance(bound.value, Open):
                message = f"`{name}` has no value"
                reporter.error("missing-parameter", message, help=f"bind `{name}=...`, {bound.value}")
        reporter.check()

    def bind(self, **values: Value) -> Bindings:
        """Other values for some captured values, by name or by `mod.name`."""
        reporter = Reporter(CallError)
        captured = dict(self.captured)
        for given, value in values.items():
            name = self._named(given, reporter)
            if name is not None and _fits(name, self.captured[name], value, reporter):
                kind = self.captured[name].dtype
                captured[name] = replace(captured[name], value=float(value) if _is_real(kind, value) else value)
        reporter.check()
        return replace(self, captured=captured)

    def _named(self, given: str, reporter: Reporter) -> str | None:
        known = {name: bound for name, bound in self.captured.items() if not bound.made_inside}
        if given in known:
            return given
        found = [name for name, bound in known.items() if bound.dotted == given]
        if len(found) == 1:
            return found[0]
        names = ", ".join(f"`{name}`" for name in sorted(found or known)) or "none"
        notes = [f"the parameters are {names}" if not found else f"`{given}` could be any of {names}"]
        if given in self.recipes:
            notes.append(f"`{given}` is computed inside the variant: bind what it is computed from")
        alike = found or [name for name, bound in known.items() if (bound.dotted or "").endswith(f".{given}")]
        shared = f'a value that mods share is one parameter: pass them `ad.param("{given}", ...)`'
        message, help_ = f"there is no parameter `{given}`", shared if len(alike) > 1 else None
        reporter.error("unknown-parameter", message, None, *notes, help=help_)
        return None


def replay(recipe: Recipe, leaves: Mapping[Leaf, Value], done: dict[int, Any]) -> Any:
    """The value of a recipe, each operation once: `done` has values by the `id` of recipes, which torch's compiler
    can look up as it traces this."""

    def value_of(arg: Any) -> Any:
        match arg:
            case Leaf():
                return leaves[arg]
            case Recipe():
                return replay(arg, leaves, done)
            case _:
                return arg

    key = id(recipe)
    if key not in done:
        args, kwargs = nested((recipe.args, dict(recipe.kwargs)), value_of)
        result = recipe.function(*args, **kwargs)
        done[key] = result if recipe.item is None else result[recipe.item]
    return done[key]


def nested(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested arguments with everything that is not a container changed."""
    match value:
        case torch.Size():
            return value
        case tuple() if type(value) is tuple:
            return tuple(nested(item, change) for item in value)
        case list():
            return [nested(item, change) for item in value]
        case dict():
            return {key: nested(item, change) for key, item in value.items()}
        case slice():
            return slice(nested(value.start, change), nested(value.stop, change), nested(value.step, change))
        case _:
            return change(value)


def kind_of(tensor: torch.Tensor) -> DType | None:
    """The type of a tensor's elements in the language; none for complex numbers and the like."""
    if tensor.dtype is torch.bool:
        return DType.BOOL
    if tensor.dtype.is_floating_point:
        return DType.F32
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return DType.I64 if tensor.dtype in integers else None


def _placed(value: Value, made_inside: bool, device: torch.device | None) -> Value:
    return value.to(device) if made_inside and device is not None and isinstance(value, torch.Tensor) else value


def _is_real(kind: DType, value: Value) -> bool:
    return kind.is_float and isinstance(value, int)


def _fits(name: str, bound: Bound, value: Any, reporter: Reporter) -> bool:
    """Whether a value may take the place of another; reports why not."""
    expected = _described(bound.value, bound.dtype)
    if _is_tensor(bound.value):
        fits = isinstance(value, torch.Tensor) and (kind_of(value), value.ndim) == (bound.dtype, bound.value.ndim)
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and (bound.dtype.is_float or isinstance(value, int))
    if not fits:
        got = _described(value, kind_of(value) if isinstance(value, torch.Tensor) else None)
        reporter.error("parameter-type", f"`{name}` is {expected}, got {got}")
        return False
    if isinstance(bound.value, torch.Tensor) and bound.leaf.reads_shape and value.shape != bound.value.shape:
        sizes = f"{list(bound.value.shape)}, got {list(value.shape)}"
        message = f"the variant was traced with the sizes of `{name}`, {sizes}"
        reporter.error("parameter-shape", message, help="make a new attention for a new shape")
        return False
    return True


def _is_tensor(value: Value | Open) -> TypeGuard[torch.Tensor | Open]:
    """Whether values of a parameter are tensors."""
    return value.dims is not None if isinstance(value, Open) else isinstance(value, torch.Tensor)


def _described(value: Any, kind: DType | None) -> str:
    match value:
        case Open():
            return str(value)
        case torch.Tensor() if kind is not None:
            return f"a {kind.word} tensor with {value.ndim} dimension(s)"
        case torch.Tensor():
            return f"a tensor of {value.dtype}"
        case bool() | int() | float() if kind is not None:
            return "a float" if kind.is_float else "an int"
        case _:
            return f"a value of type {type(value).__name__}"

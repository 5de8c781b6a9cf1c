"""What functions are apart from the numbers and tensors they close over.

In: the mods of a call. Out: a `Likeness`: a form, which functions share that do the same with other values, and those
values in order. Functions made anew for every call, `lambda b, h, q, kv: q - kv < window`, have one form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor

from attndsl.frontend.decorators import CombinedMask, Mod

FIXED = frozenset({"attndsl", "builtins", "functools", "math", "numpy", "operator", "torch", "transformers"})
"""Packages whose functions mean the same at every call: what they read beside their own values is not looked at."""

PLAIN = (NoneType, bool, str, bytes, complex, type(Ellipsis), torch.dtype, torch.device, torch.layout, torch.Size, Enum)
"""Values that are part of a form: they cannot change, and equal ones mean the same."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """`form` is `None` where something may change that was not looked at. `numbers` by where each was met, as
    `frontend.closures` names places; `tensors` each once."""

    form: Hashable
    numbers: Mapping[Hashable, int | float]
    tensors: tuple[Tensor, ...]


def likeness(*mods: Callable[..., Any] | None) -> Likeness:
    """The likeness of the mods of a call, in their order."""
    walk = _Walk()
    form = tuple(walk.value(mod, None) for mod in mods)
    return Likeness(form if walk.is_complete else None, walk.numbers, tuple(walk.tensors.values()))


class _Walk:
    """Everything functions reach, each thing once."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int | float] = {}
        self.tensors: dict[int, Tensor] = {}
        self.is_complete = True
        self._met: dict[Hashable, int] = {}

    def value(self, value: Any, place: Hashable) -> Hashable:
        """The form of a value that was met at a place."""
        if type(value) in (int, float):
            self.numbers[place] = value
            return type(value), self._number_of(place)
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
            return "tensor", self._number_of(id(value)), value.dtype, value.ndim, value.device
        if isinstance(value, PLAIN):
            return type(value), value
        return self._structure(value)

    def _structure(self, value: Any) -> Hashable:
        match value:
            case tuple() | list() if type(value) in (tuple, list):
                items = enumerate(value)
                return type(value), *(self.value(item, (id(value), number)) for number, item in items)
            case dict() if all(isinstance(key, PLAIN) or type(key) is int for key in value):
                return "dict", *((key, self.value(item, (id(value), key))) for key, item in value.items())
            case CombinedMask():
                return value.symbol, *(self.value(part, None) for part in value.parts)
            case Mod():
                return self._once(value, self._mod)
            case FunctionType():
                return self._once(value, self._function)
            case functools.partial():
                return self._once(value, self._partial)
            case ModuleType() | type() | BuiltinFunctionType() if _is_fixed(value):
                return "name", value
            case _:
                self.is_complete = False
                return None

    def _once(self, value: Any, form: Callable[[Any], Hashable]) -> Hashable:
        is_new = id(value) not in self._met
        number = self._number_of(id(value))
        return form(value) if is_new else ("again", number)

    def _number_of(self, thing: Hashable) -> int:
        """The number of a place, or of a thing by its identity, in the order they are met."""
        return self._met.setdefault(thing, len(self._met))

    def _mod(self, mod: Mod) -> Hashable:
        values = {**mod.signature.defaults, **mod.bound}
        parameters = ((name, self.value(value, (id(mod), name))) for name, value in values.items())
        return mod.stage, mod.signature.arguments, mod.signature.floats, self.value(mod.function, None), *parameters

    def _function(self, function: FunctionType) -> Hashable:
        code = function.__code__
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        keywords = function.__kwdefaults__ or {}
        return (
            code,
            tuple(self._cell(cell) for _, cell in cells),
            self._defaults(function),
            *((name, self.value(value, ("default", id(function), name))) for name, value in keywords.items()),
            *(() if _is_fixed(function) else self._read(function.__globals__, names_in(code))),
        )

    def _cell(self, cell: Any) -> Hashable:
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            return "empty"
        return self.value(content, ("cell", id(cell)))

    def _defaults(self, function: FunctionType) -> Hashable:
        code, values = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
        pairs = zip(names, values, strict=True)
        return tuple((name, self.value(value, ("default", id(function), name))) for name, value in pairs)

    def _partial(self, partial: functools.partial[Any]) -> Hashable:
        args = (self.value(value, ("partial", id(partial), number)) for number, value in enumerate(partial.args))
        named = partial.keywords.items()
        keywords = ((name, self.value(value, ("partial", id(partial), name))) for name, value in named)
        return "partial", self.value(partial.func, None), *args, *keywords

    def _read(self, variables: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Hashable, ...]:
        """What code may read of variables, and of the modules and classes among them, by the names it writes."""
        return tuple((name, self._variable(variables, name, names)) for name in names if name in variables)

    def _variable(self, variables: Mapping[str, Any], name: str, names: tuple[str, ...]) -> Hashable:
        value = variables[name]
        if not isinstance(value, ModuleType | type) or _is_fixed(value):
            return self.value(value, ("variable", id(variables), name))
        homes = value.__mro__ if isinstance(value, type) else (value,)
        return self._once(
            value, lambda _: tuple(self._read(vars(home), names) for home in homes if not _is_fixed(home))
        )


@lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[str, ...]:
    """Every name that code writes, the code inside it too."""
    inner = (names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return tuple(dict.fromkeys([*code.co_names, *(name for names in inner for name in names)]))


def _is_fixed(value: Any) -> bool:
    if isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, ModuleType | type | NoneType):
        return False
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return (module or "builtins").partition(".")[0] in FIXED

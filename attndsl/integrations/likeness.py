"""What functions are apart from the numbers and tensors they close over.

In: the mods of a call. Out: a `Likeness`: a form, which functions share that do the same with other values, and those
values in order. Functions made anew for every call, `lambda b, h, q, kv: q - kv < window`, have one form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any

import torch
from torch import Tensor

from attndsl.frontend.decorators import CombinedMask, Mod

FIXED = frozenset({"attndsl", "builtins", "functools", "math", "numpy", "operator", "torch", "transformers"})
"""Packages whose functions mean the same at every call: what they read beside their own values is not looked at."""

PLAIN = (NoneType, bool, str, bytes, complex, type(Ellipsis), torch.dtype, torch.device, torch.layout, torch.Size, Enum)
"""Values that are part of a form: they cannot change, and equal ones mean the same."""


MODULE_STATE = ("_parameters", "_buffers", "_modules")
"""Where a `torch.nn.Module` keeps attributes."""

UNREAD = frozenset({"__init__", "__new__", "__repr__", "__str__", "__del__"})
"""Methods no mask is computed by."""


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
    form = (*(walk.value(mod, None) for mod in mods), *walk.attributes())
    return Likeness(form if walk.is_complete else None, walk.numbers, tuple(walk.tensors.values()))


class _Walk:
    """Everything functions reach, each thing once."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int | float] = {}
        self.tensors: dict[int, Tensor] = {}
        self.is_complete = True
        self._met: dict[Hashable, int] = {}
        self._objects: dict[int, Any] = {}
        self._names: dict[str, None] = {}

    def attributes(self) -> Iterator[Hashable]:
        """What code may read of the objects it was seen to reach, by the names it writes; methods write names too."""
        read: set[tuple[int, str]] = set()
        while waiting := [(at, name) for at in self._objects for name in self._names if (at, name) not in read]:
            read.update(waiting)
            for at, name in waiting:
                yield self._number_of(at), name, self._attribute(self._objects[at], name)

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
            case MethodType():
                return "method", self.value(value.__func__, None), self.value(value.__self__, None)
            case ModuleType() | type() | BuiltinFunctionType() if is_fixed(value):
                return "name", value
            case _:
                return self._object(value)

    def _object(self, value: Any) -> Hashable:
        """An object of a user's class, whose attributes are looked up where they are kept."""
        homes = [vars(base) for base in type(value).__mro__ if not is_fixed(base)]
        if not homes or any(hook in home for home in homes for hook in ("__getattr__", "__getattribute__")):
            self.is_complete = False
            return None
        self._objects[id(value)] = value
        # Operators and calls are methods that nobody writes the names of.
        implicit = (name for home in homes for name, held in home.items() if isinstance(held, FunctionType))
        self._names.update((name, None) for name in implicit if name.startswith("__") and name not in UNREAD)
        return "object", type(value), self._number_of(id(value))

    def _attribute(self, value: Any, name: str) -> Hashable:
        own = getattr(value, "__dict__", {})
        kept = (own, *(own.get(group, {}) for group in MODULE_STATE)) if isinstance(value, torch.nn.Module) else (own,)
        for variables in kept:
            if name in variables:
                return self.value(variables[name], ("attribute", id(value), name))
        owner = next((base for base in type(value).__mro__ if name in vars(base)), None)
        if owner is None or is_fixed(owner):
            return None
        match vars(owner)[name]:
            case property() as found:
                return self.value(found.fget, None)
            case staticmethod() | classmethod() as found:
                return self.value(found.__func__, None)
            case MemberDescriptorType():
                return self.value(getattr(value, name, None), ("attribute", id(value), name))
            case found:
                return self.value(found, ("attribute", id(owner), name))

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
        signature = mod.stage, mod.signature.arguments, tuple(mod.signature.declared.items())
        return *signature, self.value(mod.function, None), *parameters

    def _function(self, function: FunctionType) -> Hashable:
        code = function.__code__
        self._names.update(dict.fromkeys(names_in(code)))
        keywords = function.__kwdefaults__ or {}
        return (
            code,
            tuple(map(self._cell, function.__closure__ or ())),
            self._defaults(function),
            *((name, self.value(value, ("default", id(function), name))) for name, value in keywords.items()),
            *(() if is_fixed(function) else self._read(function.__globals__, names_in(code))),
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
        if not isinstance(value, ModuleType | type) or is_fixed(value):
            return self.value(value, ("variable", id(variables), name))
        homes = value.__mro__ if isinstance(value, type) else (value,)
        return self._once(value, lambda _: tuple(self._read(vars(home), names) for home in homes if not is_fixed(home)))


@lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[str, ...]:
    """Every name that code writes, as text too, and in the code inside it."""
    inner = (names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    text = (constant for constant in code.co_consts if isinstance(constant, str))
    return tuple(dict.fromkeys([*code.co_names, *text, *(name for names in inner for name in names)]))


def is_fixed(value: Any) -> bool:
    """Whether a module, class or function is of a package in which names mean the same at every call."""
    if isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, ModuleType | type | NoneType):
        return False
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return (module or "builtins").partition(".")[0] in FIXED

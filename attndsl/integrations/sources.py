"""Where functions keep what they read: the way from a function to each of its values.

In: functions as `likeness` takes them. Out: for every value they reach a path, a tuple of steps that `value_at` takes
again. torch's compiler follows such steps, and so sees that a value is an input of a graph, or watches that it stays.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from attndsl.integrations.likeness import MODULE_STATE, PLAIN, is_fixed, names_in

Step = tuple[str, Any]
Path = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A value, the way to it, and its place as `likeness` names places."""

    path: Path
    place: Hashable
    value: Any


def sources(roots: Sequence[Any]) -> tuple[Source, ...] | None:
    """The functions, tensors, numbers and other constants that functions reach; `None` where more may be read."""
    walk = _Walk()
    for number, root in enumerate(roots):
        walk.visit(Source((("root", number),), None, root))
    walk.attributes()
    return tuple(walk.found) if walk.is_complete else None


def value_at(roots: Sequence[Any], path: Path) -> Any:
    """The value at the end of a path."""
    value: Any = roots
    for kind, key in path:
        if kind in ("root", "item"):
            value = value[key]
        elif kind == "cell":
            value = value.__closure__[key].cell_contents
        elif kind == "default":
            value = value.__defaults__[key]
        elif kind == "keyword default":
            value = value.__kwdefaults__[key]
        elif kind == "variable":
            value = value.__globals__[key]
        elif kind == "argument":
            value = value.args[key]
        elif kind == "keyword":
            value = value.keywords[key]
        else:
            value = getattr(value, key)
    return value


class _Walk:
    """Everything functions reach, each thing once."""

    def __init__(self) -> None:
        self.found: list[Source] = []
        self.is_complete = True
        self._met: set[int] = set()
        self._objects: list[Source] = []
        self._names: dict[str, None] = {}

    def visit(self, source: Source) -> None:
        """A value, and what it reaches."""
        value = source.value
        if isinstance(value, (Tensor, *PLAIN)) or type(value) in (int, float):
            self.found.append(source)
        elif isinstance(value, ModuleType | type | BuiltinFunctionType):
            self.is_complete &= is_fixed(value)
        elif id(value) not in self._met:
            self._met.add(id(value))
            if isinstance(value, FunctionType):
                self.found.append(source)
                self._names.update(dict.fromkeys(names_in(value.__code__)))
            for step, place, child in self._children(source):
                self.visit(Source((*source.path, step), place, child))

    def attributes(self) -> None:
        """What code may read of objects, by the names it writes."""
        read: set[tuple[int, str]] = set()
        while waiting := [(one, name) for one in self._objects for name in self._names if (id(one), name) not in read]:
            read.update((id(one), name) for one, name in waiting)
            for one, name in waiting:
                self._attribute(one, name)

    def _attribute(self, owner: Source, name: str) -> None:
        value = owner.value
        own = vars(value)
        kept = (own, *(own[group] for group in MODULE_STATE)) if isinstance(value, torch.nn.Module) else (own,)
        for variables in kept:
            if name in variables:
                place = ("attribute", id(value), name)
                self.visit(Source((*owner.path, ("attribute", name)), place, variables[name]))
                return
        if any(name in vars(base) for base in type(value).__mro__ if not is_fixed(base)):
            self.is_complete = False

    def _children(self, source: Source) -> Iterator[tuple[Step, Hashable, Any]]:
        value = source.value
        match value:
            case tuple() | list() if type(value) in (tuple, list):
                yield from ((("item", at), (id(value), at), item) for at, item in enumerate(value))
            case FunctionType():
                yield from _of_function(value)
            case functools.partial():
                yield ("attribute", "func"), None, value.func
                yield from ((("argument", at), ("partial", id(value), at), one) for at, one in enumerate(value.args))
                yield from ((("keyword", at), ("partial", id(value), at), one) for at, one in value.keywords.items())
            case MethodType():
                yield ("attribute", "__func__"), None, value.__func__
                yield ("attribute", "__self__"), None, value.__self__
            case torch.nn.Module():
                self._objects.append(source)
            case _:
                self.is_complete = False


def _of_function(function: FunctionType) -> Iterator[tuple[Step, Hashable, Any]]:
    code, defaults = function.__code__, function.__defaults__ or ()
    for at, cell in enumerate(function.__closure__ or ()):
        yield ("cell", at), ("cell", id(cell)), cell.cell_contents
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    for at, (name, value) in enumerate(zip(names, defaults, strict=True)):
        yield ("default", at), ("default", id(function), name), value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield ("keyword default", name), ("default", id(function), name), value
    if not is_fixed(function):
        variables = function.__globals__
        for name in names_in(code):
            if name in variables:
                yield ("variable", name), ("variable", id(variables), name), variables[name]

"""Functions with symbols where they closed over numbers, and stand-ins where they closed over tensors.

In: a user's callable. Out: one that runs the same code; the user's own is never changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from types import CellType, FunctionType, MethodType
from typing import Any, Protocol

import torch

from attndsl.frontend.declared import Named, Open

LAMBDA = "<lambda>"


class Lifter(Protocol):
    """What becomes of captured values."""

    def number(self, value: float, name: str, mod: str | None, key: Hashable) -> Any: ...
    def declared(self, value: Open | Named, name: str, mod: str | None, key: Hashable) -> Any: ...
    def tensor(self, value: torch.Tensor, name: str, mod: str | None) -> torch.Tensor: ...
    def hint(self, value: torch.Tensor, name: str, mod: str | None) -> None: ...


class Rebuilder:
    """Rebuilds what one trace calls, each thing once."""

    def __init__(self, lifter: Lifter) -> None:
        self._lifter = lifter
        self._done: dict[int, Any] = {}
        self._kept: list[Any] = []

    def callable(self, function: Callable[..., Any], mod: str | None) -> Callable[..., Any]:
        """A function, method, partial or callable object, rebuilt."""
        rebuilt: Callable[..., Any] = self._value(function, "value", mod, id(function))
        if rebuilt is function and not isinstance(function, FunctionType | type):
            self._hint_attributes(function)
        return rebuilt

    def _value(self, value: Any, name: str, mod: str | None, key: Hashable) -> Any:
        if type(value) in (int, float):
            return self._lifter.number(value, name, mod, key)
        if isinstance(value, Open | Named):
            return self._lifter.declared(value, name, mod, key)
        if isinstance(value, torch.Tensor):
            return self._lifter.tensor(value, name, mod)
        if type(value) in (tuple, list):
            return self._sequence(value, name, mod)
        match value:
            case FunctionType():
                return self._once(value, lambda: self._function(value, mod))
            case MethodType():
                self._hint_attributes(value.__self__)
                inner = value.__func__
                return MethodType(self._value(inner, name, mod, id(inner)), value.__self__)
            case functools.partial():
                return self._once(value, lambda: self._partial(value, mod))
            case _:
                return value

    def _once(self, value: Any, rebuild: Callable[[], Any]) -> Any:
        if id(value) not in self._done:
            self._kept.append(value)
            self._done[id(value)] = value  # a function that closes over itself finds itself
            self._done[id(value)] = rebuild()
        return self._done[id(value)]

    def _function(self, function: FunctionType, mod: str | None) -> FunctionType:
        module = function.__module__ or ""
        if module.startswith("attndsl.frontend") or (module.startswith("torch") and function.__closure__ is None):
            return function
        if function.__name__ != LAMBDA:
            mod = function.__name__
        cells = tuple(
            self._cell(cell, name, mod)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        )
        defaults, keywords = self._defaults(function, mod)
        if (
            _same(cells, function.__closure__ or ())
            and _same(defaults or (), function.__defaults__ or ())
            and _same((keywords or {}).values(), (function.__kwdefaults__ or {}).values())
        ):
            return function
        rebuilt = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, cells or None)
        rebuilt.__kwdefaults__ = keywords
        rebuilt.__dict__.update(function.__dict__)
        rebuilt.__qualname__, rebuilt.__module__ = function.__qualname__, function.__module__
        return rebuilt

    def _cell(self, cell: CellType, name: str, mod: str | None) -> CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            return cell
        changed = self._value(content, name, mod, ("cell", id(cell)))
        return cell if changed is content else CellType(changed)

    def _defaults(
        self, function: FunctionType, mod: str | None
    ) -> tuple[tuple[Any, ...] | None, dict[str, Any] | None]:
        code, positional, keywords = function.__code__, function.__defaults__, function.__kwdefaults__
        if positional is not None:
            names = code.co_varnames[code.co_argcount - len(positional) : code.co_argcount]
            positional = tuple(
                self._value(value, name, mod, ("default", id(function), name))
                for name, value in zip(names, positional, strict=True)
            )
        if keywords is not None:
            keywords = {
                name: self._value(value, name, mod, ("default", id(function), name)) for name, value in keywords.items()
            }
        return positional, keywords

    def _partial(self, partial: functools.partial[Any], mod: str | None) -> functools.partial[Any]:
        inner = partial.func
        code = getattr(inner, "__code__", None)
        names = code.co_varnames[: code.co_argcount] if code is not None else ()
        if getattr(inner, "__name__", LAMBDA) != LAMBDA:
            mod = inner.__name__
        args = [
            self._value(value, names[number] if number < len(names) else "value", mod, ("partial", id(partial), number))
            for number, value in enumerate(partial.args)
        ]
        keywords = {
            name: self._value(value, name, mod, ("partial", id(partial), name))
            for name, value in partial.keywords.items()
        }
        return functools.partial(self._value(inner, "value", mod, id(inner)), *args, **keywords)

    def _sequence(self, values: Any, name: str, mod: str | None) -> Any:
        """Functions and tensors of a tuple or list; its numbers are for Python's use and stay what they are."""
        changed = [
            value if type(value) in (int, float) else self._value(value, f"{name}_{number}", mod, (id(values), number))
            for number, value in enumerate(values)
        ]
        return values if _same(changed, values) else type(values)(changed)

    def _hint_attributes(self, instance: Any) -> None:
        attributes = dict(getattr(instance, "__dict__", {}))
        if isinstance(instance, torch.nn.Module):
            attributes.update(instance.named_parameters(recurse=False))
            attributes.update(instance.named_buffers(recurse=False))
        for name, value in attributes.items():
            if isinstance(value, torch.Tensor):
                self._lifter.hint(value, name, type(instance).__name__)


def _same(new: Iterable[Any], old: Iterable[Any]) -> bool:
    """Whether nothing was rebuilt. By identity: symbols have no truth to compare by."""
    return all(left is right for left, right in zip(new, old, strict=True))

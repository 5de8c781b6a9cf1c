"""What mods capture, as a run has it: numbers as runtime scalars, tensors as stand-ins, functions rebuilt over both.

In: values of parameters, and what functions close over. Out: symbols, stand-ins and functions to call mods with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import isfinite
from typing import Any

import torch

from attndsl.frontend.builder import INT64
from attndsl.frontend.closures import Rebuilder
from attndsl.frontend.declared import Named, Open
from attndsl.frontend.decorators import Mod
from attndsl.frontend.run import Run
from attndsl.ir import build


class Lifting:
    """The captured values of one run: a `closures.Lifter`.

    `constants` are the keys of numbers that stay constants; `None` says that all do.
    """

    def __init__(self, run: Run, constants: frozenset[Hashable] | None) -> None:
        self._run = run
        self._constants = constants
        self._rebuilder = Rebuilder(self)
        self._alive: list[Mod | Named] = []

    def keep(self, owner: Mod | Named) -> None:
        """Keep alive what keys are made of the identity of."""
        self._alive.append(owner)

    def parameter(self, value: Any, name: str, mod: str | None, key: Hashable) -> Any:
        """The value of a parameter as its mod is called with it."""
        if type(value) in (int, float) or is_numpy_number(value):
            return self.number(value if type(value) in (int, float) else value.item(), name, mod, key)
        if isinstance(value, torch.Tensor):
            return self._run.captures.stand_in(value, name, mod, key)
        if isinstance(value, Open | Named):
            return self.declared(value, name, mod, key)
        return self.callable(value, mod) if callable(value) and not isinstance(value, Mod | type) else value

    def callable(self, function: Callable[..., Any], mod: str | None) -> Callable[..., Any]:
        """A function over what its captured values have become."""
        return self._rebuilder.callable(function, mod)

    def number(self, value: float, name: str, mod: str | None, key: Hashable) -> Any:
        """A runtime scalar, or the number itself where Python needs it or it is no quantity but structure."""
        is_constant = self._constants is None or key in self._constants
        if is_constant or not isfinite(value) or (isinstance(value, int) and value not in INT64):
            return value
        captured = self._run.captures.scalar(key, name, mod, value)
        return self._run.symbol(build.scalar(captured.label, captured.dtype))

    def declared(self, value: Open | Named, name: str, mod: str | None, key: Hashable) -> Any:
        """A parameter without a value, or one that several mods share."""
        if isinstance(value, Named):
            self.keep(value)
            return self.parameter(value.value, value.name, None, ("named", id(value)))
        if value.dims is None:
            captured = self._run.captures.scalar(key, name, mod, value)
            return self._run.symbol(build.scalar(captured.label, captured.dtype))
        alias = self._run.captures.stand_in_of_open(value, name, mod, key)
        return alias if value.dims else self._run.symbol(self._run.load(self._run.captured(alias), []))

    def tensor(self, value: torch.Tensor, name: str, mod: str | None) -> torch.Tensor:
        """A captured tensor under the name of the variable that holds it."""
        return self._run.captures.stand_in(value, name, mod, (id(value), name))

    def hint(self, value: torch.Tensor, name: str, mod: str | None) -> None:
        """The name of an attribute that holds a tensor."""
        self._run.captures.hint(value, name, mod)


def is_numpy_number(value: Any) -> bool:
    """Whether a value is a number that numpy wraps."""
    return type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and value.dtype.kind in "biuf"

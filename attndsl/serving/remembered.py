"""What was learnt from index tensors, for as long as they keep their values."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from attndsl.runtime.versions import version_of

REMEMBERED = 64
"""Sets of tensors of which something is known: those used last."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    """What was learnt, the tensors it was learnt from, and their versions then."""

    learnt: T
    tensors: tuple[weakref.ref[Tensor], ...]
    versions: tuple[Hashable, ...]

    def stands(self, tensors: tuple[Tensor, ...]) -> bool:
        same = all(ref() is tensor for ref, tensor in zip(self.tensors, tensors, strict=True))
        return same and self.versions == tuple(map(version_of, tensors))


class Remembered(Generic[T]):
    """Nothing is used again after a tensor was written to; of inference tensors, whose writes nobody counts, nothing
    is kept."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()

    def use(self, tensors: tuple[Tensor, ...], more: Hashable, learn: Callable[[], T]) -> T:
        """What is learnt from these tensors and from `more`."""
        key = (tuple(map(id, tensors)), more)
        entry = self._entries.get(key)
        if entry is not None and entry.stands(tensors):
            return entry.learnt
        versions, learnt = tuple(map(version_of, tensors)), learn()
        if None not in versions:
            self._entries[key] = _Entry(learnt, tuple(map(weakref.ref, tensors)), versions)
            while len(self._entries) > REMEMBERED:
                self._entries.popitem(last=False)
        return learnt

"""Blocks a router keeps whatever their scores.

In: where the blocks of a call lie. Out: bool maps that broadcast to [B', 1, query blocks, key blocks].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from attndsl.diagnostics import CallError, fail
from attndsl.routing.blocks import Blocks


class Kept(Protocol):
    """What a router asks which blocks to keep. `needs_order`: whether blocks must be stretches of keys."""

    @property
    def needs_order(self) -> bool: ...

    def __call__(self, blocks: Blocks) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Sink:
    """The first `count` blocks."""

    count: int

    @property
    def needs_order(self) -> bool:
        return True

    def __call__(self, blocks: Blocks) -> Tensor:
        return (blocks.columns() < self.count).view(1, 1, 1, -1)


@dataclass(frozen=True, slots=True)
class Local:
    """The blocks of the queries' own positions and `count` on either side."""

    count: int

    @property
    def needs_order(self) -> bool:
        return True

    def __call__(self, blocks: Blocks) -> Tensor:
        first, last = blocks.own()
        columns = blocks.columns()
        return (columns >= first - self.count) & (columns <= last + self.count)


@dataclass(frozen=True, slots=True)
class Diagonal:
    """The blocks of the queries' own positions."""

    @property
    def needs_order(self) -> bool:
        return False

    def __call__(self, blocks: Blocks) -> Tensor:
        return blocks.diagonal()


def sink(count: int = 1) -> Sink:
    """Keep the first `count` blocks of keys."""
    return Sink(_count("sink", count))


def local(count: int = 1) -> Local:
    """Keep the blocks that hold the queries' own positions and `count` blocks on either side (a causal router keeps
    none that lie in the future)."""
    return Local(_count("local", count))


def diagonal() -> Diagonal:
    """Keep the blocks that hold the queries' own positions."""
    return Diagonal()


def kept_blocks(given: Any) -> tuple[Kept, ...]:
    """What `keep=` names: "sink", "local", "diagonal", or what the functions of these names make."""
    named: dict[str, Callable[[], Kept]] = {"sink": sink, "local": local, "diagonal": diagonal}
    items = (given,) if isinstance(given, str | Sink | Local | Diagonal) else tuple(given)
    for item in items:
        if not (item in named if isinstance(item, str) else callable(item) and hasattr(item, "needs_order")):
            help_ = 'keep any of "sink", "local", "diagonal", or `ad.routers.sink(2)` and the like'
            raise fail(CallError, "bad-keep", f"a router cannot keep {item!r}", None, help=help_)
    return tuple(named[item]() if isinstance(item, str) else item for item in items)


def _count(name: str, count: int) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise fail(CallError, "bad-keep", f"`{name}` takes the number of blocks, got {count!r}")
    return count

"""Grids and requirements as Python users write them.

In: sizes of axes; indices that are symbols, numbers or tensors. Out: coordinates of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from attndsl.diagnostics import ProgramError, Reporter, fail
from attndsl.frontend.layout import Layout, problem_of, problems_of_tile
from attndsl.frontend.symbols import Symbol


class Grid:
    """Tokens laid out on a grid, row-major: `g(q_idx).y` is a coordinate, `t, y, x = g(kv_idx)` all of them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @property
    def length(self) -> int:
        """How many places there are."""
        return self.layout.length

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, slowest first."""
        return self.layout.axes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the axes, slowest first."""
        return self.layout.sizes

    def __call__(self, index: Any) -> Position:
        return Position(self.layout, index)

    def __repr__(self) -> str:
        return str(self.layout)


class Position:
    """A place on a grid: its coordinates by name, or unpacked in the order of the axes."""

    __slots__ = ("__index", "__layout")

    def __init__(self, layout: Layout, index: Any) -> None:
        self.__layout = layout
        self.__index = index

    def __getattr__(self, name: str) -> Any:
        return _along(self.__layout, name, self.__index)

    def __iter__(self) -> Iterator[Any]:
        return (_along(self.__layout, axis, self.__index) for axis in self.__layout.axes)


def grid(*, tile: Sequence[int] | None = None, **sizes: int) -> Grid:
    """A grid of tokens flattened in row-major order: `ad.grid(t=8, y=16, x=16)`, the last axis being the fastest.

    A variant that asks for coordinates of `kv_idx` wants exactly `length` keys, one that asks for those of `q_idx`
    queries whose positions (the offset of the call included) are on the grid; other calls are refused. Of any other
    index, `g(kv_idx - text_len)`, nothing is required.

    `tile=(4, 8, 8)`, divisors of the sizes: kernels keep the tokens tile by tile, so that a block of queries or keys is
    a box of the grid and more blocks are empty or full. Positions mean what they did; a call copies q, k, v and the
    output once each, and must be over all the tokens of the grid.
    """
    problem = problem_of(tuple(sizes), tuple(sizes.values()))
    if problem is not None:
        raise fail(ProgramError, "grid-size", problem, help="write `ad.grid(t=8, y=16, x=16)`")
    return Grid(Layout(tuple(sizes), tuple(sizes.values()), None if tile is None else _tile(tile, sizes)))


def require(condition: Any, message: str) -> None:
    """Inside a mod: refuse, with this message, every call in which the condition does not hold.

    The condition may read runtime scalars, `q_len`, `kv_len` and, for what every query must keep, `q_idx`. On plain
    values it is checked at once.
    """
    if isinstance(condition, Symbol):
        condition.recorder.require(condition, message)
        return
    holds = bool(condition.all()) if isinstance(condition, torch.Tensor) else bool(condition)
    if not holds:
        raise fail(ProgramError, "requirement", message)


def _tile(tile: Any, sizes: dict[str, int]) -> tuple[int, ...]:
    reporter = Reporter()
    sides = tuple(tile) if isinstance(tile, tuple | list) else ()
    problems = problems_of_tile(tuple(sizes), tuple(sizes.values()), sides)
    if not isinstance(tile, tuple | list):
        problems = [f"`tile` is {tile!r}, expected one size for each axis"]
    for problem in problems:
        help_ = "write `ad.grid(y=64, x=64, tile=(8, 8))`, each size of a tile dividing its axis"
        reporter.error("grid-tile", problem, help=help_)
    reporter.check()
    return sides


def _along(layout: Layout, axis: str, index: Any) -> Any:
    if isinstance(index, Symbol) and not axis.startswith("__"):
        return index.recorder.coordinate(layout, axis, index)
    if axis not in layout.axes:
        raise AttributeError(f"`{layout}` has no axis `{axis}`")
    divisor, modulus = layout.step(axis)
    value = index // divisor if divisor != 1 else index
    return value if modulus is None else value % modulus

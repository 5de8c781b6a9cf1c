"""Tiles of a term that bounds nothing: large tiles first, and only those that ranges leave open are cut into smaller.

In: a boolean, conjuncts to take as true, where tiles are wanted at all, a `Tiling`. Out: the tiles on which the boolean
can be true and those on which it cannot be false. Work follows the boundary between the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from attndsl.analysis import runs
from attndsl.analysis.intervals import Box, Evaluation, Known
from attndsl.analysis.runs import Intervals, Runs
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Truth
from attndsl.ir.nodes import Expr

FACTOR = 4
"""Large tiles are cut into this many along each axis."""
AT_FIRST = 2**12
"""Large tiles to begin with, at most."""
TILES_AT_ONCE = 2**15
MAX_OPEN = 2**21
"""Tiles that may be looked at of one size: where cutting would make more, all of a large tile counts as open."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The tiles on which a boolean can be true, and those of them on which it cannot be false."""

    possible: Runs
    certain: Runs


@dataclass(frozen=True, slots=True, eq=False)
class _Squares:
    """Squares of `size` x `size` tiles; `row` and `column` count squares, `pair` counts (batch, head)."""

    size: int
    pair: Array
    row: Array
    column: Array

    def where(self, chosen: Array) -> _Squares:
        return _Squares(self.size, self.pair[chosen], self.row[chosen], self.column[chosen])

    def cut(self) -> _Squares:
        """The smaller squares inside; some may lie beyond the lengths."""
        step = np.arange(FACTOR**2)
        row = self.row[:, None] * FACTOR + step // FACTOR
        column = self.column[:, None] * FACTOR + step % FACTOR
        return _Squares(self.size // FACTOR, np.repeat(self.pair, FACTOR**2), row.ravel(), column.ravel())


def explore(term: Expr, assume: tuple[Expr, ...], wanted: tuple[Array, Array], tiling: Tiling, known: Known) -> Found:
    """What the tiles are; `wanted` holds the first and last column of each tile row, counted through [B', H', Tq]."""
    squares = _largest(tiling)
    evaluation = Evaluation((term,), _box(squares, tiling), known, assume)
    certain: list[Intervals] = []
    while True:
        squares = squares.where(_meet(squares, *_hull(wanted, squares.size, tiling), tiling))
        can_be_true, can_be_false = _looked_at(term, evaluation, squares, tiling)
        certain.append(_stretches(squares.where(can_be_true & ~can_be_false), tiling))
        squares = squares.where(can_be_true & can_be_false)
        if squares.size == 1 or len(squares.row) * FACTOR**2 > MAX_OPEN:
            break
        squares = squares.cut()
    open_ = _stretches(squares, tiling)
    possible, sure = (runs.union(runs.joined(some), tiling.kv_tiles) for some in ([open_, *certain], certain))
    return Found(possible, sure)


def _largest(tiling: Tiling) -> _Squares:
    size = 1
    while _count(tiling, size) > AT_FIRST and size < max(tiling.q_tiles, tiling.kv_tiles):
        size *= FACTOR
    shape = (tiling.batch * tiling.heads, -(-tiling.q_tiles // size), -(-tiling.kv_tiles // size))
    return _Squares(size, *(place.ravel() for place in np.indices(shape)))


def _count(tiling: Tiling, size: int) -> int:
    return tiling.batch * tiling.heads * -(-tiling.q_tiles // size) * -(-tiling.kv_tiles // size)


def _hull(wanted: tuple[Array, Array], size: int, tiling: Tiling) -> tuple[Array, Array]:
    """The first and last column, in squares, of each row of squares: [pairs, rows]."""
    pairs = tiling.batch * tiling.heads
    starts = np.arange(0, tiling.q_tiles, size)
    first, last = (end.reshape(pairs, tiling.q_tiles) for end in wanted)
    return np.minimum.reduceat(first, starts, axis=1) // size, np.maximum.reduceat(last, starts, axis=1) // size


def _meet(squares: _Squares, first: Array, last: Array, tiling: Tiling) -> Array:
    """Squares that may hold a wanted tile."""
    inside = (squares.row < first.shape[1]) & (squares.column * squares.size < tiling.kv_tiles)
    row = np.minimum(squares.row, first.shape[1] - 1)
    near = (squares.column >= first[squares.pair, row]) & (squares.column <= last[squares.pair, row])
    return np.asarray(inside & near)


def _looked_at(term: Expr, evaluation: Evaluation, squares: _Squares, tiling: Tiling) -> tuple[Array, Array]:
    """Whether the term can be true, and whether it can be false, on each square."""
    count = len(squares.row)
    can = np.empty((2, count), bool)
    for start in range(0, count, TILES_AT_ONCE):
        part = slice(start, min(start + TILES_AT_ONCE, count))
        truth = evaluation.of(_box(squares.where(np.arange(part.start, part.stop)), tiling))[term]
        assert isinstance(truth, Truth)
        can[0, part], can[1, part] = truth.can_be_true.reshape(-1), truth.can_be_false.reshape(-1)
    return can[0], can[1]


def _box(squares: _Squares, tiling: Tiling) -> Box:
    """The squares clipped to the lengths."""
    height, width = (squares.size * size for size in tiling.block)
    pair, row, column = (place.reshape(1, 1, 1, -1) for place in (squares.pair, squares.row, squares.column))
    batch, head = pair // tiling.heads, pair % tiling.heads
    return tiling.boxes(batch, head, *replace(tiling, block=(height, width)).sides(batch, row, column))


def _stretches(squares: _Squares, tiling: Tiling) -> Intervals:
    """The tiles of squares as runs of tile rows."""
    row = squares.row[:, None] * squares.size + np.arange(squares.size)
    inside = row < tiling.q_tiles
    first = np.broadcast_to(squares.column[:, None] * squares.size, row.shape)
    last = np.minimum(first + squares.size, tiling.kv_tiles) - 1
    number = squares.pair[:, None] * tiling.q_tiles + row
    return Intervals(number[inside], first[inside], last[inside])

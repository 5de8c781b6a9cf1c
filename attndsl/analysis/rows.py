"""Closed forms on tiles: from the key interval of every query to what is empty, partial and full, in O(queries).

In: a `KeyRange` and a `Tiling`. Out: `RowRuns`: for each tile of queries the runs of key tiles some query needs (union
over its rows) and the one run all of its queries cover (intersection). No matrix of tiles is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from attndsl.analysis.bounds import KeyRange
from attndsl.analysis.intervals import Known, evaluate
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Interval, Truth

ROWS_AT_ONCE = 2**16
"""Queries evaluated together: enough to drown the overhead, few enough to stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class RowRuns:
    """Runs of key tiles for tile rows, which count through [B', H', Tq] in order; ends are included.

    Run i says that row `row[i]` needs tiles `first[i]` to `last[i]`. `full_first` and `full_last`, one per tile row,
    say which of these lie inside every query's bounds; `exact` whether bounds are numbers, and not ranges of numbers.
    """

    rows: int
    row: Array
    first: Array
    last: Array
    full_first: Array
    full_last: Array
    exact: bool

    def needed(self, columns: int) -> Array:
        """Bool [rows, columns]: tiles some query needs."""
        edges = np.zeros((self.rows, columns + 1), np.int32)
        np.add.at(edges, (self.row, self.first), 1)
        np.add.at(edges, (self.row, self.last + 1), -1)
        return np.asarray(np.cumsum(edges[:, :-1], axis=1) > 0)

    def covered(self, columns: int) -> Array:
        """Bool [rows, columns]: tiles inside the bounds of all of their queries."""
        column = np.arange(columns)
        return np.asarray((column >= self.full_first[:, None]) & (column <= self.full_last[:, None]))


def row_runs(bounds: KeyRange, tiling: Tiling, known: Known) -> Iterator[tuple[slice, RowRuns]]:
    """The runs of stretches of tile rows, in order."""
    for rows in stretches(tiling):
        yield rows, _runs(bounds, tiling, known, rows)


def stretches(tiling: Tiling) -> Iterator[slice]:
    """Tile rows a bounded number of queries at a time."""
    step = max(1, ROWS_AT_ONCE // tiling.block[0] // max(1, tiling.batch * tiling.heads))
    for start in range(0, tiling.q_tiles, step):
        yield slice(start, min(start + step, tiling.q_tiles))


def _runs(bounds: KeyRange, tiling: Tiling, known: Known, rows: slice) -> RowRuns:
    size, keys = tiling.block
    outer, inner = key_intervals(bounds, tiling, known, rows.start * size, min(rows.stop * size, tiling.q_len))
    exact = outer.lo is inner.lo and outer.hi is inner.hi
    alive = outer.lo <= outer.hi
    first = _by_tile(np.where(alive, outer.lo // keys, tiling.kv_tiles), size)
    last = _by_tile(np.where(alive, outer.hi // keys, -1), size)
    # A tile is covered when its first key is not below the bound and its last, clipped to the length, not above.
    full_first = _by_tile(-(-inner.lo // keys), size).max(axis=1)
    full_last = _by_tile(
        np.where(inner.hi == tiling.kv_len - 1, tiling.kv_tiles, (inner.hi + 1) // keys) - 1, size
    ).min(axis=1)
    row, starts, ends = _merged(first, last)
    return RowRuns(len(first), row, starts, ends, full_first, full_last, exact)


def key_intervals(bounds: KeyRange, tiling: Tiling, known: Known, start: int, stop: int) -> tuple[Interval, Interval]:
    """Per query the keys that may be live and those that certainly are; one object twice where they are the same."""
    values = evaluate((*bounds.lower, *bounds.upper, *bounds.gates), tiling.rows(start, stop), known)
    shape = (tiling.batch, tiling.heads, stop - start)
    lowest, highest = np.zeros((1, 1, 1), np.int64), np.full((1, 1, 1), tiling.kv_len - 1)
    outer_lo = inner_lo = lowest
    outer_hi = inner_hi = highest
    for bound in bounds.lower:
        lo, hi = _ends(values[bound])
        shared = lo is hi and outer_lo is inner_lo
        outer_lo = np.maximum(outer_lo, lo)
        inner_lo = outer_lo if shared else np.maximum(inner_lo, hi)
    for bound in bounds.upper:
        lo, hi = _ends(values[bound])
        shared = lo is hi and outer_hi is inner_hi
        outer_hi = np.minimum(outer_hi, hi)
        inner_hi = outer_hi if shared else np.minimum(inner_hi, lo)
    for gate in bounds.gates:
        truth = values[gate]
        assert isinstance(truth, Truth)
        open_, closed = truth.can_be_true[..., 0], truth.can_be_false[..., 0]
        shared = outer_hi is inner_hi and not (open_ & closed).any()
        outer_hi = np.where(open_, outer_hi, -1)
        inner_hi = outer_hi if shared else np.where(closed, -1, inner_hi)
    ends = {id(end): np.broadcast_to(end, shape) for end in (outer_lo, outer_hi, inner_lo, inner_hi)}
    return (
        Interval(ends[id(outer_lo)], ends[id(outer_hi)]),
        Interval(ends[id(inner_lo)], ends[id(inner_hi)]),
    )


def _ends(value: object) -> tuple[Array, Array]:
    """The ends of a bound per query, in int64: what lies beyond the keys is clipped to just beyond."""
    assert isinstance(value, Interval)
    lo = _clipped(value.lo)
    return lo, lo if value.is_point else _clipped(value.hi)


def _clipped(end: Array) -> Array:
    return np.asarray(np.minimum(np.maximum(end[..., 0], -(2**40)), 2**40), np.int64)


def _by_tile(values: Array, size: int) -> Array:
    """[B', H', rows] as [tile rows, size]; a short last tile repeats its last query, which changes no extreme."""
    missing = -values.shape[2] % size
    if missing:
        values = np.concatenate([values, np.repeat(values[:, :, -1:], missing, axis=2)], axis=2)
    return values.reshape(-1, size)


def _merged(first: Array, last: Array) -> tuple[Array, Array, Array]:
    """The union of the intervals of each row as disjoint ascending runs: (row, first, last) of each."""
    if (first[:, 1:] < first[:, :-1]).any():
        pairs = np.sort((first << 32) | (last + 1), axis=1)
        first, last = pairs >> 32, (pairs & (2**32 - 1)) - 1
    reach = np.maximum.accumulate(last, axis=1)
    before = np.concatenate([np.full((len(first), 1), -2), reach[:, :-1]], axis=1)
    # Intervals sorted by their first tile; an empty one has last = -1 and opens no run.
    opens = (first > before + 1) & (last >= first)
    row, at = np.nonzero(opens)
    following = np.append(at[1:], 0)
    same_row = np.append(row[1:], -1) == row
    return row, first[row, at], reach[row, np.where(same_row, following - 1, first.shape[1] - 1)]

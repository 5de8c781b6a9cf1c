"""Key ranges on tiles: which tiles some query of a tile row needs and which all of its queries see, in O(tile rows).

In: the `Source`s of ranges, of which a live pair is in at least one, and a `Tiling`. Out: `TileRuns` of stretches of
tile rows.

A tile row is cut into bands: stretches of queries on which every bound moves one way, so that its extremes are those of
the first and the last query. A band whose queries all share a key (or see none) needs the keys from the least lower
bound to the greatest upper one, and nothing in between is missing; one of which that is not known is halved, down to
single queries, on which bounds are numbers. Several ranges may cover a tile only together, each query by another
range: what all queries of a band see is compared with what its first and its last see, and where the two differ the
band is halved too. No matrix of tiles is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from attndsl.analysis import runs
from attndsl.analysis.ends import Ends, Source
from attndsl.analysis.runs import Intervals, Runs
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array

ROWS_AT_ONCE = 2**14
QUERIES_AT_ONCE = 2**16
"""Bands evaluated together: enough to drown the overhead, few enough to stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class TileRuns:
    """Tiles of the stretch `rows` of tile rows, which count through [B', H', Tq]: `covered` is a part of `needed`.

    `exact`: needed tiles have a live pair, and those not covered a dead one.
    """

    rows: slice
    needed: Runs
    covered: Runs
    exact: bool


@dataclass(frozen=True, slots=True, eq=False)
class Bands:
    """Stretches of queries, which count through [B', H', Nq], with the key ranges of the first and the last of each."""

    first: Array
    last: Array
    ends: tuple[Ends, ...]

    def where(self, chosen: Array) -> Bands:
        return Bands(self.first[chosen], self.last[chosen], tuple(ends.where(chosen) for ends in self.ends))

    def halves(self) -> tuple[Array, Array]:
        middle = (self.first + self.last) // 2
        return np.concatenate([self.first, middle + 1]), np.concatenate([middle, self.last])

    @property
    def is_open(self) -> Array:
        """Bands between whose ends the keys of a range may leave gaps."""
        several = self.first < self.last
        return np.asarray(several & ~np.logical_and.reduce([ends.leave_no_gap for ends in self.ends]))


def _joined(left: Bands, right: Bands) -> Bands:
    ends = tuple(one.joined(other) for one, other in zip(left.ends, right.ends, strict=True))
    return Bands(np.concatenate([left.first, right.first]), np.concatenate([left.last, right.last]), ends)


def tile_runs(sources: Sequence[Source], tiling: Tiling) -> Iterator[TileRuns]:
    """The tiles of every tile row, by the union of ranges. A range with a residue covers nothing."""
    is_steady = all(source.moves_one_way for source in sources)
    cuts = _distinct(np.concatenate([source.cuts() for source in sources])) if is_steady else None
    rows = tiling.batch * tiling.heads * tiling.q_tiles
    step = ROWS_AT_ONCE if is_steady else max(1, QUERIES_AT_ONCE // tiling.block[0])
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield _of_bands(part, _settled(sources, *_cut(part, cuts, tiling)), sources, tiling)


def _cut(rows: slice, cuts: Array | None, tiling: Tiling) -> tuple[Array, Array]:
    """The first and the last query of every band of some tile rows; single queries where nothing says where to cut."""
    number = np.arange(rows.start, rows.stop + 1)
    starts = number // tiling.q_tiles * tiling.q_len + number % tiling.q_tiles * tiling.block[0]
    if cuts is None:
        single = np.arange(starts[0], starts[-1])
        return single, single
    inside = cuts[np.searchsorted(cuts, starts[0]) : np.searchsorted(cuts, starts[-1])]
    first = _distinct(np.concatenate([starts[:-1], inside])) if len(inside) else starts[:-1]
    return first, np.append(first[1:], starts[-1]) - 1


def _distinct(numbers: Array) -> Array:
    """In ascending order, each once."""
    ordered = np.sort(numbers)
    return np.asarray(ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]])


def _settled(sources: Sequence[Source], first: Array, last: Array) -> Bands:
    """Bands of which none is open."""
    bands = _evaluated(sources, first, last)
    while (is_open := bands.is_open).any():
        bands = _joined(bands.where(~is_open), _evaluated(sources, *bands.where(is_open).halves()))
    return bands


def _evaluated(sources: Sequence[Source], first: Array, last: Array) -> Bands:
    return Bands(first, last, tuple(source.ends(first, last) for source in sources))


def _of_bands(rows: slice, bands: Bands, sources: Sequence[Source], tiling: Tiling) -> TileRuns:
    while True:
        row = _tile_row(bands.first, tiling)
        covered = _covered(row, rows, [ends.seen_by_all for ends in bands.ends], tiling)
        if len(sources) == 1:
            break
        at_most = _covered(np.tile(row, 2), rows, [ends.seen_at_ends for ends in bands.ends], tiling)
        count = rows.stop - rows.start
        doubtful = np.flatnonzero(_shift(covered, rows).per_row(count) != _shift(at_most, rows).per_row(count))
        is_open = np.isin(row, doubtful + rows.start) & (bands.first < bands.last)
        if not is_open.any():
            break
        bands = _joined(bands.where(~is_open), _settled(sources, *bands.where(is_open).halves()))
    needed = _needed(row, [ends.seen_by_some for ends in bands.ends], tiling)
    exact = all(ends.are_numbers for ends in bands.ends)
    return TileRuns(rows, needed, covered, exact)


def _tile_row(query: Array, tiling: Tiling) -> Array:
    return np.asarray(query // tiling.q_len * tiling.q_tiles + query % tiling.q_len // tiling.block[0])


def _shift(found: Runs, rows: slice) -> Runs:
    return Runs(found.row - rows.start, found.first, found.last)


def _needed(row: Array, intervals: Sequence[tuple[Array, Array]], tiling: Tiling) -> Runs:
    """Tiles that meet an interval of keys; an interval with lo > hi is empty."""
    keys, columns = tiling.block[1], tiling.kv_tiles
    first = np.concatenate([lo // keys for lo, _ in intervals])
    last = np.concatenate([np.where(lo <= hi, hi // keys, -1) for lo, hi in intervals])
    return runs.union(Intervals(np.tile(row, len(intervals)), first, last), columns)


def _covered(row: Array, rows: slice, intervals: Sequence[tuple[Array, Array]], tiling: Tiling) -> Runs:
    """Tiles of which every stretch of queries sees every key, by the union of its intervals; `row` is that of each."""
    keys, columns = tiling.block[1], tiling.kv_tiles
    if len(intervals) == 1:
        owner, (lo, hi) = row, intervals[0]
    else:
        found = runs.joined(Intervals(np.arange(len(row)), lo, hi) for lo, hi in intervals)
        merged = runs.union(found, tiling.kv_len)
        owner, lo, hi = row[merged.row], merged.first, merged.last
    # A last tile is whole where the keys end.
    last = np.where(lo <= hi, np.where(hi == tiling.kv_len - 1, columns, (hi + 1) // keys) - 1, -1)
    inside = Intervals(owner - rows.start, -(-lo // keys), last)
    stretches = np.bincount(row - rows.start, minlength=rows.stop - rows.start)
    whole = runs.union(inside, columns) if stretches.max() == 1 else runs.overlaps(inside, stretches, columns)
    return Runs(whole.row + rows.start, whole.first, whole.last)

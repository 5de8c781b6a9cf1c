"""Sets of tiles as runs of tile columns: what stands for a matrix of tiles too large to write down.

In: intervals of columns, each of some row. Out: `Runs`, and counts of how many intervals overlap. Work and memory grow
with the number of intervals, whatever the numbers of rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from attndsl.analysis.values import Array


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Columns `first[i]` to `last[i]`, both included, of row `row[i]`, in any order; first > last is empty."""

    row: Array
    first: Array
    last: Array

    @property
    def used(self) -> Intervals:
        """Those that are not empty."""
        some = self.first <= self.last
        return self if some.all() else Intervals(self.row[some], self.first[some], self.last[some])


@dataclass(frozen=True, slots=True, eq=False)
class Runs(Intervals):
    """The same in ascending order, none empty and none touching another."""

    @property
    def count(self) -> int:
        """How many places of the matrix are in the set."""
        return int((self.last - self.first + 1).sum())

    def per_row(self, rows: int) -> Array:
        """The same for each of `rows` rows."""
        counts = np.zeros(rows, np.int64)
        np.add.at(counts, self.row, self.last - self.first + 1)
        return counts

    def hull(self, rows: int) -> tuple[Array, Array]:
        """The first and the last column of each row; an empty row has first > last."""
        first, last = np.full(rows, 2**62), np.full(rows, -1)
        np.minimum.at(first, self.row, self.first)
        np.maximum.at(last, self.row, self.last)
        return first, last

    def matrix(self, rows: slice, columns: int) -> Array:
        """Bool [rows, columns] of a stretch of rows, which must hold all of the runs."""
        edges = np.zeros((rows.stop - rows.start, columns + 1), np.int8)
        edges[self.row - rows.start, self.first] = 1
        edges[self.row - rows.start, self.last + 1] = -1
        return np.cumsum(edges[:, :-1], axis=1, dtype=np.int8).view(bool)

    def places(self) -> tuple[Array, Array]:
        """Row and column of every place in the set."""
        lengths = self.last - self.first + 1
        start = np.cumsum(lengths) - lengths
        row = np.repeat(self.row, lengths)
        return row, np.arange(len(row)) - np.repeat(start - self.first, lengths)


def joined(parts: Iterable[Intervals]) -> Intervals:
    """All of the intervals of several."""
    ends = zip(*((part.row, part.first, part.last) for part in parts), strict=True)
    row, first, last = map(np.concatenate, ends)
    return Intervals(row, first, last)


def union(intervals: Intervals, columns: int) -> Runs:
    """The places in any of the intervals."""
    some, width = intervals.used, columns + 1
    start, end = some.row * width + some.first, some.row * width + some.last + 1
    if (start[1:] < start[:-1]).any():
        order = np.argsort(start, kind="stable")
        start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    apart = start[1:] > reach[:-1]
    if not apart.all():
        start, end = start[_led(apart)], reach[_trailed(apart)]
    return _runs(start, end, width)


def overlaps(intervals: Intervals, wanted: int | Array, columns: int) -> Runs:
    """The places in at least `wanted` of the intervals; an array says how many by row."""
    some, width = intervals.used, columns + 1
    place = np.concatenate([some.row * width + some.first, some.row * width + some.last + 1])
    step = np.ones(len(place), np.int32)
    step[len(some.row) :] = -1
    order = np.argsort(place, kind="stable")
    place, depth = place[order], np.cumsum(step[order])
    # What several ends at one place come to counts once all of them did; every row closes what it opened.
    final = _trailed(place[1:] != place[:-1])[: len(place)]
    place, depth = place[final], depth[final]
    inside = depth >= (wanted if isinstance(wanted, int) else wanted[place // width])
    turns = place[_led(inside[1:] != inside[:-1], bool(inside[:1].any()))[: len(inside)]]
    start, end = turns[0::2], turns[1::2]
    return _runs(start, end, width)


def _led(flags: Array, first: bool = True) -> Array:
    """The flags after one more."""
    found = np.empty(len(flags) + 1, bool)
    found[0], found[1:] = first, flags
    return found


def _trailed(flags: Array) -> Array:
    """The flags before one more, which is true."""
    found = np.empty(len(flags) + 1, bool)
    found[:-1], found[-1] = flags, True
    return found


def _runs(start: Array, end: Array, width: int) -> Runs:
    """Runs from places that count through rows of `width`; no run goes on into the next row."""
    row = start // width
    first = start - row * width
    return Runs(row, first, first + (end - start) - 1)


def intersection(left: Runs, right: Runs, columns: int) -> Runs:
    """The places in both sets."""
    return overlaps(joined((left, right)), 2, columns)


def difference(left: Runs, right: Runs, columns: int) -> Runs:
    """The places of `left` that are not in `right`, which is a part of it."""
    width = columns + 1
    ends = [(some.row * width + some.first, some.row * width + some.last + 1) for some in (left, right)]
    # Sorted, the ends of a run and those of its holes enclose by twos what is outside of the holes.
    place = np.sort(np.concatenate([end for pair in ends for end in pair]))
    start, end = place[0::2], place[1::2]
    some = start < end
    return _runs(start[some], end[some], width)

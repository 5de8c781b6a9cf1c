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
    some = intervals.used
    if (some.row[1:] > some.row[:-1]).all():
        return Runs(some.row, some.first, some.last)
    return overlaps(some, 1, columns)


def overlaps(intervals: Intervals, wanted: int | Array, columns: int) -> Runs:
    """The places in at least `wanted` of the intervals; an array says how many by row."""
    some, width = intervals.used, columns + 1
    place = np.concatenate([some.row * width + some.first, some.row * width + some.last + 1])
    step = np.ones(len(place), np.int32)
    step[len(some.row) :] = -1
    order = np.argsort(place, kind="stable")
    place, depth = place[order], np.cumsum(step[order])
    # What several ends at one place come to counts once all of them did; every row closes what it opened.
    final = np.append(place[1:] != place[:-1], True)[: len(place)]
    place, depth = place[final], depth[final]
    inside = depth >= (wanted if isinstance(wanted, int) else wanted[place // width])
    before = np.append(False, inside[:-1])[: len(inside)]
    start, end = place[inside & ~before], place[before & ~inside]
    return Runs(start // width, start % width, end % width - 1)


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
    start, end = start[start < end], end[start < end]
    return Runs(start // width, start % width, start % width + end - start - 1)

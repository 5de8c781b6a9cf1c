"""Tiles as runs against the same tiles as matrices; extremes, order and changes of tensors against their elements."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attndsl.analysis import runs
from attndsl.analysis.runs import Intervals, Runs
from attndsl.analysis.summaries import ArraySummary
from attndsl.analysis.values import Array, Interval

ROWS, COLUMNS = 4, 9
ONE = st.tuples(st.integers(0, ROWS - 1), st.integers(0, COLUMNS - 1), st.integers(-1, 5))
SOME = st.lists(ONE, max_size=14)


def intervals(some: list[tuple[int, int, int]]) -> Intervals:
    row, first, length = np.array(some, np.int64).reshape(-1, 3).T
    return Intervals(row, first, np.minimum(first + length, COLUMNS - 1))


def depth(found: Intervals) -> Array:
    """How many of the intervals each place is in."""
    counts = np.zeros((ROWS, COLUMNS), np.int64)
    for row, first, last in zip(found.row, found.first, found.last, strict=True):
        counts[row, first : last + 1] += 1
    return counts


def check(found: Runs, expected: Array) -> None:
    """The set, told in every way; the runs ascend and none touches another."""
    assert (found.matrix(slice(0, ROWS), COLUMNS) == expected).all()
    places = np.zeros((ROWS, COLUMNS), bool)
    places[found.places()] = True
    assert (places == expected).all()
    assert found.count == expected.sum()
    assert (found.per_row(ROWS) == expected.sum(axis=1)).all()
    first, last = found.hull(ROWS)
    for row in range(ROWS):
        at = np.flatnonzero(expected[row])
        assert (first[row], last[row]) == (at[0], at[-1]) if at.size else first[row] > last[row]
    where = found.row * (COLUMNS + 1)
    assert (where[1:] + found.first[1:] > where[:-1] + found.last[:-1] + 1).all()


@given(SOME, st.lists(st.integers(1, 4), min_size=ROWS, max_size=ROWS))
@settings(max_examples=300, deadline=None)
def test_overlaps_are_counted(some: list[tuple[int, int, int]], wanted: list[int]) -> None:
    found = intervals(some)
    counts = depth(found)
    check(runs.union(found, COLUMNS), counts >= 1)
    check(runs.overlaps(found, 2, COLUMNS), counts >= 2)
    check(runs.overlaps(found, np.array(wanted), COLUMNS), counts >= np.array(wanted)[:, None])


@given(SOME, SOME)
@settings(max_examples=300, deadline=None)
def test_sets_meet_join_and_leave(left: list[tuple[int, int, int]], right: list[tuple[int, int, int]]) -> None:
    one, other = (runs.union(intervals(some), COLUMNS) for some in (left, right))
    in_one, in_other = depth(one) > 0, depth(other) > 0
    both = runs.intersection(one, other, COLUMNS)
    check(both, in_one & in_other)
    check(runs.union(runs.joined((one, other)), COLUMNS), in_one | in_other)
    check(runs.difference(one, both, COLUMNS), in_one & ~in_other)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_the_extremes_of_whole_stretches_are_those_of_their_elements(data: st.DataObject) -> None:
    size, rows = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 3))
    step = data.draw(st.sampled_from((8, 16, 24, 64)))
    array = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-50, 50, (rows, size)).astype(np.int32)
    cells = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), min_size=2, max_size=5))
    lo = np.array([min(first * step, size - 1) for first, _ in cells])
    hi = np.array([min((first + more + 1) * step, size) - 1 for first, more in cells])
    lo = np.minimum(lo, hi) // step * step
    row = np.array([[data.draw(st.integers(0, rows - 1))]])
    summary = ArraySummary(array)
    found = summary.range((Interval(row, row), Interval(lo, hi)))
    expected = [array[row.item(), first : last + 1] for first, last in zip(lo, hi, strict=True)]
    assert np.broadcast_to(found.lo, (1, len(cells)))[0].tolist() == [part.min() for part in expected]
    assert np.broadcast_to(found.hi, (1, len(cells)))[0].tolist() == [part.max() for part in expected]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=3), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_order_and_changes_of_rows(rows: list[list[int]], length: int) -> None:
    summary = ArraySummary(np.array(rows, np.int32))
    row, element = summary.changes()
    changed = [(r, e) for r, line in enumerate(rows) for e in range(1, 5) if line[e] != line[e - 1]]
    assert list(zip(row.tolist(), element.tolist(), strict=True)) == changed
    parts = [line[:length] for line in rows]
    rises, falls = all(part == sorted(part) for part in parts), all(part == sorted(part)[::-1] for part in parts)
    order = summary.order(length)
    assert (order is not None) == (rises or falls)
    if order is not None:
        assert order.falls == (not rises)
        for part, (elements, starts) in zip(parts, order.rows, strict=True):
            ascending = [~n if order.falls else n for n in part]
            assert np.repeat(elements, np.diff(starts)).tolist() == ascending
            assert elements.tolist() == sorted(set(ascending))

"""The smallest and largest element of a captured tensor over a box of indices, and whether its rows are in order.

In: an integer or bool tensor as a numpy array. Out: `Summary.range`, which interval analysis asks once per load for all
tiles together. Answers are exact on boxes, and cheap per tile: boxes that start and end at multiples of some size ask
the extremes of stretches of that size; and an array of minima over windows of 2^j elements answers every box whose
sides are 2^j to 2^(j+1) - 1 long by the windows at its ends. All of these are made when first wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Protocol

import numpy as np

from attndsl.analysis.values import Array, Interval

MAX_WINDOWED = 2**28
"""Bytes of a tensor beyond which no windowed arrays are made: the range of the whole tensor stands for every box."""

MAX_SHAPES = 16
"""Distinct window shapes one question may need; more, and the box around all tiles stands for each."""

MAX_STRETCH = 2**12
"""The longest stretch of the last axis whose extremes are kept."""
MIN_STRETCH = 8
"""Shorter ones save nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The rows of a tensor, none of which ever falls, or if `falls` none of which ever rises.

    For each row its distinct elements in int64, in ascending order, and where each starts, with the length at the end;
    of rows that fall the complements `~x` of the elements, which rise.
    """

    rows: tuple[tuple[Array, Array], ...]
    falls: bool


class Summary(Protocol):
    """What interval analysis knows of a captured tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def range(self, indices: tuple[Interval, ...]) -> Interval:
        """The elements the indices can reach. Indices out of bounds reach nothing."""
        ...

    def order(self, length: int) -> Order | None:
        """The first `length` elements of every row along the last axis, if all rows rise, or all fall."""
        ...

    def changes(self) -> tuple[Array, Array]:
        """The elements that differ from the one before them: which row along the last axis, which element."""
        ...


class ArraySummary:
    """The summary of an array at hand; keep it as long as the array keeps its values."""

    def __init__(self, array: Array) -> None:
        self._array = array.view(np.uint8) if array.dtype == bool else array
        self._windows: dict[tuple[int, ...], tuple[Array, Array]] = {}
        self._whole: tuple[int, int] | None = None
        self._stretches: dict[int, tuple[ArraySummary, ArraySummary]] = {}
        self._orders: dict[int, Order | None] = {}
        self._changes: tuple[Array, Array] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    def order(self, length: int) -> Order | None:
        length = min(length, self.shape[-1])
        if length not in self._orders:
            self._orders[length] = _order(self._rows(), *self.changes(), length) if length else None
        return self._orders[length]

    def changes(self) -> tuple[Array, Array]:
        if self._changes is None:
            rows = self._rows()
            differ = rows[:, 1:] != rows[:, :-1]
            # In one row of places: numpy finds those faster.
            row, element = np.divmod(np.flatnonzero(differ), max(1, differ.shape[1]))
            self._changes = row, element + 1
        return self._changes

    def _rows(self) -> Array:
        return self._array.reshape(-1, self.shape[-1])

    def range(self, indices: tuple[Interval, ...]) -> Interval:
        if self._array.size == 0:
            return _filled(0, 0)
        if all(index.lo.size == index.hi.size == 1 for index in indices):
            return _filled(*self._around([index.extremes for index in indices]))
        ends = [self._clipped(index, size) for index, size in zip(indices, self.shape, strict=True)]
        if all(lo is hi for lo, hi in ends):
            found = np.asarray(self._array[tuple(lo for lo, _ in ends)], np.int64).reshape(_rank4(ends))
            return Interval(found, found)
        stretch = _common_stretch(*ends[-1], self.shape[-1])
        if stretch >= MIN_STRETCH and self.shape[-1] > MIN_STRETCH:
            return self._by_stretches(ends, stretch)
        shapes = self._window_shapes(ends)
        if shapes is None:
            return _filled(*self._around([(int(lo.min()), int(hi.max())) for lo, hi in ends]))
        return self._by_windows(ends, shapes)

    def _clipped(self, index: Interval, size: int) -> tuple[Array, Array]:
        lo = np.minimum(np.maximum(index.lo, 0), size - 1).astype(np.int64)
        hi = lo if index.is_point else np.minimum(np.maximum(index.hi, 0), size - 1).astype(np.int64)
        return lo, hi

    def _by_stretches(self, ends: list[tuple[Array, Array]], stretch: int) -> Interval:
        """The extremes of boxes made of whole stretches of the last axis."""
        found = self._stretches.get(stretch)
        if found is None:
            starts = np.arange(0, self.shape[-1], stretch)
            extremes = (np.minimum, np.maximum)
            least, greatest = (ArraySummary(pick.reduceat(self._array, starts, axis=-1)) for pick in extremes)
            found = self._stretches[stretch] = least, greatest
        lo, hi = ends[-1]
        boxes = (*(Interval(first, last) for first, last in ends[:-1]), Interval(lo // stretch, hi // stretch))
        return Interval(found[0].range(boxes).lo, found[1].range(boxes).hi)

    def _window_shapes(self, ends: list[tuple[Array, Array]]) -> list[tuple[int, ...]] | None:
        """The windows needed, as powers of two per axis; `None` where they would cost too much."""
        levels = [np.unique(_level(hi - lo + 1)).tolist() for lo, hi in ends]
        shapes = list(product(*levels))
        affordable = len(shapes) <= MAX_SHAPES and self._array.nbytes <= MAX_WINDOWED
        return shapes if affordable else None

    def _by_windows(self, ends: list[tuple[Array, Array]], shapes: list[tuple[int, ...]]) -> Interval:
        lows, highs = zip(*(self._at(ends, shape) for shape in shapes), strict=True)
        if len(shapes) == 1:
            return Interval(lows[0].astype(np.int64), highs[0].astype(np.int64))
        matches = [
            reduce(np.logical_and, (_level(hi - lo + 1) == level for (lo, hi), level in zip(ends, shape, strict=True)))
            for shape in shapes
        ]
        return Interval(np.select(matches, lows).astype(np.int64), np.select(matches, highs).astype(np.int64))

    def _at(self, ends: list[tuple[Array, Array]], shape: tuple[int, ...]) -> tuple[Array, Array]:
        """The extremes of every box by the windows of one shape at its corners; rubbish for boxes of another shape."""
        least, greatest = self._windowed(shape)
        corners = [
            (lo,) if level == 0 else (lo, np.maximum(hi + 1 - (1 << level), 0))
            for (lo, hi), level in zip(ends, shape, strict=True)
        ]
        places = [
            tuple(np.minimum(at, size - 1) for at, size in zip(c, least.shape, strict=True)) for c in product(*corners)
        ]
        return reduce(np.minimum, (least[p] for p in places)), reduce(np.maximum, (greatest[p] for p in places))

    def _windowed(self, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Minima and maxima over all windows of 2^level elements along each axis."""
        found = self._windows.get(shape)
        if found is None:
            least = greatest = self._array
            for axis, level in enumerate(shape):
                for step in (1 << j for j in range(level)):
                    least, greatest = (
                        _slide(np.minimum, least, axis, step),
                        _slide(np.maximum, greatest, axis, step),
                    )
            # The steps between are not kept: tiles of one size ask for few shapes, and memory stays that of the tensor.
            found = self._windows[shape] = least, greatest
        return found

    def _around(self, ends: list[tuple[int, int]]) -> tuple[int, int]:
        """The extremes of one box, of which only what is in bounds is read, or if nothing is the nearest elements."""
        sizes = zip(ends, self.shape, strict=True)
        clipped = [(min(max(lo, 0), size - 1), min(max(hi, 0), size - 1)) for (lo, hi), size in sizes]
        part = self._array[tuple(slice(lo, hi + 1) for lo, hi in clipped)]
        if part.size == self._array.size:
            if self._whole is None:
                self._whole = (int(part.min()), int(part.max()))
            return self._whole
        return int(part.min()), int(part.max())


@dataclass(frozen=True, slots=True)
class UnreadFlags:
    """The summary of a bool tensor that nobody looks into: every element may be either."""

    shape: tuple[int, ...]

    def range(self, indices: tuple[Interval, ...]) -> Interval:
        return _filled(0, 1)

    def order(self, length: int) -> Order | None:
        return None

    def changes(self) -> tuple[Array, Array]:
        raise NotImplementedError("the flags were not read")


def _order(rows: Array, row: Array, element: Array, length: int) -> Order | None:
    row, element = row[element < length], element[element < length]
    rises = rows[row, element] > rows[row, element - 1]
    falls = bool(rises.size) and not rises.any()
    if not (falls or rises.all()):
        return None
    ends = np.searchsorted(row, np.arange(len(rows) + 1))
    found = []
    for number, elements in enumerate(rows):
        places = np.concatenate([[0], element[ends[number] : ends[number + 1]], [length]])
        values = elements[places[:-1]].astype(np.int64)
        found.append((~values if falls else values, places))
    return Order(tuple(found), falls)


def _common_stretch(lo: Array, hi: Array, size: int) -> int:
    """The largest power of two, within reason, at whose multiples all of the intervals start and end."""
    if lo is hi:
        return 1
    ends = np.where(hi == size - 1, 0, hi + 1)
    bits = int(np.bitwise_or.reduce(lo, axis=None)) | int(np.bitwise_or.reduce(ends, axis=None)) | MAX_STRETCH
    return bits & -bits


def _slide(least: np.ufunc, array: Array, axis: int, step: int) -> Array:
    """The extreme of each element and the one `step` further along the axis."""
    size = array.shape[axis]
    before = [slice(None)] * array.ndim
    after = [slice(None)] * array.ndim
    before[axis], after[axis] = slice(0, size - step), slice(step, size)
    return np.asarray(least(array[tuple(before)], array[tuple(after)]))


def _level(width: Array) -> Array:
    """The largest j with 2^j <= width."""
    return np.asarray(np.frexp(width.astype(np.float64))[1] - 1)


def _rank4(ends: list[tuple[Array, Array]]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(lo.shape for lo, _ in ends)) if ends else (1, 1, 1, 1)


def _filled(lo: int, hi: int) -> Interval:
    found = np.full((1, 1, 1, 1), lo, np.int64)
    return Interval(found, found if lo == hi else np.full((1, 1, 1, 1), hi, np.int64))

"""Where coordinates of flattened positions start over: rows and frames of a grid, cells of a dilated axis, windows.

In: a mask. Out: for `q_idx` and `kv_idx` the periods at which quotients step and remainders wrap, and the cuts they
make in a stretch of positions. Any cut is sound; these are the ones after which ranges are sharp.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from attndsl.analysis.values import Array
from attndsl.ir.nodes import Apply, Const, Coord, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Coordinate

MAX_PERIODS = 8
"""Of a coordinate, the longest ones: each may cut a stretch in two more places."""
MAX_CELLS = 8
"""Of a period that is cut at every start: stretches with more are cut at the first and the last alone."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """An expression that is `(p + shift) // step`, p being the coordinate or, with a cycle, `(it + phase) % cycle`.

    Where the expression is a remainder of that, p is what it is the remainder of: only starts matter here.
    """

    coordinate: Coordinate
    step: int = 1
    shift: int = 0
    cycle: int = 0
    phase: int = 0

    def period(self, length: int, every: bool = False) -> Period:
        """Something that starts over every `length` positions."""
        return Period(length, self.shift % length, self.cycle, self.phase, every)


@dataclass(frozen=True, slots=True)
class Period:
    """Starts are where `(p + shift) % length == 0`, p as in `Ramp`; `every` start is worth a cut, or only the ends."""

    length: int
    shift: int
    cycle: int
    phase: int
    every: bool

    def since_start(self, position: Array) -> Array:
        """How far a position is from the start before it, or at it."""
        place = (position + self.phase) % self.cycle if self.cycle else position
        return np.asarray((place + self.shift) % self.length)

    def is_regular(self, first: Array, last: Array) -> Array:
        """Whether starts are `length` apart on a stretch."""
        if not self.cycle:
            return np.full(first.shape, True)
        return np.asarray((first + self.phase) // self.cycle == (last + self.phase) // self.cycle)


def periods_of(mask: Expr) -> dict[Coordinate, tuple[Period, ...]]:
    """The periods of the coordinates in a mask, the longest first.

    Rows `y` of which a mask reads both `y // 3` and `y % 3` (a dilated axis) are told apart one by one: over several of
    them ranges would take every quotient with every remainder.
    """
    found: dict[Coordinate, dict[Period, None]] = {}
    ramps: dict[Expr, Ramp] = {}
    divided: set[tuple[Op, Expr, int]] = set()
    for node in postorder(mask):
        ramp = _ramp(node, ramps)
        if ramp is None:
            continue
        ramps[node] = ramp
        match node:
            case Apply(op=Op.FLOORDIV | Op.MOD as op, args=(operand, Const(value=number))):
                inner, divisor = ramps[operand], int(number)
                here = found.setdefault(ramp.coordinate, {})
                here[inner.period(inner.step * divisor)] = None
                divided.add((op, operand, divisor))
                if inner.step > 1 and {(one, operand, divisor) for one in (Op.FLOORDIV, Op.MOD)} <= divided:
                    here[inner.period(inner.step, every=True)] = None
    return {coordinate: _longest(periods) for coordinate, periods in found.items()}


def _longest(found: Iterable[Period]) -> tuple[Period, ...]:
    """The longest periods; of two that differ in `every` alone, the one that cuts more."""
    at: dict[tuple[int, ...], Period] = {}
    for period in sorted(found, key=lambda period: period.every):
        at[period.length, period.shift, period.cycle, period.phase] = period
    return tuple(sorted(at.values(), key=lambda period: -period.length)[:MAX_PERIODS])


def _ramp(node: Expr, ramps: dict[Expr, Ramp]) -> Ramp | None:
    match node:
        case Coord(coordinate=Coordinate.Q_IDX | Coordinate.KV_IDX as coordinate):
            return Ramp(coordinate)
        case Apply(op=op, args=(operand, Const(value=value))) if operand in ramps:
            return _ramp_of(op, ramps[operand], int(value))
        case _:
            return None


def _ramp_of(op: Op, ramp: Ramp, number: int) -> Ramp | None:
    coordinate, step, shift, cycle, phase = ramp.coordinate, ramp.step, ramp.shift, ramp.cycle, ramp.phase
    match op:
        case Op.ADD:
            return Ramp(coordinate, step, shift + number * step, cycle, phase)
        case Op.SUB:
            return Ramp(coordinate, step, shift - number * step, cycle, phase)
        case Op.FLOORDIV if number > 0:
            return Ramp(coordinate, step * number, shift, cycle, phase)
        case Op.MOD if number > 0:
            return ramp if cycle else Ramp(coordinate, step, 0, step * number, shift)
        case _:
            return None


def cut(first: Array, last: Array, owner: Array, periods: tuple[Period, ...]) -> tuple[Array, Array, Array]:
    """Stretches cut at the starts of periods; `owner` says what each stretch, and then each piece, is a part of."""
    for period in periods:
        regular = period.is_regular(first, last)
        start = first + np.where(regular, -period.since_start(first) % period.length, 0)
        end = np.maximum(last + 1 - np.where(regular, period.since_start(last) + 1, 0) % period.length, start)
        # Positions before the first start, between starts, and from the last one on; none where there is no start.
        inside = start <= last
        start, end = np.where(inside, start, last + 1), np.where(inside, end, last + 1)
        middle = (start, end - 1, owner)
        if period.every:
            middle = _cells(*middle, period.length)
        pieces = [(first, start - 1, owner), middle, (end, last, owner)]
        first, last, owner = (np.concatenate(part) for part in zip(*pieces, strict=True))
        kept = first <= last
        first, last, owner = first[kept], last[kept], owner[kept]
    return first, last, owner


def _cells(first: Array, last: Array, owner: Array, length: int) -> tuple[Array, Array, Array]:
    """Stretches of whole cells as their cells, where these are few."""
    count = -(-(last + 1 - first) // length)
    count = np.where((count >= 1) & (count <= MAX_CELLS), count, 1)
    index = np.repeat(np.arange(len(first)), count)
    at = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
    start = first[index] + at * length
    return start, np.where(at == count[index] - 1, last[index], start + length - 1), owner[index]

"""What floats can be on many sets of pairs at once, and what every operator does to them.

In: enclosures of the operands, as numpy arrays that broadcast over tiles. Out: the same for the result.

An enclosure holds for every arithmetic a kernel may use, in float32 or wider, rounded after each operation or fused
with the next: its ends are numbers of float32, computed exactly or in float64 and rounded outwards. Rounding keeps
order, so what is rounded anywhere stays inside. The ends are exact where the operation is: for loads, comparisons,
extremes, and sums that float32 holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from attndsl.analysis import values as v
from attndsl.analysis.values import Array, Interval, Truth
from attndsl.ir.nodes import Apply, Const, Expr, Load, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder

LARGEST_INTEGER = 2**60
"""The integer of a float beyond is unspecified."""
LOOSE = 3
"""Units of the last place in float32 by which a division may miss: a GPU does not round it correctly."""


@dataclass(frozen=True, slots=True, eq=False)
class Reals:
    """Floats from `lo` to `hi`, both included, and NaN where `nan` says it can be; lo > hi where nothing else can.

    The ends are numbers of float32, kept in float64.
    """

    lo: Array
    hi: Array
    nan: Array


def _one(value: Any) -> Array:
    array = np.full((1, 1, 1, 1), value)
    array.flags.writeable = False
    return array


NEVER, ALWAYS = _one(False), _one(True)
ANYTHING = Reals(_one(-np.inf), _one(np.inf), ALWAYS)


@lru_cache(maxsize=1024)
def number(value: float) -> Reals:
    """One float on every tile."""
    if np.isnan(value):
        return Reals(_one(np.inf), _one(-np.inf), ALWAYS)
    return outwards(_one(value), _one(value), NEVER)


def outwards(lo: Array, hi: Array, nan: Array, units: int = 0) -> Reals:
    """The numbers of float32 around an interval in float64, and some `units` of the last place more."""
    with np.errstate(over="ignore"):
        down, up = lo.astype(np.float32), hi.astype(np.float32)
        down = np.where(down > lo, _next(down, -np.inf), down)
        up = np.where(up < hi, _next(up, np.inf), up)
        for _ in range(units):
            down, up = _next(down, -np.inf), _next(up, np.inf)
    return Reals(down.astype(np.float64), up.astype(np.float64), nan)


def of_integers(x: Interval) -> Reals:
    """Integers as floats. What leaves 64 bits is refused elsewhere."""
    ends = (np.minimum(np.maximum(end, -(2**64)), 2**64) if end.dtype == object else end for end in (x.lo, x.hi))
    lo, hi = (end.astype(np.float64) for end in ends)
    return outwards(lo, hi, NEVER)


def of_truth(x: Truth) -> Reals:
    """A bool as 0 or 1."""
    return Reals(np.where(x.can_be_false, 0.0, 1.0), np.where(x.can_be_true, 1.0, 0.0), NEVER)


def to_integers(x: Reals, dtype: np.dtype[Any]) -> Interval:
    """Floats as integers, towards zero; any of 60 bits where the float may be no such number."""
    ordinary = (x.lo >= -LARGEST_INTEGER) & (x.hi <= LARGEST_INTEGER) & (x.lo <= x.hi) & ~x.nan
    lo, hi = np.where(ordinary, x.lo, -LARGEST_INTEGER), np.where(ordinary, x.hi, LARGEST_INTEGER - 1)
    return Interval(*(np.trunc(end).astype(np.int64).astype(dtype) for end in (lo, hi)))


def compare(op: Op, x: Reals, y: Reals) -> Truth:
    """`x op y`; with NaN nothing but `!=` is true."""
    match op:
        case Op.GT | Op.GE:
            return compare({Op.GT: Op.LT, Op.GE: Op.LE}[op], y, x)
        case Op.NE:
            return v.logical_not(compare(Op.EQ, x, y))
    numbers, nan = (x.lo <= x.hi) & (y.lo <= y.hi), x.nan | y.nan
    match op:
        case Op.LT:
            return Truth(numbers & (x.lo < y.hi), nan | (x.hi >= y.lo))
        case Op.LE:
            return Truth(numbers & (x.lo <= y.hi), nan | (x.hi > y.lo))
    same = (x.lo == x.hi) & (y.lo == y.hi) & (x.lo == y.lo)
    return Truth(numbers & (x.lo <= y.hi) & (y.lo <= x.hi), nan | ~same)


def select(condition: Truth, yes: Reals, no: Reals) -> Reals:
    """`where`: the branch the condition takes, both where it is open."""
    taken, other = condition.can_be_true, condition.can_be_false
    lo = np.minimum(np.where(taken, yes.lo, np.inf), np.where(other, no.lo, np.inf))
    hi = np.maximum(np.where(taken, yes.hi, -np.inf), np.where(other, no.hi, -np.inf))
    return Reals(lo, hi, (taken & yes.nan) | (other & no.nan))


def add(x: Reals, y: Reals) -> Reals:
    opposite = ((x.hi == np.inf) & (y.lo == -np.inf)) | ((x.lo == -np.inf) & (y.hi == np.inf))
    with np.errstate(invalid="ignore"):
        lo, hi = x.lo + y.lo, x.hi + y.hi
    return outwards(np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi), x.nan | y.nan | opposite)


def sub(x: Reals, y: Reals) -> Reals:
    return add(x, neg(y))


def neg(x: Reals) -> Reals:
    return Reals(-x.hi, -x.lo, x.nan)


def mul(x: Reals, y: Reals) -> Reals:
    """Products of numbers of float32 are exact in float64."""
    unbounded = (_has_zero(x) & _has_infinity(y)) | (_has_zero(y) & _has_infinity(x))
    with np.errstate(invalid="ignore"):
        corners = [a * b for a in (x.lo, x.hi) for b in (y.lo, y.hi)]
    # Of 0 and an infinite end the numbers before that end give 0.
    corners = [np.where(np.isnan(corner), 0.0, corner) for corner in corners]
    return outwards(reduce(np.minimum, corners), reduce(np.maximum, corners), x.nan | y.nan | unbounded)


def square(x: Reals) -> Reals:
    """The product of a float with itself."""
    size = absolute(x)
    return outwards(size.lo * size.lo, np.where(size.hi < 0, size.hi, size.hi * size.hi), x.nan)


def div(x: Reals, y: Reals) -> Reals:
    """By what is not 0, to within what a GPU makes of it."""
    regular = ~(_has_zero(y) | _has_infinity(y) | _has_infinity(x)) & (y.lo <= y.hi)
    below, above = np.where(regular, y.lo, 1.0), np.where(regular, y.hi, 1.0)
    with np.errstate(invalid="ignore"):
        corners = [a / b for a in (x.lo, x.hi) for b in (below, above)]
    lo, hi = (np.where(regular, pick, end) for pick, end in _extremes(corners))
    return outwards(lo, hi, x.nan | y.nan | ~regular, LOOSE)


def absolute(x: Reals) -> Reals:
    return Reals(np.maximum(np.maximum(x.lo, -x.hi), 0.0), np.maximum(-x.lo, x.hi), x.nan)


def minimum(x: Reals, y: Reals) -> Reals:
    return Reals(np.minimum(x.lo, y.lo), np.minimum(x.hi, y.hi), x.nan | y.nan)


def maximum(x: Reals, y: Reals) -> Reals:
    return Reals(np.maximum(x.lo, y.lo), np.maximum(x.hi, y.hi), x.nan | y.nan)


def sqrt(x: Reals) -> Reals:
    """Rounded correctly everywhere."""
    with np.errstate(invalid="ignore"):
        lo, hi = np.sqrt(np.maximum(x.lo, 0.0)), np.where(x.hi >= 0, np.sqrt(x.hi), -np.inf)
    return outwards(lo, hi, x.nan | (x.lo < 0))


def _whole(rounding: np.ufunc) -> Callable[[Reals], Reals]:
    """A rounding to integers, which keeps order and is exact."""

    def rounded(x: Reals) -> Reals:
        return Reals(rounding(x.lo), rounding(x.hi), x.nan)

    return rounded


REAL: dict[Op, Callable[..., Reals]] = {
    Op.ADD: add,
    Op.SUB: sub,
    Op.MUL: mul,
    Op.DIV: div,
    Op.NEG: neg,
    Op.ABS: absolute,
    Op.MIN: minimum,
    Op.MAX: maximum,
    Op.SQRT: sqrt,
    Op.FLOOR: _whole(np.floor),
    Op.CEIL: _whole(np.ceil),
    Op.ROUND: _whole(np.rint),
}
"""The transformer of every operator on floats that has one; of what others give nothing is known."""


@lru_cache(maxsize=1024)
def is_enclosed(expr: Expr) -> bool:
    """Whether something can be known of every float an expression is computed with."""
    return all(_is_enclosed(node) for node in postorder(expr) if node.dtype.is_float)


def _is_enclosed(node: Expr) -> bool:
    match node:
        case Const() | Scalar() | Load():
            return True
        case Apply(op=op):
            return op in REAL or op in (Op.WHERE, Op.TO_FLOAT)
        case _:
            return False


def _next(end: Array, towards: float) -> Array:
    return np.nextafter(end, np.float32(towards))


def _extremes(corners: list[Array]) -> tuple[tuple[Array, float], tuple[Array, float]]:
    """The least and the greatest of some numbers, each with the infinity on its side."""
    return (reduce(np.minimum, corners), -np.inf), (reduce(np.maximum, corners), np.inf)


def _has_zero(x: Reals) -> Array:
    return np.asarray((x.lo <= 0) & (x.hi >= 0))


def _has_infinity(x: Reals) -> Array:
    return np.asarray((x.lo == -np.inf) | (x.hi == np.inf))

"""The abstract values of an expression on a set of pairs, and what every operator does to them.

In: intervals of integers and three-valued booleans, one per tile, as numpy arrays that broadcast over tiles. Out: the
same for the result of an operator. Arrays are int64, or Python integers (dtype object) where nothing may wrap; a
transformer here works on both. Every result contains every value a pair of the tile can have.

Division by zero and shifts outside 0..63 are refused elsewhere; where only dead pairs do it, a divisor of 0 counts as 1
and a shift is clamped, as in the dense evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from attndsl.ir.ops import Op

Array = npt.NDArray[Any]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Interval:
    """Integers from `lo` to `hi`, both included. A value known on every tile has `lo is hi`: the work is done once."""

    lo: Array
    hi: Array

    @property
    def is_point(self) -> bool:
        return self.lo is self.hi

    @property
    def extremes(self) -> tuple[int, int]:
        """The least and the greatest integer over all tiles."""
        if self.lo.size == self.hi.size == 1:
            return int(self.lo.item()), int(self.hi.item())
        return int(self.lo.min()), int(self.hi.max())


@dataclass(frozen=True, slots=True)
class Truth:
    """What a boolean can be: both false means no pair has a value there."""

    can_be_true: Array
    can_be_false: Array


Value = Interval | Truth | None
"""`None` is a float: what is known of it is found where something is made of it (`reals`)."""


@lru_cache(maxsize=1024)
def constant(value: int, dtype: np.dtype[Any]) -> Interval:
    """One integer on every tile."""
    array = np.empty((1, 1, 1, 1), dtype)
    array[...] = int(value)
    array.flags.writeable = False
    return Interval(array, array)


@lru_cache
def verdict(value: bool) -> Truth:
    """One truth on every tile."""
    array = np.full((1, 1, 1, 1), value)
    array.flags.writeable = False
    return Truth(array, np.logical_not(array))


UNKNOWN = Truth(np.full((1, 1, 1, 1), True), np.full((1, 1, 1, 1), True))


def top(dtype: np.dtype[Any], bits: int = 62) -> Interval:
    """Any integer of that many bits."""
    return Interval(constant(-(2**bits), dtype).lo, constant(2**bits - 1, dtype).lo)


def meet(value: Interval, lo: Array, hi: Array) -> Interval:
    """The interval narrowed; where nothing is left no pair exists, and a part of the interval stands for it."""
    if value.is_point:
        return value
    low = np.minimum(np.maximum(lo, value.lo), value.hi)
    return Interval(low, np.maximum(low, np.minimum(hi, value.hi)))


def join(which_left: Array, which_right: Array, left: Interval, right: Interval) -> Interval:
    """The values of `left` where it counts and of `right` where it counts."""
    lo = np.where(which_left & which_right, np.minimum(left.lo, right.lo), np.where(which_left, left.lo, right.lo))
    hi = np.where(which_left & which_right, np.maximum(left.hi, right.hi), np.where(which_left, left.hi, right.hi))
    return Interval(lo, hi)


def add(x: Interval, y: Interval) -> Interval:
    lo = x.lo + y.lo
    return Interval(lo, lo if x.is_point and y.is_point else x.hi + y.hi)


def sub(x: Interval, y: Interval) -> Interval:
    lo = x.lo - y.hi
    return Interval(lo, lo if x.is_point and y.is_point else x.hi - y.lo)


def neg(x: Interval) -> Interval:
    lo = -x.hi
    return Interval(lo, lo if x.is_point else -x.lo)


def mul(x: Interval, y: Interval) -> Interval:
    first = x.lo * y.lo
    if x.is_point and y.is_point:
        return Interval(first, first)
    corners = [first]
    if not x.is_point:
        corners.append(x.hi * y.lo)
    if not y.is_point:
        corners.append(x.lo * y.hi)
    if not (x.is_point or y.is_point):
        corners.append(x.hi * y.hi)
    return Interval(_least(*corners), _greatest(*corners))


def scale(x: Interval, factor: int) -> Interval:
    """The interval times a constant."""
    if factor == 1:
        return x
    low, high = (x.lo, x.hi) if factor >= 0 else (x.hi, x.lo)
    lo = low * factor
    return Interval(lo, lo if x.is_point else high * factor)


def floordiv(x: Interval, y: Interval) -> Interval:
    return _by_sign_of_divisor(_floordiv_positive, x, y, negate=False)


def mod(x: Interval, y: Interval) -> Interval:
    return _by_sign_of_divisor(_mod_positive, x, y, negate=True)


def absolute(x: Interval) -> Interval:
    if x.is_point:
        lo = np.abs(x.lo)
        return Interval(lo, lo)
    return Interval(np.maximum(np.maximum(x.lo, -x.hi), 0), np.maximum(-x.lo, x.hi))


def minimum(x: Interval, y: Interval) -> Interval:
    lo = np.minimum(x.lo, y.lo)
    return Interval(lo, lo if x.is_point and y.is_point else np.minimum(x.hi, y.hi))


def maximum(x: Interval, y: Interval) -> Interval:
    lo = np.maximum(x.lo, y.lo)
    return Interval(lo, lo if x.is_point and y.is_point else np.maximum(x.hi, y.hi))


def bit_not(x: Interval) -> Interval:
    lo = ~x.hi
    return Interval(lo, lo if x.is_point else ~x.lo)


def shl(x: Interval, n: Interval) -> Interval:
    return _shift(np.left_shift, x, n)


def shr(x: Interval, n: Interval) -> Interval:
    return _shift(np.right_shift, x, n)


def logical_and(x: Truth, y: Truth) -> Truth:
    return Truth(x.can_be_true & y.can_be_true, x.can_be_false | y.can_be_false)


def logical_or(x: Truth, y: Truth) -> Truth:
    return Truth(x.can_be_true | y.can_be_true, x.can_be_false & y.can_be_false)


def logical_xor(x: Truth, y: Truth) -> Truth:
    differ = (x.can_be_true & y.can_be_false) | (x.can_be_false & y.can_be_true)
    agree = (x.can_be_true & y.can_be_true) | (x.can_be_false & y.can_be_false)
    return Truth(differ, agree)


def logical_not(x: Truth) -> Truth:
    return Truth(x.can_be_false, x.can_be_true)


def select(condition: Truth, yes: Value, no: Value) -> Value:
    """`where`: the branch the condition takes, both where it is open."""
    match yes, no:
        case Interval(), Interval():
            return join(condition.can_be_true, condition.can_be_false, yes, no)
        case Truth(), Truth():
            taken, other = condition.can_be_true, condition.can_be_false
            return Truth(
                (taken & yes.can_be_true) | (other & no.can_be_true),
                (taken & yes.can_be_false) | (other & no.can_be_false),
            )
        case _:
            return None


def counted(x: Truth, dtype: np.dtype[Any]) -> Interval:
    """A bool as 0 or 1."""
    zero, one = constant(0, dtype).lo, constant(1, dtype).lo
    return Interval(np.where(x.can_be_false, zero, one), np.where(x.can_be_true, one, zero))


def compare(op: Op, difference: Interval) -> Truth:
    """`x op y` by the interval of `x - y`."""
    lo, hi = difference.lo, difference.hi
    match op:
        case Op.LT:
            return Truth(_bool(lo < 0), _bool(hi >= 0))
        case Op.LE:
            return Truth(_bool(lo <= 0), _bool(hi > 0))
        case Op.GT:
            return Truth(_bool(hi > 0), _bool(lo <= 0))
        case Op.GE:
            return Truth(_bool(hi >= 0), _bool(lo < 0))
    equal = Truth(_bool(lo <= 0) & _bool(hi >= 0), _bool(lo != 0) | _bool(hi != 0))
    return equal if op is Op.EQ else logical_not(equal)


def _bool(array: Array) -> Array:
    return np.asarray(array, dtype=bool)


def _least(*arrays: Array) -> Array:
    result = arrays[0]
    for array in arrays[1:]:
        result = np.minimum(result, array)
    return result


def _greatest(*arrays: Array) -> Array:
    result = arrays[0]
    for array in arrays[1:]:
        result = np.maximum(result, array)
    return result


def _by_sign_of_divisor(
    positive: Callable[[Interval, Interval], Interval], x: Interval, y: Interval, *, negate: bool
) -> Interval:
    """The division by the positive divisors joined with that by the negative ones: both operands change sign there."""
    if _bool(y.lo >= 1).all():
        return positive(x, y)
    above = positive(x, Interval(np.maximum(y.lo, 1), np.maximum(y.hi, 1)))
    below = positive(neg(x), Interval(np.maximum(-y.hi, 1), np.maximum(-y.lo, 1)))
    if negate:
        below = neg(below)
    has_below = _bool(y.lo <= -1)
    return join(_bool(y.hi >= 0), has_below, above, below)


def _floordiv_positive(x: Interval, y: Interval) -> Interval:
    lo = x.lo // y.lo
    if x.is_point and y.is_point:
        return Interval(lo, lo)
    hi = x.hi // y.lo
    if y.is_point:
        return Interval(lo, hi)
    return Interval(np.minimum(lo, x.lo // y.hi), np.maximum(hi, x.hi // y.hi))


def _mod_positive(x: Interval, y: Interval) -> Interval:
    if x.is_point and y.is_point:
        rest = x.lo % y.lo
        return Interval(rest, rest)
    # Within one period of one divisor the remainder keeps order; a dividend below every divisor is its own remainder.
    period = x.lo // y.lo
    one_period = _bool(period == x.hi // y.lo) & (_bool(y.lo == y.hi) | _bool(period == 0))
    non_negative = _bool(x.lo >= 0)
    largest = np.where(non_negative, np.minimum(y.hi - 1, x.hi), y.hi - 1)
    lo = np.where(one_period, x.lo - period * y.lo, largest * 0)
    return Interval(lo, np.where(one_period, x.hi - period * y.lo, largest))


def _shift(shift: Callable[[Array, Array], Array], x: Interval, n: Interval) -> Interval:
    least, most = (np.minimum(np.maximum(end, 0), 63) for end in (n.lo, n.hi))
    lo = shift(x.lo, least)
    if x.is_point and n.is_point:
        return Interval(lo, lo)
    lo = np.minimum(lo, shift(x.lo, most))
    return Interval(lo, np.maximum(shift(x.hi, least), shift(x.hi, most)))

"""What bit operations do to intervals: by the bits all values of an interval share.

In: intervals as in `values`. Out: the interval of the result. The values between two ends agree on every bit above the
highest one in which the ends differ, so tiles of a power of two are told apart exactly.
"""

from __future__ import annotations

from functools import reduce

import numpy as np

from attndsl.analysis.values import Array, Interval, absolute


def bit_length(x: Interval) -> Interval:
    size = absolute(x)
    lo = _length(size.lo)
    return Interval(lo, lo if size.is_point else _length(size.hi))


def bit_and(x: Interval, y: Interval) -> Interval:
    if x.is_point and y.is_point:
        return _point(x.lo & y.lo)
    (x_ones, x_maybe), (y_ones, y_maybe) = _bits(x), _bits(y)
    found = _from_bits(x_ones & y_ones, x_maybe & y_maybe, x, y)
    # A non-negative operand bounds the result.
    hi = np.where(x.lo >= 0, np.minimum(found.hi, x.hi), found.hi)
    return Interval(found.lo, np.where(y.lo >= 0, np.minimum(hi, y.hi), hi))


def bit_or(x: Interval, y: Interval) -> Interval:
    if x.is_point and y.is_point:
        return _point(x.lo | y.lo)
    (x_ones, x_maybe), (y_ones, y_maybe) = _bits(x), _bits(y)
    found = _from_bits(x_ones | y_ones, x_maybe | y_maybe, x, y)
    both = (x.lo >= 0) & (y.lo >= 0)
    return Interval(np.where(both, np.maximum(found.lo, np.maximum(x.lo, y.lo)), found.lo), found.hi)


def bit_xor(x: Interval, y: Interval) -> Interval:
    if x.is_point and y.is_point:
        return _point(x.lo ^ y.lo)
    (x_ones, x_maybe), (y_ones, y_maybe) = _bits(x), _bits(y)
    unknown = (x_ones ^ x_maybe) | (y_ones ^ y_maybe)
    ones = (x_ones ^ y_ones) & ~unknown
    return _from_bits(ones, ones | unknown, x, y)


def _point(value: Array) -> Interval:
    return Interval(value, value)


_length_of_object = np.frompyfunc(int.bit_length, 1, 1)


def _length(x: Array) -> Array:
    """`bit_length` of non-negative integers."""
    if x.dtype == object:
        return np.asarray(_length_of_object(x), dtype=object)
    length: Array = np.zeros_like(x)
    for step in (32, 16, 8, 4, 2, 1):
        high = x >> step
        beyond = high != 0
        length += step * beyond
        x = np.where(beyond, high, x)
    length += x != 0
    return length


def _bits(x: Interval) -> tuple[Array, Array]:
    """The bits set in every value, and those set in some: all values share the bits above where the ends differ."""
    if x.is_point:
        return x.lo, x.lo
    differ = x.lo ^ x.hi
    below = (_one(differ) << _length(np.where(differ < 0, 0 * differ, differ))) - 1
    unknown = np.where(differ < 0, ~(0 * differ), below)
    return x.lo & ~unknown, x.lo | unknown


def _from_bits(ones: Array, maybe: Array, x: Interval, y: Interval) -> Interval:
    """Values between two sets of bits; of unknown sign, no wider than the operands."""
    widest = reduce(np.maximum, (np.where(end < 0, ~end, end) for end in (x.lo, x.hi, y.lo, y.hi)))
    limit = _one(widest) << _length(widest)
    open_sign = (ones >= 0) & (maybe < 0)
    return Interval(np.where(open_sign, -limit, ones), np.where(open_sign, limit - 1, maybe))


def _one(like: Array) -> Array:
    ones: Array = np.ones_like(like)
    return ones

"""The keys of single queries by the bounds of a mask.

In: a `KeyRange`, a `Tiling` and a stretch of queries. Out: an interval of keys for each of them.
"""

from __future__ import annotations

import numpy as np

from attndsl.analysis.bounds import KeyRange
from attndsl.analysis.intervals import Known, evaluate
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Interval, Truth


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

"""Unions of key ranges on tiles, decided row by row: a tile several ranges cover only together is full.

In: exact `KeyRange`s, of which a live pair is in at least one, and a `Tiling`. Out: classes by stretches of tile rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from attndsl.analysis.bounds import KeyRange
from attndsl.analysis.intervals import Known
from attndsl.analysis.rows import key_intervals, stretches
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Interval

FAR = 2**50
"""Beyond every key."""


def union_classes(ranges: Sequence[KeyRange], tiling: Tiling, known: Known) -> Iterator[tuple[slice, Array, bool]]:
    """For each stretch of tile rows int8 [B', H', rows, Tk], and whether partial tiles truly are partial."""
    for rows in stretches(tiling):
        queries = slice(rows.start * tiling.block[0], min(rows.stop * tiling.block[0], tiling.q_len))
        found = [key_intervals(keys, tiling, known, queries.start, queries.stop) for keys in ranges]
        exact = all(outer.lo is inner.lo and outer.hi is inner.hi for outer, inner in found)
        needed = _meets([outer for outer, _ in found], tiling)
        covered = _covers([inner for _, inner in found], tiling)
        yield rows, needed.astype(np.int8) + (needed & covered), exact


def _merged(intervals: Sequence[Interval]) -> tuple[Array, Array]:
    """The intervals of every query, [B', H', queries, n], so that none touch; empty ones have lo > hi."""
    lo = np.stack([interval.lo for interval in intervals], axis=-1)
    hi = np.stack([interval.hi for interval in intervals], axis=-1)
    # Empty intervals start beyond everything, so that sorted they come last and touch nothing.
    lo = np.where(lo <= hi, lo, FAR)
    order = np.argsort(lo, axis=-1, kind="stable")
    lo, hi = np.take_along_axis(lo, order, -1), np.take_along_axis(hi, order, -1)
    for at in range(1, lo.shape[-1]):
        # One that touches the one before it takes it over and leaves it empty.
        joins = lo[..., at] <= hi[..., at - 1] + 1
        lo[..., at] = np.where(joins, lo[..., at - 1], lo[..., at])
        hi[..., at] = np.where(joins, np.maximum(hi[..., at - 1], hi[..., at]), hi[..., at])
        lo[..., at - 1] = np.where(joins, FAR, lo[..., at - 1])
    return lo, hi


def _meets(intervals: Sequence[Interval], tiling: Tiling) -> Array:
    """Bool [B', H', rows, Tk]: tiles in which some query has a live key."""
    lo, hi = _merged(intervals)
    keys = tiling.block[1]
    return _counted(lo // keys, hi // keys, lo <= hi, tiling) > 0


def _covers(intervals: Sequence[Interval], tiling: Tiling) -> Array:
    """Bool [B', H', rows, Tk]: tiles all of whose keys every query sees."""
    lo, hi = _merged(intervals)
    keys = tiling.block[1]
    first = -(-lo // keys)
    last = np.where(hi >= tiling.kv_len - 1, tiling.kv_tiles, (hi + 1) // keys) - 1
    counted = _counted(first, last, (lo <= hi) & (first <= last), tiling)
    queries = lo.shape[2]
    sizes = np.full(-(-queries // tiling.block[0]), tiling.block[0])
    sizes[-1] = queries - tiling.block[0] * (len(sizes) - 1)
    return np.asarray(counted == sizes[:, None])


def _counted(first: Array, last: Array, used: Array, tiling: Tiling) -> Array:
    """Int [B', H', rows, Tk]: how many of the runs [first, last] of a tile row's queries hold a tile."""
    batch, heads, queries, _ = first.shape
    size, columns = tiling.block[0], tiling.kv_tiles
    rows = -(-queries // size)
    edges = np.zeros((batch, heads, rows, columns + 1), np.int32)
    b, h, query, at = np.nonzero(used)
    where = (b, h, query // size)
    np.add.at(edges, (*where, first[b, h, query, at]), 1)
    np.add.at(edges, (*where, last[b, h, query, at] + 1), -1)
    return np.asarray(np.cumsum(edges[..., :-1], axis=-1))

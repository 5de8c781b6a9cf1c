"""Tiles that ranges leave open, cut where coordinates of flattened positions start over.

Within a row of a grid `q_idx // 64` does not change and `q_idx % 64` does not wrap, and over whole rows the one is as
free as the other: on such pieces ranges know all there is to know of coordinates, while over a tile that begins in the
middle of a row they take every row with every column.

In: tiles under a mask. Out: a `Sight`, from the mask on every piece of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from attndsl.analysis.periods import Period, cut, periods_of
from attndsl.analysis.sight import Scene, Sight
from attndsl.analysis.values import Array, Interval
from attndsl.ir.types import Coordinate

TILES_AT_ONCE = 2**14

Periods = dict[Coordinate, tuple[Period, ...]]


def look_at(scene: Scene) -> Sight:
    """What tiles that are partial so far are, as far as their pieces show it.

    Tiles that hold several whole rows and are still open are cut at every row: what depends on how far apart two rows
    are (radial attention) is not the same for all of them.
    """
    periods = periods_of(scene.mask)
    sight = _in_batches(scene, periods)
    sizes = zip(_in_order(periods), scene.tiling.block, strict=True)
    by_row = {one: _row_by_row(some, size) for (one, some), size in sizes}
    if by_row == dict(_in_order(periods)):
        return sight
    return sight.joined(sight.is_open, _in_batches(scene.only(sight.is_open), by_row))


def _in_order(periods: Periods) -> Iterator[tuple[Coordinate, tuple[Period, ...]]]:
    for coordinate in (Coordinate.Q_IDX, Coordinate.KV_IDX):
        yield coordinate, periods.get(coordinate, ())


def _row_by_row(periods: tuple[Period, ...], size: int) -> tuple[Period, ...]:
    """The periods, with a cut at every start of the longest where a tile of that size can hold two whole ones."""
    if not periods or 2 * periods[0].length > size:
        return periods
    return (replace(periods[0], every=True), *periods[1:])


def _in_batches(scene: Scene, periods: Periods) -> Sight:
    starts = range(0, len(scene), TILES_AT_ONCE)
    found = [_looked_at(scene.only(slice(start, start + TILES_AT_ONCE)), periods) for start in starts]
    nothing = Sight(*np.zeros((2, 2, 0), bool))
    can, has = (np.concatenate(some, axis=1) for some in zip(*((s.can, s.has) for s in (nothing, *found)), strict=True))
    return Sight(can, has)


def _looked_at(scene: Scene, periods: Periods) -> Sight:
    (queries, of_query), (keys, of_key) = (
        _pieces(side, some) for side, (_, some) in zip(scene.sides, _in_order(periods), strict=True)
    )
    q, k = _pairs(of_query, of_key, len(scene))
    tile = of_query[q]
    # A tile of one piece is what it was.
    cut_up = np.bincount(tile, minlength=len(scene)) > 1
    q, k, tile = q[cut_up[tile]], k[cut_up[tile]], tile[cut_up[tile]]
    live, dead = scene.truths(tile, *(Interval(some.lo[at], some.hi[at]) for some, at in ((queries, q), (keys, k))))
    can, has = np.zeros((2, 2, len(scene)), bool)
    can[:, ~cut_up] = True
    for kind, (is_this, is_other) in enumerate(((live, dead), (dead, live))):
        can[kind, tile[is_this]] = True
        has[kind, tile[~is_other]] = True
    return Sight(can, has)


def _pieces(stretches: Interval, periods: tuple[Period, ...]) -> tuple[Interval, Array]:
    """The pieces of each tile's stretch of a coordinate, those of a tile together; and the tile of each."""
    first, last, tile = cut(stretches.lo, stretches.hi, np.arange(len(stretches.lo)), periods)
    order = np.argsort(tile, kind="stable")
    return Interval(first[order], last[order]), tile[order]


def _pairs(of_query: Array, of_key: Array, tiles: int) -> tuple[Array, Array]:
    """Each piece of a tile's queries with each piece of its keys."""
    counts = np.bincount(of_key, minlength=tiles)
    firsts = np.cumsum(counts) - counts
    repeats = counts[of_query]
    q = np.repeat(np.arange(len(of_query)), repeats)
    within = np.arange(len(q)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return q, firsts[of_query[q]] + within

"""Tiles that ranges leave open, cut where coordinates of flattened positions start over.

Within a row of a grid `q_idx // 64` does not change and `q_idx % 64` does not wrap, and over whole rows the one is as
free as the other: on such pieces ranges know all there is to know of coordinates, while over a tile that begins in the
middle of a row they take every row with every column.

In: a mask, a `Tiling`, classes that are sound. Out: the classes with every partial tile looked at piece by piece: empty
where no piece can have a live pair, full where none can have a dead one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from attndsl.analysis.intervals import Box, Known, evaluate
from attndsl.analysis.periods import Period, cut, periods_of
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Interval, Truth
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Coordinate

EMPTY, PARTIAL, FULL = 0, 1, 2

TILES_AT_ONCE = 2**14

Periods = dict[Coordinate, tuple[Period, ...]]


def look_at(mask: Expr, tiling: Tiling, known: Known, tiles: tuple[Array, ...]) -> Array:
    """The classes of tiles (b, h, row, column) that are partial so far.

    Tiles that hold several whole rows and are still open are cut at every row: what depends on how far apart two rows
    are (radial attention) is not the same for all of them.
    """
    periods = periods_of(mask)
    classes = _in_batches(mask, periods, tiling, known, tiles)
    by_row = {one: _row_by_row(some, size) for (one, some), size in zip(_in_order(periods), tiling.block, strict=True)}
    if by_row != dict(_in_order(periods)):
        open_ = classes == PARTIAL
        classes[open_] = _in_batches(mask, by_row, tiling, known, tuple(place[open_] for place in tiles))
    return classes


def _in_order(periods: Periods) -> Iterator[tuple[Coordinate, tuple[Period, ...]]]:
    for coordinate in (Coordinate.Q_IDX, Coordinate.KV_IDX):
        yield coordinate, periods.get(coordinate, ())


def _row_by_row(periods: tuple[Period, ...], size: int) -> tuple[Period, ...]:
    """The periods, with a cut at every start of the longest where a tile of that size can hold two whole ones."""
    if not periods or 2 * periods[0].length > size:
        return periods
    return (replace(periods[0], every=True), *periods[1:])


def _in_batches(mask: Expr, periods: Periods, tiling: Tiling, known: Known, tiles: tuple[Array, ...]) -> Array:
    starts = range(0, len(tiles[0]), TILES_AT_ONCE)
    parts = (tuple(place[start : start + TILES_AT_ONCE] for place in tiles) for start in starts)
    found = [_looked_at(mask, periods, tiling, known, part) for part in parts]
    return np.concatenate([np.zeros(0, np.int8), *found])


def _looked_at(mask: Expr, periods: Periods, tiling: Tiling, known: Known, tiles: tuple[Array, ...]) -> Array:
    """The classes of these tiles, all partial so far."""
    box = tiling.tiles(slice(0, tiling.q_tiles), slice(0, tiling.kv_tiles))
    ranges = {coordinate: _gathered(interval, tiling, tiles) for coordinate, interval in box.ranges.items()}
    queries, of_query = _pieces(ranges[Coordinate.Q_IDX], periods.get(Coordinate.Q_IDX, ()))
    keys, of_key = _pieces(ranges[Coordinate.KV_IDX], periods.get(Coordinate.KV_IDX, ()))
    q, k = _pairs(of_query, of_key, len(tiles[0]))
    tile = of_query[q]
    # A tile of one piece is what it was.
    cut_up = np.bincount(tile, minlength=len(tiles[0])) > 1
    q, k, tile = q[cut_up[tile]], k[cut_up[tile]], tile[cut_up[tile]]
    pieces = {coordinate: _on_axis(Interval(at := interval.lo[tile], at)) for coordinate, interval in ranges.items()}
    pieces[Coordinate.Q_IDX] = _on_axis(Interval(queries.lo[q], queries.hi[q]))
    pieces[Coordinate.KV_IDX] = _on_axis(Interval(keys.lo[k], keys.hi[k]))
    if not len(tile):
        return np.full(len(tiles[0]), PARTIAL)
    truth = evaluate((mask,), Box(pieces), known)[mask]
    assert isinstance(truth, Truth)
    live, dead = (_any_piece(some, tile, len(tiles[0])) for some in (truth.can_be_true, truth.can_be_false))
    return np.where(live | ~cut_up, np.where(dead | ~cut_up, PARTIAL, FULL), EMPTY)


def _gathered(interval: Interval, tiling: Tiling, tiles: tuple[Array, ...]) -> Interval:
    """The range of a coordinate on each of some tiles, as vectors."""
    lo = np.broadcast_to(interval.lo, tiling.shape)[tiles]
    return Interval(lo, lo if interval.is_point else np.broadcast_to(interval.hi, tiling.shape)[tiles])


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


def _on_axis(interval: Interval) -> Interval:
    lo = interval.lo.reshape(1, 1, 1, -1)
    return Interval(lo, lo if interval.is_point else interval.hi.reshape(1, 1, 1, -1))


def _any_piece(some: Array, tile: Array, tiles: int) -> Array:
    """Whether any piece of each tile has this."""
    found = np.zeros(tiles, bool)
    found[tile[np.broadcast_to(some.reshape(-1), tile.shape)]] = True
    return found

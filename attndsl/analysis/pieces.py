"""Tiles that ranges leave open, cut where coordinates of flattened positions start over.

Within a row of a grid `q_idx // 64` does not change and `q_idx % 64` does not wrap, and over whole rows the one is as
free as the other: on such pieces ranges know all there is to know of coordinates, while over a tile that begins in the
middle of a row they take every row with every column.

In: a mask, a `Tiling`, classes that are sound. Out: the classes with every partial tile looked at piece by piece: empty
where no piece can have a live pair, full where none can have a dead one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attndsl.analysis.intervals import Box, Known, evaluate
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Interval, Truth
from attndsl.ir.nodes import Apply, Const, Coord, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Coordinate

EMPTY, PARTIAL, FULL = 0, 1, 2

TILES_AT_ONCE = 2**14
MAX_PERIODS = 6
"""Of a coordinate, the longest ones: each may cut a tile in two more places."""


@dataclass(frozen=True, slots=True)
class Period:
    """Something starts over at every `coordinate` with `coordinate + shift` a multiple of `length`."""

    length: int
    shift: int


@dataclass(frozen=True, slots=True)
class Ramp:
    """An expression that is `(coordinate + shift) // step`, or that up to where it starts over."""

    coordinate: Coordinate
    step: int
    shift: int


def look_closer(classes: Array, mask: Expr, tiling: Tiling, known: Known) -> None:
    """Settle what partial tiles their pieces settle, in place."""
    periods = periods_of(mask)
    if not periods:
        return
    tiles = np.nonzero(classes == PARTIAL)
    for start in range(0, len(tiles[0]), TILES_AT_ONCE):
        some = tuple(place[start : start + TILES_AT_ONCE] for place in tiles)
        classes[some] = _looked_at(mask, periods, tiling, known, some)


def periods_of(mask: Expr) -> dict[Coordinate, tuple[Period, ...]]:
    """Where the coordinates in a mask start over, the longest periods first."""
    found: dict[Coordinate, set[Period]] = {}
    ramps: dict[Expr, Ramp] = {}
    for node in postorder(mask):
        ramp = _ramp(node, ramps)
        if ramp is None:
            continue
        ramps[node] = ramp
        match node:
            case Apply(op=Op.FLOORDIV | Op.MOD, args=(operand, Const(value=divisor))):
                inner = ramps[operand]
                length = inner.step * int(divisor)
                found.setdefault(ramp.coordinate, set()).add(Period(length, inner.shift % length))
    longest = {one: sorted(some, key=lambda period: (-period.length, period.shift)) for one, some in found.items()}
    return {coordinate: tuple(some[:MAX_PERIODS]) for coordinate, some in longest.items()}


def _ramp(node: Expr, ramps: dict[Expr, Ramp]) -> Ramp | None:
    match node:
        case Coord(coordinate=Coordinate.Q_IDX | Coordinate.KV_IDX as coordinate):
            return Ramp(coordinate, 1, 0)
        case Apply(op=Op.ADD | Op.SUB as op, args=(operand, Const(value=number))) if operand in ramps:
            ramp = ramps[operand]
            moved = int(number) * ramp.step
            return Ramp(ramp.coordinate, ramp.step, ramp.shift + (moved if op is Op.ADD else -moved))
        case Apply(op=Op.FLOORDIV, args=(operand, Const(value=divisor))) if operand in ramps and divisor > 0:
            ramp = ramps[operand]
            return Ramp(ramp.coordinate, ramp.step * int(divisor), ramp.shift)
        case Apply(op=Op.MOD, args=(operand, Const(value=divisor))) if operand in ramps and divisor > 0:
            return ramps[operand]
        case _:
            return None


def _looked_at(
    mask: Expr,
    periods: dict[Coordinate, tuple[Period, ...]],
    tiling: Tiling,
    known: Known,
    tiles: tuple[Array, ...],
) -> Array:
    """The classes of these tiles, all partial so far."""
    box = tiling.tiles(slice(0, tiling.q_tiles), slice(0, tiling.kv_tiles))
    ranges = {coordinate: _gathered(interval, tiling, tiles) for coordinate, interval in box.ranges.items()}
    queries, keys = (_cut(ranges[one], periods.get(one, ())) for one in (Coordinate.Q_IDX, Coordinate.KV_IDX))
    # Every piece of a tile's queries with every piece of its keys.
    q, k, tile = np.nonzero((queries.lo <= queries.hi)[:, None] & (keys.lo <= keys.hi)[None])
    pieces = {coordinate: _points(interval.lo[tile]) for coordinate, interval in ranges.items()}
    pieces[Coordinate.Q_IDX] = _on_axis(queries.lo[q, tile], queries.hi[q, tile])
    pieces[Coordinate.KV_IDX] = _on_axis(keys.lo[k, tile], keys.hi[k, tile])
    truth = evaluate((mask,), Box(pieces), known)[mask]
    assert isinstance(truth, Truth)
    live, dead = (_any_piece(some, tile, len(tiles[0])) for some in (truth.can_be_true, truth.can_be_false))
    return np.where(live, np.where(dead, PARTIAL, FULL), EMPTY)


def _gathered(interval: Interval, tiling: Tiling, tiles: tuple[Array, ...]) -> Interval:
    """The range of a coordinate on each of some tiles, as vectors."""
    lo = np.broadcast_to(interval.lo, tiling.shape)[tiles]
    return Interval(lo, lo if interval.is_point else np.broadcast_to(interval.hi, tiling.shape)[tiles])


def _cut(interval: Interval, periods: tuple[Period, ...]) -> Interval:
    """Each stretch cut at its first and its last start of each period, as [pieces, stretches]; some have lo > hi."""
    lo, end = interval.lo, interval.hi + 1
    places = [lo, end]
    for period in periods:
        first = lo + -(lo + period.shift) % period.length
        last = end - (end + period.shift) % period.length
        places += [np.minimum(first, end), np.maximum(last, lo)]
    cuts = np.sort(np.stack(places), axis=0)
    return Interval(cuts[:-1], cuts[1:] - 1)


def _points(values: Array) -> Interval:
    return _on_axis(values, values)


def _on_axis(lo: Array, hi: Array) -> Interval:
    first = lo.reshape(1, 1, 1, -1)
    return Interval(first, first if lo is hi else hi.reshape(1, 1, 1, -1))


def _any_piece(some: Array, tile: Array, count: int) -> Array:
    """Whether any piece of each tile has this."""
    found = np.zeros(count, bool)
    found[tile[np.broadcast_to(some.reshape(-1), tile.shape)]] = True
    return found

"""Tiles of a mask that also asks tables of cells: captured bool tensors over blocks of queries and blocks of keys.

In: a conjunction, the classes of tiles without its tables, a `Tiling`. Out: the classes with them. A table says of a
tile what its least and greatest elements there say; where the rest of the mask cuts through the tile as well, the two
may be true only apart, and the tile is looked at row by row, on stretches of keys on which the tables do not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import gcd

import numpy as np

from attndsl.analysis.axes import axes_of
from attndsl.analysis.bounds import conjuncts, key_ranges
from attndsl.analysis.intervals import Box, Known, evaluate
from attndsl.analysis.rows import key_intervals
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array, Interval, Truth
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Load
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis, Coordinate

EMPTY, PARTIAL, FULL = 0, 1, 2
CELLS_AT_ONCE = 2**18


@lru_cache(maxsize=256)
def split_tables(mask: Expr) -> tuple[Expr, Expr]:
    """A mask as (what is no table, the tables), two conjunctions; the tables are `true` where there are none."""
    terms = conjuncts(mask)
    tables = [term for term in terms if is_table(term)]
    rest = [term for term in terms if not is_table(term)]
    return build.conjunction(rest), build.conjunction(tables)


def with_tables(classes: Array, rest: Expr, tables: Expr, tiling: Tiling, known: Known) -> Array:
    """int8 [B', H', Tq, Tk] for the whole mask, from the classes `rest` has alone."""
    found = np.array(np.broadcast_to(classes, tiling.shape), np.int8)
    for part in _stretches(tiling):
        truth = evaluate((tables,), tiling.tiles(part, slice(0, tiling.kv_tiles)), known)[tables]
        assert isinstance(truth, Truth)
        some = found[:, :, part]
        cut = (some == PARTIAL) & truth.can_be_true & truth.can_be_false
        some[...] = np.where(truth.can_be_true, np.where(truth.can_be_false, np.minimum(some, PARTIAL), some), EMPTY)
        b, h, row, column = np.nonzero(cut)
        row += part.start
        if row.size:
            found[b, h, row, column] = _meet(rest, tables, tiling, known, (b, h, row, column))
    return found


def _meet(rest: Expr, tables: Expr, tiling: Tiling, known: Known, tiles: tuple[Array, ...]) -> Array:
    """Of tiles that both cut through, 1 where some pair may be live and 0 where none is."""
    keys = _cell(tables, tiling.block[1])
    alone = tiling.reduced(rest)
    live = np.zeros(len(tiles[0]), np.int8)
    bounds = [key_intervals(keys_, alone, known, 0, tiling.q_len)[0] for keys_ in key_ranges(rest)]
    step = max(1, CELLS_AT_ONCE // (tiling.block[0] * -(-tiling.block[1] // keys)))
    for start in range(0, len(live), step):
        b, h, row, column = (place[start : start + step].reshape(-1, 1, 1, 1) for place in tiles)
        query = row * tiling.block[0] + np.arange(tiling.block[0]).reshape(1, 1, -1, 1)
        first = column * tiling.block[1] + np.arange(0, tiling.block[1], keys).reshape(1, 1, 1, -1)
        inside = (query < tiling.q_len) & (first < tiling.kv_len)
        query, first = np.minimum(query, tiling.q_len - 1), np.minimum(first, tiling.kv_len - 1)
        last = np.minimum(first + keys, tiling.kv_len) - 1
        truth = evaluate((tables,), _cells(tiling, b, h, query, first, last), known)[tables]
        assert isinstance(truth, Truth)
        reached = np.zeros(inside.shape, bool)
        for bound in bounds:
            at = (b % alone.batch, h % alone.heads, query)
            reached |= np.maximum(bound.lo[at], first) <= np.minimum(bound.hi[at], last)
        live[start : start + step] = (inside & reached & truth.can_be_true).any(axis=(1, 2, 3))
    return live


def _cells(tiling: Tiling, b: Array, h: Array, query: Array, first: Array, last: Array) -> Box:
    offset = tiling.q_offset[b] if len(tiling.q_offset) > 1 else tiling.q_offset[0]
    position = query + offset
    lengths = (np.full((1, 1, 1, 1), length) for length in (tiling.q_len, tiling.kv_len))
    points = dict(zip((Coordinate.B, Coordinate.H, Coordinate.Q_LEN, Coordinate.KV_LEN), (b, h, *lengths), strict=True))
    return Box(
        {
            **{coordinate: Interval(point, point) for coordinate, point in points.items()},
            Coordinate.Q_IDX: Interval(position, position),
            Coordinate.KV_IDX: Interval(first, last),
        }
    )


def is_table(term: Expr) -> bool:
    """Whether a term is an element of a tensor chosen by the query and by the key."""
    return isinstance(term, Load) and {Axis.Q, Axis.K} <= axes_of(term)


def _cell(tables: Expr, size: int) -> int:
    """A length that divides a tile of `size` keys, on stretches of which the indices of the tables are constant."""
    steps = size
    for node in postorder(tables):
        match node:
            case Apply(op=Op.FLOORDIV, args=(left, Const(value=divisor))) if left is build.K:
                steps = gcd(steps, int(divisor))
            case Load(indices=indices) if build.K in indices:
                steps = 1
    return steps


def _stretches(tiling: Tiling) -> Iterator[slice]:
    step = max(1, CELLS_AT_ONCE // max(1, tiling.batch * tiling.heads * tiling.kv_tiles))
    for start in range(0, tiling.q_tiles, step):
        yield slice(start, min(start + step, tiling.q_tiles))

"""Tile tables of masks that ask one captured table of blocks, made where that table lies and not read on the host.

In: a mask `rest and table[b, h, query block, key block]`, of which bounds on the key say all of the rest; the table;
the call. Out: a `TileTable`, or `None` for masks of another form. The table and the keys that queries see by the rest
meet on units: stretches of queries and of keys that neither a tile nor a block of the table cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attndsl.analysis.bounds import conjuncts, key_ranges
from attndsl.analysis.cells import is_table, split_tables
from attndsl.analysis.classes import with_numbers
from attndsl.analysis.ends import prepare
from attndsl.analysis.intervals import Known, evaluate
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Interval
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Load
from attndsl.ir.ops import Op
from attndsl.runtime.tables import Lists, TileTable, listed, turned_tiling

MAX_UNITS = 2**28
"""Units, batches and heads included, up to which they are looked at together."""

FAR = 2**40
"""Beyond every key."""


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """A table `live` [B', H', ...] over blocks of `block` = (queries, keys), and the keys that every query sees beside
    it: from `lo` to `hi`, [B', H', queries]."""

    live: Tensor
    block: tuple[int, int]
    lo: Tensor
    hi: Tensor


def tables_in(mask: Expr) -> tuple[str, ...]:
    """The captured bool tensors that a mask asks about blocks of queries and keys."""
    terms = (term for term in conjuncts(mask) if isinstance(term, Load) and is_table(term))
    return tuple(term.tensor for term in terms)


def routed_table(mask: Expr, table: Tensor, tiling: Tiling, known: Known, lists: Lists) -> TileTable | None:
    """The tiles a kernel walks; `known` need not know the table."""
    if lists is Lists.DIAGONALS:
        return None
    cells = _cells(with_numbers(mask, known), table, tiling.reduced(mask), known)
    if cells is None:
        return None
    classes = _classes(cells, tiling)
    if classes is None:
        return None
    return _walk(classes, tiling) if lists is Lists.KEYS else _walk(classes.mT, turned_tiling(tiling))


def _cells(mask: Expr, table: Tensor, tiling: Tiling, known: Known) -> _Cells | None:
    rest, load = split_tables(mask)
    ranges = key_ranges(rest)
    if not isinstance(load, Load) or len(ranges) != 1 or len(load.indices) != 4:
        return None
    block = _block(load, tiling, known)
    tiling = tiling.reduced(rest)
    source = prepare(ranges[0], tiling, known)
    if block is None or not source.keys.is_exact:
        return None
    query = np.arange(tiling.batch * tiling.heads * tiling.q_len)
    ends = source.ends(query, query)
    if not ends.are_numbers:
        return None
    shape = (tiling.batch, tiling.heads, tiling.q_len)
    lo, hi = (torch.from_numpy(ends.limits[side, 0].reshape(shape)) for side in (0, 2))
    return _Cells(table, block, lo.to(table.device), hi.to(table.device))


def _block(load: Load, tiling: Tiling, known: Known) -> tuple[int, int] | None:
    """The block shape of a table whose blocks are stretches of the call's queries and keys."""
    b, h, row, column = load.indices
    by_pair = all(index is axis or isinstance(index, Const) for index, axis in ((b, build.B), (h, build.H)))
    queries, keys = _divisor(row), _divisor(column)
    if not by_pair or column not in (build.K, build.apply(Op.FLOORDIV, build.K, build.integer(keys))):
        return None
    place = evaluate((row,), tiling.rows(0, tiling.q_len), known)[row]
    assert isinstance(place, Interval)
    is_count = (place.lo == (np.arange(tiling.q_len) // queries).reshape(1, 1, -1, 1)).all()
    return (queries, keys) if is_count else None


def _divisor(index: Expr) -> int:
    match index:
        case Apply(op=Op.FLOORDIV, args=(_, Const(value=value))):
            return int(value)
        case _:
            return 1


def _classes(cells: _Cells, tiling: Tiling) -> Tensor | None:
    """int8 [B', H', query tiles, key tiles]: 0 empty, 1 partial, 2 full."""
    queries, keys = (gcd(*sizes) for sizes in zip(cells.block, tiling.block, strict=True))
    rows, columns = (-(-length // size) for length, size in ((tiling.q_len, queries), (tiling.kv_len, keys)))
    batch, heads = (max(sizes) for sizes in zip(cells.live.shape[:2], cells.lo.shape[:2], strict=True))
    if batch * heads * rows * columns > MAX_UNITS:
        return None
    live = _spread(_spread(cells.live, 2, cells.block[0] // queries, rows), 3, cells.block[1] // keys, columns)
    first = torch.arange(0, tiling.kv_len, keys, device=live.device)
    last = (first + keys).clamp(max=tiling.kv_len) - 1
    some, every = _hulls(cells, queries)
    reached, covered = (some[0] <= last) & (some[1] >= first), (every[0] <= first) & (every[1] >= last)
    units = live.view(torch.int8) * (reached.view(torch.int8) + covered.view(torch.int8))
    per_tile = (tiling.block[0] // queries, tiling.block[1] // keys)
    needed, full = _per_tile(units, per_tile, torch.amax, 0) > 0, _per_tile(units, per_tile, torch.amin, 2) == 2
    return needed.to(torch.int8) + full.to(torch.int8)


def _spread(table: Tensor, axis: int, times: int, length: int) -> Tensor:
    spread = table if times == 1 else table.repeat_interleave(times, axis)
    return spread.narrow(axis, 0, length)


def _hulls(cells: _Cells, queries: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For units of queries the keys around all that some query sees, and those that every one does, [..., units, 1]."""
    is_empty = cells.lo > cells.hi
    lo, hi = torch.where(is_empty, FAR, cells.lo), torch.where(is_empty, -1, cells.hi)

    def over(ends: Tensor, neutral: int) -> Tensor:
        padded = functional.pad(ends, (0, -ends.shape[-1] % queries), value=neutral)
        return padded.view(*ends.shape[:2], -1, queries)

    some = over(lo, FAR).amin(-1, keepdim=True), over(hi, -1).amax(-1, keepdim=True)
    every = over(lo, -1).amax(-1, keepdim=True), over(hi, FAR).amin(-1, keepdim=True)
    return some, every


def _per_tile(units: Tensor, per_tile: tuple[int, int], pick: Callable[..., Tensor], neutral: int) -> Tensor:
    """The least or the greatest of the units of each tile; beyond the lengths there is nothing."""
    rows, columns = (-size % count for size, count in zip(units.shape[2:], per_tile, strict=True))
    if rows or columns:
        units = functional.pad(units, (0, columns, 0, rows), value=neutral)
    # One axis after the other: both at once take several times as long.
    if per_tile[1] > 1:
        units = pick(units.view(*units.shape[:3], -1, per_tile[1]), 4)
    return pick(units.view(*units.shape[:2], -1, per_tile[0], units.shape[3]), 3)


def _walk(classes: Tensor, tiling: Tiling) -> TileTable:
    """The runs of tiles: each record a stretch of partial tiles and the full ones that follow.

    A full tile that overhangs the length is walked as a partial one.
    """
    batch, heads, rows, columns = classes.shape
    whole = torch.arange(columns, device=classes.device) < tiling.kv_len // tiling.block[1]
    classes = torch.where(whole, classes, classes.clamp(max=1))
    flat = functional.pad(classes.reshape(-1, columns), (1, 1))
    before, here = flat[:, :-2], flat[:, 1:-1]
    starts = ((here == 1) & (before != 1)) | ((here == 2) & (before == 0))
    row, column = starts.nonzero(as_tuple=True)
    full = _next(flat[:, 1:] != 1)[row, column]
    end = _next(flat[:, 1:] != 2)[row, full]
    records = (torch.stack([column, full, end], 1) * tiling.block[1]).clamp(max=tiling.kv_len).int()
    counts = functional.pad(starts.sum(1).cumsum(0), (1, 0)).int()
    return listed(records, counts, (batch, heads, rows))


def _next(flags: Tensor) -> Tensor:
    """At every place of a row the first one from there on with the flag; the last one has it."""
    places = torch.arange(flags.shape[1], device=flags.device)
    marked = torch.where(flags, places, flags.shape[1])
    return marked.flip(1).cummin(1).values.flip(1)

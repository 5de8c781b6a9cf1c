"""torch's `BlockMask` in a mask: its lists of blocks as well as its `mask_mod`.

In: the variant of a `mask_mod`, a `BlockMask`, the sizes of a call. Out: the variant of both. A pair is live where its
block is listed and, unless it is listed as full, the mask holds: what compiled FlexAttention computes. Lists that the
mask implies (those of `create_block_mask`) are left out, and with them every table a kernel would read.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from attndsl.analysis.axes import axes_of
from attndsl.diagnostics import CallError, DiagnosticError, Reporter, fail
from attndsl.frontend import bindings
from attndsl.frontend.bindings import Bindings, Leaf
from attndsl.frontend.names import fresh
from attndsl.integrations.traces import Bound, Recent, compile_once
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import Axis, DType
from attndsl.ir.variant import TensorParam, Variant
from attndsl.routing.lists import check_lists, listed_blocks
from attndsl.runtime.versions import version_of

WHOLE = 2**30
"""The block size by which torch says that lists mean nothing: one block, whatever the lengths."""

MAX_COMPARED = 2**22
"""Blocks up to which lists are compared with what the mask says."""

MAX_STANDINGS = 16
"""Masks that one block mask is remembered to have been compared with."""

Sizes = tuple[int, int, int, int]
"""Batch, query heads, queries, keys."""


class Standing(Enum):
    """What lists do to a mask: nothing; take pairs away; also add pairs, in full blocks where it does not hold."""

    IMPLIED = "implied"
    NARROWER = "narrower"
    WIDER = "wider"


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Bool maps [B', H', query blocks, key blocks] of the blocks listed at all, and of those listed as full."""

    block: tuple[int, int]
    listed: Tensor
    full: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Watched:
    """Tensors as they were when something was learnt from them."""

    tensors: tuple[weakref.ref[Tensor], ...]
    versions: tuple[Hashable, ...]

    @staticmethod
    def of(tensors: Iterable[Tensor]) -> _Watched:
        tensors = tuple(tensors)
        return _Watched(tuple(map(weakref.ref, tensors)), tuple(map(version_of, tensors)))

    def are(self, now: _Watched) -> bool:
        """Whether those now are the same tensors, unchanged as far as torch can tell."""
        is_same = len(self.tensors) == len(now.tensors) and None not in now.versions and self.versions == now.versions
        return is_same and all(a() is b() for a, b in zip(self.tensors, now.tensors, strict=True))


@dataclass(slots=True, eq=False)
class _Read:
    """What was read of a `BlockMask`: its lists, and by mask, numbers and sizes what they do to that mask."""

    watched: _Watched
    shape: Hashable
    lists: Lists
    standings: Recent[Hashable, tuple[_Watched, Standing]] = field(default_factory=lambda: Recent(MAX_STANDINGS))


_read: WeakKeyDictionary[Any, _Read] = WeakKeyDictionary()


def with_blocks(bound: Bound, block_mask: Any, sizes: Sizes) -> Bound:
    """The variant of a `mask_mod`, joined with the lists of its `BlockMask`."""
    read = _reading(block_mask, sizes[2:])
    standing = _standing_of(bound, read, sizes)
    if standing is Standing.IMPLIED:
        return bound
    maps = {"blocks": read.lists.listed}
    if standing is Standing.WIDER and read.lists.full is not None:
        maps["full_blocks"] = read.lists.full
    return _joined(bound, maps, read.lists.block)


def _reading(block_mask: Any, lengths: tuple[int, int]) -> _Read:
    """The lists of a block mask, read again where one of its tensors was written to or replaced."""
    given: tuple[Tensor, ...] = (block_mask.kv_indices, block_mask.kv_num_blocks)
    if block_mask.full_kv_num_blocks is not None:
        given = (*given, block_mask.full_kv_indices, block_mask.full_kv_num_blocks)
    watched, shape = _Watched.of(given), (tuple(block_mask.BLOCK_SIZE), lengths)
    known = _read.get(block_mask)
    if known is not None and known.shape == shape and known.watched.are(watched):
        return known
    read = _read[block_mask] = _Read(watched, shape, _lists(block_mask, lengths))
    return read


def _lists(block_mask: Any, lengths: tuple[int, int]) -> Lists:
    block = tuple(block_mask.BLOCK_SIZE)
    rows, columns = (-(-length // size) for length, size in zip(lengths, block, strict=True))
    some = _map(block_mask.kv_indices, block_mask.kv_num_blocks, rows, columns)
    if block_mask.full_kv_num_blocks is None:
        return Lists(block, some, None)
    full = _map(block_mask.full_kv_indices, block_mask.full_kv_num_blocks, rows, columns)
    if bool((some & full).any()):
        message = "`block_mask` lists a block both among those to mask and among the full ones"
        raise fail(CallError, "duplicate-block", message, None, help="list each block once")
    return Lists(block, some | full, full if bool(full.any()) else None)


def _map(indices: Tensor, counts: Tensor, rows: int, columns: int) -> Tensor:
    """The blocks of one pair of lists; batch and head may be left out, and rows beyond the queries are not read."""
    while indices.dim() < 4:
        indices, counts = indices[None], counts[None]
    if indices.shape[2] < rows:
        message = f"`block_mask` lists {indices.shape[2]} rows of blocks, the queries of the call have {rows}"
        raise fail(CallError, "table-shape", message, None, help="make a new block mask for these lengths")
    indices, counts = indices[:, :, :rows], counts[:, :, :rows]
    check_lists(indices, counts, columns)
    return listed_blocks(indices, counts, columns)


def _standing_of(bound: Bound, read: _Read, sizes: Sizes) -> Standing:
    _check_counts(read.lists, sizes)
    if bound.program.source.mask is build.TRUE:  # nothing to compare with: the lists are the mask
        return Standing.IMPLIED if bool(read.lists.listed.all()) else Standing.NARROWER
    values = [captured.value for captured in bound.bindings.captured.values()]
    watched = _Watched.of(value for value in values if isinstance(value, Tensor))
    numbers = tuple(value for value in values if not isinstance(value, Tensor))
    key = (bound.program, numbers, sizes)
    known = read.standings.get(key)
    if known is not None and known[0].are(watched):
        return known[1]
    read.standings.pop(key, None)
    return read.standings.use(key, lambda: (watched, _compared(bound, read.lists, sizes)))[1]


def _check_counts(lists: Lists, sizes: Sizes) -> None:
    """Refuse lists for other numbers of batches or heads: torch takes them modulo what there is."""
    reporter = Reporter(CallError)
    for what, found, wanted in zip(("batches", "heads"), lists.listed.shape, sizes, strict=False):
        if found not in (1, wanted):
            message = f"`block_mask` has lists for {found} {what}, the call has {wanted}"
            reporter.error("table-shape", message, help=f"make it for {wanted} {what}, or for 1 to mean all")
    reporter.check()


def _compared(bound: Bound, lists: Lists, sizes: Sizes) -> Standing:
    """What lists do to the mask, as far as the mask's plan tells: what it leaves open counts as no agreement."""
    batch, heads, *_ = sizes
    tiles = batch * heads * lists.listed.shape[2] * lists.listed.shape[3]
    # A plan's tiles are of tokens as kernels keep them, which a block mask does not know.
    if tiles > MAX_COMPARED or bound.program.source.order is not None:
        return Standing.NARROWER if lists.full is None else Standing.WIDER
    standing = _by_plan(bound, lists, sizes, exact=False)
    missing = _missing(bound.program.source, lists, sizes)
    if standing is Standing.IMPLIED or not missing:
        return standing
    standing = _by_plan(bound, lists, sizes, exact=True)
    if standing is not Standing.IMPLIED:
        raise _one_for_all(missing, sizes)
    return standing


def _by_plan(bound: Bound, lists: Lists, sizes: Sizes, exact: bool) -> Standing:
    batch, heads, q_len, kv_len = sizes
    block = (min(lists.block[0], max(q_len, 1)), min(lists.block[1], max(kv_len, 1)))
    plan = bound.attention.plan(q_len, kv_len, batch=batch, heads=heads, block=block, exact=exact)
    classes, listed = torch.broadcast_tensors(plan.classes(), lists.listed.cpu())
    if lists.full is not None and bool((classes[lists.full.cpu().expand(classes.shape)] != 2).any()):
        return Standing.WIDER
    return Standing.NARROWER if bool(classes[~listed].any()) else Standing.IMPLIED


def _missing(variant: Variant, lists: Lists, sizes: Sizes) -> tuple[str, ...]:
    """What the mask depends on and the lists, made for one of several, do not."""
    axes = axes_of(variant.mask)
    sides = zip((Axis.B, Axis.H), ("b", "h"), lists.listed.shape, sizes, strict=False)
    return tuple(name for axis, name, found, wanted in sides if axis in axes and found == 1 < wanted)


def _one_for_all(missing: tuple[str, ...], sizes: Sizes) -> DiagnosticError:
    named = " and ".join(f"`{name}`" for name in missing)
    message = f"`mask_mod` depends on {named}, but `block_mask` lists blocks as if it did not, and not those of all"
    wanted = ", ".join(f"{name.upper()}={sizes['bh'.index(name)]}" for name in missing)
    help_ = f"make it with `create_block_mask(mask_mod, ..., {wanted})`, or pass `block_mask=mask_mod` itself"
    return fail(CallError, "block-mask-broadcast", message, None, help=help_)


def _joined(bound: Bound, maps: dict[str, Tensor], block: tuple[int, int]) -> Bound:
    """The variant with `blocks[...] and (full_blocks[...] or mask)` for its mask."""
    variant = bound.program.source
    taken = {param.name for param in variant.params} | set(bound.bindings.captured)
    names = {what: fresh(what, taken) for what in maps}
    cells = {what: _cell(names[what], table, block) for what, table in maps.items()}
    mask = variant.mask
    if "full_blocks" in cells:
        mask = build.apply(Op.OR, cells["full_blocks"], mask)
    mask = cells["blocks"] if mask is build.TRUE else build.apply(Op.AND, cells["blocks"], mask)
    params = tuple(TensorParam(name, DType.BOOL, ("B", "H", "Tq", "Tk")) for name in names.values())
    program = compile_once(replace(variant, params=(*variant.params, *params), mask=mask))
    captured = {names[what]: bindings.Bound(table, DType.BOOL, Leaf()) for what, table in maps.items()}
    more = Bindings(
        {**bound.bindings.captured, **captured}, bound.bindings.recipes, (*bound.bindings.params, *names.values())
    )
    return Bound(program, more)


def _cell(name: str, table: Tensor, block: tuple[int, int]) -> Expr:
    """The element of a map at the block of a pair."""
    zero = build.integer(0)
    b, h = (axis if size != 1 else zero for axis, size in ((build.B, table.shape[0]), (build.H, table.shape[1])))
    row, column = (
        index if size == 1 else build.apply(Op.FLOORDIV, index, build.integer(size))
        for index, size in ((build.Q, block[0]), (build.K, block[1]))
    )
    return build.load(name, (b, h, row, column), DType.BOOL)

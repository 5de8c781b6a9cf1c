"""Masks: which keys a query sees.

Positions count from 0 and, with unequal lengths, align top left unless the call gives a `q_offset`. Parameters are
bound by keyword, `sliding_window(window=1024)`, and masks combine with `&`, `|`, `^` and `~`.
"""

from __future__ import annotations

from typing import Any

import torch

from attndsl.frontend.decorators import mask_mod
from attndsl.frontend.grids import require
from attndsl.frontend.symbols import Symbol
from attndsl.library.grids import axial as axial
from attndsl.library.grids import box_window as box_window
from attndsl.library.grids import neighborhood as neighborhood
from attndsl.library.grids import radial as radial
from attndsl.library.grids import shifted_windows as shifted_windows
from attndsl.library.grids import sliding_tiles as sliding_tiles
from attndsl.library.stretches import chunks_of as chunks_of
from attndsl.library.stretches import documents_of as documents_of
from attndsl.library.stretches import spatial_head as spatial_head
from attndsl.library.stretches import temporal_head as temporal_head
from attndsl.library.stretches import vision_cross_attention as vision_cross_attention
from attndsl.library.z_order import morton_neighborhood as morton_neighborhood


@mask_mod
def full() -> bool:
    """Every query sees every key."""
    return True


@mask_mod
def causal(q_idx: Symbol, kv_idx: Symbol) -> Symbol:
    """A query sees the keys up to its own position, itself included."""
    return kv_idx <= q_idx


@mask_mod
def sliding_window(q_idx: Symbol, kv_idx: Symbol, *, window: int) -> Symbol:
    """Includes causality: a query sees exactly `window` keys, itself and the `window - 1` before it."""
    return (kv_idx <= q_idx) & (q_idx - kv_idx < window)


@mask_mod
def band(q_idx: Symbol, kv_idx: Symbol, *, left: int, right: int) -> Symbol:
    """A query sees itself, the `left` keys before it and the `right` keys after it; causal where `right` is 0."""
    require(left >= 0, "`left` counts keys before the query's own, at least 0")
    require(right >= 0, "`right` counts keys after the query's own, at least 0")
    return (q_idx - kv_idx <= left) & (kv_idx - q_idx <= right)


@mask_mod
def dilated_window(q_idx: Symbol, kv_idx: Symbol, *, window: int, dilation: int) -> Symbol:
    """Includes causality: a query sees `window` keys, itself and every `dilation`-th before it."""
    distance = q_idx - kv_idx
    return (distance >= 0) & (distance < window * dilation) & (distance % dilation == 0)


@mask_mod
def dilated_sliding_window(q_idx: Symbol, kv_idx: Symbol, *, window: int, dilation: int) -> Symbol:
    """To both sides: keys at most `window` positions away, every `dilation`-th of them, the query's own included."""
    require(dilation >= 1, "`dilation` counts positions from one key to the next, at least 1")
    distance = q_idx - kv_idx
    return (distance <= window) & (distance >= -window) & (distance % dilation == 0)


@mask_mod
def sinks_and_window(q_idx: Symbol, kv_idx: Symbol, *, sink: int, window: int) -> Symbol:
    """Includes causality: a query sees the first `sink` keys and a window of `window` keys that ends with itself."""
    return (kv_idx <= q_idx) & ((kv_idx < sink) | (q_idx - kv_idx < window))


@mask_mod
def chunked(q_idx: Symbol, kv_idx: Symbol, *, chunk: int) -> Symbol:
    """Includes causality: a query sees the keys of its own chunk of `chunk` >= 1 positions, up to itself."""
    require(chunk >= 1, "`chunk` counts positions, at least 1")
    return (kv_idx <= q_idx) & (kv_idx // chunk == q_idx // chunk)


@mask_mod
def block_causal(q_idx: Symbol, kv_idx: Symbol, *, block: int, window: int, sink: int = 0) -> Symbol:
    """Causal among blocks of `block` positions (frames, chunks): a query sees its own block, later keys of it included.

    Of the blocks up to its own it sees the last `window`, its own being one of them, and always the first `sink`. A
    `window` of 1 is attention within blocks; of at least the number of blocks, all that came before.
    """
    require(block >= 1, "`block` counts positions, at least 1")
    require(window >= 1, "`window` counts blocks, the query's own among them, at least 1")
    require(sink >= 0, "`sink` counts blocks, 0 for none")
    here, there = q_idx // block, kv_idx // block
    return (there <= here) & ((there < sink) | (here - there < window))


@mask_mod
def between(b: Symbol, q_idx: Symbol, kv_idx: Symbol, *, first: Any, end: Any) -> Any:
    """Not causal by itself: a query sees the keys from `first` up to, but not including, `end`.

    Both are int tensors of one number per query, shape (Nq,) or (B, Nq); they may lie outside the keys. A query whose
    `end` is not above its `first` sees nothing.
    """
    return (kv_idx >= _of_query(first, b, q_idx)) & (kv_idx < _of_query(end, b, q_idx))


@mask_mod
def prefix_lm(b: Symbol, q_idx: Symbol, kv_idx: Symbol, *, prefix: Any) -> Any:
    """Causal, and the first `prefix` keys (an int, or an int tensor of one per batch) are seen by every query."""
    return (kv_idx <= q_idx) | (kv_idx < _of_batch(prefix, b))


@mask_mod
def document(b: Symbol, q_idx: Symbol, kv_idx: Symbol, *, doc: Any) -> Any:
    """Not causal by itself: a query sees the keys of its own document; `doc` holds ids, shape (N,) or (B, N)."""
    ids = doc if doc.ndim == 1 else doc[b]
    return ids[q_idx] == ids[kv_idx]


@mask_mod
def padding(b: Symbol, kv_idx: Symbol, *, lengths: Any) -> Any:
    """Not causal by itself: keys from `lengths` on (an int, or an int tensor of one per batch) are unseen."""
    return kv_idx < _of_batch(lengths, b)


def _of_batch(value: Any, b: Symbol) -> Any:
    """The batch's own value, where there is one for each."""
    return value[b] if isinstance(value, torch.Tensor) and value.ndim > 0 else value


def _of_query(value: torch.Tensor, b: Symbol, q_idx: Symbol) -> Any:
    """The query's own value."""
    return value[q_idx] if value.ndim == 1 else value[b, q_idx]

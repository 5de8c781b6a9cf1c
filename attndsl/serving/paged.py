"""Attention over keys and values that lie in pages.

In: an attention, queries `(B, Hq, Nq, Dk)` and a `PagedCache`. Out: what the attention gives for each sequence over the
keys its pages hold, in order. Kernels look pages up as they go: nothing is gathered before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from attndsl.attention import Attention
from attndsl.codegen.plan import Target
from attndsl.compiler import Compilation
from attndsl.diagnostics import CallError, Reporter, UnsupportedError, fail
from attndsl.execution import attend as attend_by_kernels
from attndsl.ir import build
from attndsl.ir.names import free_names
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import substituted
from attndsl.ir.types import DType
from attndsl.ir.variant import TensorParam, Variant
from attndsl.reference import Result, attend
from attndsl.runtime.agreement import check_agreement
from attndsl.runtime.arguments import PagedCall, Value, check_call
from attndsl.runtime.backends import TARGETS, backend_named, chosen
from attndsl.runtime.facts import FactBook
from attndsl.runtime.launch import Rows
from attndsl.runtime.requirements import check_requirements
from attndsl.runtime.statistics import Wanted, wanted_statistics
from attndsl.serving.cache import PagedCache, Pages, pages_of
from attndsl.serving.sequences import BOTTOM_RIGHT

__all__ = ["PagedCache", "paged"]


def paged(
    attention: Attention,
    q: Tensor,
    cache: PagedCache,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    q_offset: int | Tensor | str = BOTTOM_RIGHT,
    return_aux: bool | Iterable[Any] = False,
    backend: str = "auto",
    check: bool = False,
) -> Any:
    """Attend q `(B, Hq, Nq, Dk)` to the keys of a cache: `(B, Hq, Nq, Dv)`, forward only.

    Variants count keys as a sequence has them, whichever pages they lie in; `kv_len` is `kv_lens[b]`. The queries are
    the last tokens of their sequences; `q_offset` says otherwise: the position of the first one, an int or an int
    tensor (B,). `return_aux`: True or a list of "lse" and "max_score". Other arguments are those of an attention.
    """
    _check_kinds(q, cache)
    asked, wanted = backend_named(backend), wanted_statistics(return_aux)
    _check_statistics(wanted)
    pages = pages_of(cache, q.shape[2], q_offset)
    joined = _joined_with(attention._compilation)
    values = attention._values(q.device)
    for kv_len, offset in sorted(pages.distinct) if attention.variant.demands else ():
        check_requirements(attention.variant, values, q.shape[2], kv_len, offset)
    call = _call(joined, {**values, joined.kv_lens: pages.kv_lens}, q, cache, pages, scale, enable_gqa)
    _refuse_gradients(call)
    target = TARGETS.get(chosen(asked, call))
    found = _dense(joined, call, enable_gqa) if target is None else _by_kernels(joined, call, target)
    if check and target is not None:
        _check(found, _dense(joined, call, enable_gqa), q.dtype)
    return found.out if wanted is None else (found.out, wanted.of(found.lse, found.max_score, {}))


@dataclass(frozen=True, slots=True, eq=False)
class _Joined:
    """A variant that sees the keys there are; `kv_lens` is the name of the parameter that says how many."""

    compilation: Compilation
    facts: FactBook
    kv_lens: str


_joined: WeakKeyDictionary[Compilation, _Joined] = WeakKeyDictionary()


def _joined_with(compilation: Compilation) -> _Joined:
    found = _joined.get(compilation)
    if found is None:
        (name,) = free_names(compilation.source, "kv_lens")
        found = _joined[compilation] = _Joined(Compilation(bounded(compilation.source, name)), FactBook(), name)
    return found


def bounded(variant: Variant, name: str) -> Variant:
    """The variant over as many keys as a tensor of that name says.

    before: `mask kv_idx <= q_idx`
    after:  `mask kv_idx < kv_lens[b] and kv_idx <= q_idx`
    """
    length = build.load(name, (build.B,), DType.I64)
    moves = substituted(variant.roots, {build.KV_LEN: length})
    moved = variant.map(moves.__getitem__)
    there = build.apply(Op.LT, build.K, length)
    mask = there if moved.mask is build.TRUE else build.apply(Op.AND, there, moved.mask)
    params = (*variant.params, TensorParam(name, DType.I64, ("B",)))
    origins = variant.origins.moved(moves)
    return replace(moved, mask=mask, params=params, origins=origins, requirements=(), order=None, moved_to_mask=())


def _call(
    joined: _Joined,
    values: Mapping[str, Value],
    q: Tensor,
    cache: PagedCache,
    pages: Pages,
    scale: float | None,
    enable_gqa: bool,
) -> PagedCall:
    k, v = cache.pools
    # As one batch of pages for each sequence: shapes and captured tensors are checked, lengths have been.
    shown = (pool[:1].expand(len(q), *pool.shape[1:]) for pool in (k, v))
    call = check_call(
        joined.compilation.source, values, q, *shown, scale=scale, enable_gqa=enable_gqa, q_offset=pages.q_offset
    )
    return PagedCall(q, k, v, call.scale, call.q_offset, values, pages.table, pages.kv_lens)


def _by_kernels(joined: _Joined, call: PagedCall, target: Target) -> Rows:
    facts = joined.facts.of(joined.compilation.source, joined.compilation.program, call)
    with torch.no_grad():
        return attend_by_kernels(joined.compilation, joined.facts, call, facts, target)


def _dense(joined: _Joined, call: PagedCall, enable_gqa: bool) -> Result:
    """The reference, over keys and values laid side by side."""
    k, v = (_gathered(pool, call) for pool in (call.k, call.v))
    return attend(
        joined.compilation.source,
        call.values,
        call.q,
        k,
        v,
        scale=call.scale,
        enable_gqa=enable_gqa,
        q_offset=call.q_offset,
    )


def _gathered(pool: Tensor, call: PagedCall) -> Tensor:
    """Keys `(B, Hkv, kv_len, D)`, 0 beyond those there are."""
    place = torch.arange(call.kv_len, device=pool.device)
    there = place < call.kv_lens[:, None]
    page = torch.where(there, call.pages.long()[:, place // call.page_size], 0)
    found = pool.transpose(1, 2)[page, place % call.page_size]
    return torch.where(there[..., None, None], found, 0).transpose(1, 2)


def _check(found: Rows | Result, expected: Result, dtype: torch.dtype) -> None:
    for what in ("out", "lse", "max_score"):
        there, wanted = getattr(found, what), getattr(expected, what)
        if wanted is not None:
            check_agreement(what, there, wanted, dtype)


def _refuse_gradients(call: PagedCall) -> None:
    tensors = (call.q, call.k, call.v, *call.values.values())
    if torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in tensors):
        message = "there are no gradients of calls over pages"
        help_ = "call it under `torch.no_grad()`; to train, pass keys side by side, or `ad.varlen`"
        raise fail(UnsupportedError, "paged-gradients", message, help=help_)


def _check_statistics(wanted: Wanted | None) -> None:
    if wanted is not None and not wanted.everything and ("entropy" in wanted.names or wanted.masses):
        message = "calls over pages return `lse` and `max_score` alone"
        raise fail(UnsupportedError, "paged-aux", message, help='pass `return_aux=["lse"]`')


def _check_kinds(q: object, cache: object) -> None:
    reporter = Reporter(CallError)
    if not isinstance(cache, PagedCache):
        message = f"`cache` is of type {type(cache).__name__}, expected an `ad.PagedCache`"
        reporter.error("bad-pages", message, help="make one: `ad.PagedCache(k, v, page_table, kv_lens)`")
    if not isinstance(q, Tensor):
        reporter.error("not-a-tensor", f"`q` is of type {type(q).__name__}, expected a torch tensor")
    elif q.dim() != 4:
        message = f"`q` has shape {tuple(q.shape)}, expected 4 dimensions"
        reporter.error("wrong-rank", message, help="shape it (batch, heads, q_len, head_dim)")
    elif isinstance(cache, PagedCache) and len(q) != len(cache.kv_lens):
        message = f"`q` has batch {len(q)}, the cache is of {len(cache.kv_lens)} sequences"
        reporter.error("batch-mismatch", message)
    reporter.check()

"""Routers: small programs that look at q and k and say which blocks of keys each block of queries sees.

In: how to pool, score, select and keep. Out: a `Router`; called with q and k it gives a `BlockTable`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter
from attndsl.routing.blocks import Blocks, blocks_of
from attndsl.routing.keep import Kept, kept_blocks
from attndsl.routing.pooling import Pool, pooled
from attndsl.routing.scores import Score, block_scores
from attndsl.routing.selection import Selection
from attndsl.routing.table import BlockTable, check_block

Scorer = Callable[[Tensor, Tensor], Tensor]


class Routing(ABC):
    """What chooses blocks for a call. `route(q, k)` is the `BlockTable` of these queries and keys."""

    @abstractmethod
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        q_offset: int | Tensor = 0,
    ) -> BlockTable:
        """The table of q `(B, Hq, Nq, D)` and k `(B, Hkv, Nk, D)`; arguments as of an attention."""


@dataclass(frozen=True, slots=True, eq=False)
class Router(Routing):
    """A router, made by `router`."""

    block: tuple[int, int | Tensor]
    pool_q: Pool
    pool_k: Pool
    score: Score | Scorer | Tensor
    select: Selection
    keep: tuple[Kept, ...]
    causal: bool

    @torch.no_grad()
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        q_offset: int | Tensor = 0,
    ) -> BlockTable:
        """The table of q `(B, Hq, Nq, D)` and k `(B, Hkv, Nk, D)`; arguments as of an attention.

        Head h scores the keys of key head `h // (Hq // Hkv)`. `scale` defaults to `1/sqrt(D)`.
        """
        check_inputs(q, k, enable_gqa, self.block[1])
        blocks = blocks_of(self.block, q.shape[2], k.shape[2], q_offset, q.device)
        kept, allowed = self._kept(blocks), ~blocks.future() if self.causal else None
        scores = self._scores(q, k, blocks, scale)
        if allowed is not None:
            scores, kept = scores.masked_fill(~allowed, -torch.inf), kept & allowed
        scores = scores.masked_fill(scores.isnan(), -torch.inf)
        kept = kept.expand(scores.shape)
        bq, bk = self.block
        return BlockTable(self.select(scores, kept) | kept, (bq, bk.to(q.device) if isinstance(bk, Tensor) else bk))

    def _kept(self, blocks: Blocks) -> Tensor:
        kept = blocks.q_first.new_zeros((1, 1, 1, 1), dtype=torch.bool)
        for rule in self.keep:
            kept = kept | rule(blocks)
        return kept

    def _scores(self, q: Tensor, k: Tensor, blocks: Blocks, scale: float | None) -> Tensor:
        """float32 [B, Hq, query blocks, key blocks]."""
        shape = (*q.shape[:2], *blocks.shape)
        match self.score:
            case Tensor():
                scores = self.score
            case Score():
                scale = (1 / math.sqrt(q.shape[3]) if q.shape[3] else 1.0) if scale is None else scale
                # One query is its own pool: nothing is gathered for it.
                queries = q.float() if self.block[0] == 1 else pooled(q, blocks.query_tokens, self.pool_q)
                scores = block_scores(self.score, queries, k, blocks.key_tokens, self.pool_k, scale)
            case scorer:
                scores = scorer(q, k)
        _check_scores(scores, shape, q.device)
        return scores.float().expand(shape)


def check_inputs(q: Tensor, k: Tensor, enable_gqa: bool, key_block: int | Tensor = 1) -> None:
    """Refuse q and k that do not fit each other, or a tensor of the blocks of other keys."""
    reporter = Reporter(CallError)
    bound = (f"q {tuple(q.shape)}", f"k {tuple(k.shape)}")
    if not (q.dim() == k.dim() == 4 and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]):
        reporter.error("router-shapes", "q and k do not fit each other", None, *bound)
        reporter.check()
    groups = k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0
    if q.shape[1] != k.shape[1] and not (enable_gqa and groups):
        message = f"q has {q.shape[1]} heads, k has {k.shape[1]}"
        help_ = "pass `enable_gqa=True` where key heads divide query heads"
        reporter.error("heads-mismatch", message, None, *bound, help=help_)
    if isinstance(key_block, Tensor) and len(key_block) != k.shape[2]:
        message = f"the router places {len(key_block)} keys in blocks, k has {k.shape[2]}"
        reporter.error("router-shapes", message, None, *bound)
    reporter.check()


def router(
    *,
    block: tuple[int, int | Tensor],
    select: Selection,
    score: str | Scorer | Tensor = "dot",
    pool_q: str | None = None,
    pool_k: str | None = None,
    keep: str | Kept | Iterable[str | Kept] | None = None,
    causal: bool = True,
) -> Router:
    """A router: pool, score, select, keep.

    `block` = (bq, bk): the queries and keys of a block; bq = 1 routes every query on its own, an int tensor for bk
    gives the block of every key. `pool_q`, `pool_k`: "mean" (default), "max" or "min" over a block's tokens.

    `score`: "dot", scale times the product of pooled queries and pooled keys; "bound", the largest score any key within
    the coordinate-wise least and greatest of the block's keys could have; a tensor `[B or 1, H or 1, query blocks, key
    blocks]` of gates; or a function of (q, k) that gives one. `select`: `routers.top_k`, `threshold`, `cumulative`, or
    a function of (scores, kept). `keep`: "sink", "local", "diagonal" and their like, taken whatever their scores;
    default "diagonal" where `causal`.

    `causal`: blocks whose keys all come after a block's last query are never taken; what is causal inside a block is
    the mask's business. Scores are float32 whatever q and k are, ties go to the lowest block, and a block with a NaN
    score (a NaN among its keys) is taken only where it is kept. A router is not differentiated.
    """
    reporter = Reporter(CallError)
    check_block(reporter, block)
    queries, keys = _pool(reporter, "pool_q", pool_q), _pool(reporter, "pool_k", pool_k)
    if not (score in tuple(Score) if isinstance(score, str) else isinstance(score, Tensor) or callable(score)):
        help_ = 'use "dot", "bound", a tensor of gates or a function of (q, k)'
        reporter.error("bad-score", f"there is no score {score!r}", help=help_)
    if not callable(select):
        reporter.error("bad-selection", f"`select` is {select!r}", help="use `ad.routers.top_k(8)` or the like")
    if pool_k is not None and not (isinstance(score, str) and score == "dot"):
        reporter.error("bad-pool", '`pool_k` is for `score="dot"`: this score does not pool keys')
    reporter.check()
    kept = kept_blocks(("diagonal",) if keep is None and causal else keep or ())
    _check_order(block, kept, causal)
    scorer = Score(score) if isinstance(score, str) else score
    return Router(block, queries, keys, scorer, select, kept, causal)


def _check_order(block: tuple[int, int | Tensor], kept: tuple[Kept, ...], causal: bool) -> None:
    """Blocks that are no stretches of keys have no order in time, and one query at a time has one own block."""
    if not isinstance(block[1], Tensor):
        return
    reporter = Reporter(CallError)
    listed = "the blocks of keys are listed, so they are not in the order of positions"
    if causal:
        reporter.error("unordered-blocks", f"{listed}: none is in the future", help="pass `causal=False`")
    if any(rule.needs_order for rule in kept):
        reporter.error("unordered-blocks", f"{listed}: there is no first and no next", help='keep "diagonal" alone')
    if block[0] != 1:
        message = f"{listed}: {block[0]} queries have no one block of their own"
        reporter.error("unordered-blocks", message, help="route each query on its own, with bq = 1")
    reporter.check()


def _pool(reporter: Reporter, name: str, given: str | None) -> Pool:
    if given is not None and given not in tuple(Pool):
        reporter.error("bad-pool", f"there is no `{name}` {given!r}", help='use "mean", "max" or "min"')
        return Pool.MEAN
    return Pool.MEAN if given is None else Pool(given)


def _check_scores(scores: Any, shape: tuple[int, ...], device: torch.device) -> None:
    reporter = Reporter(CallError)
    if not isinstance(scores, Tensor):
        reporter.error("router-scores", f"the scores are a {type(scores).__name__}, expected a float tensor")
        reporter.check()
    found = tuple(scores.shape)
    shared = all(size in (1, every) for size, every in zip(found[:2], shape, strict=False))
    fits = len(found) == 4 and found[2:] == shape[2:] and shared
    if not fits or not scores.is_floating_point():
        names = ("batch", "heads", "query blocks", "key blocks")
        bound = ", ".join(f"{name} {size}" for name, size in zip(names, shape, strict=True))
        message = f"the scores have dtype {scores.dtype}, shape {found}, expected floats {shape}"
        reporter.error("router-scores", message, None, bound, help="batch and heads may be 1")
    if scores.device != device:
        reporter.error("mixed-devices", f"the scores are on {scores.device}, q and k on {device}")
    reporter.check()

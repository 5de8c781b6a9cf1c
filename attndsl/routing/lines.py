"""Vertical and slash lines: the keys that the last queries see most, and the distances at which they do, taken for all
queries.

In: q, k, and how much of the last queries' attention lines must hold. Out: a `BlockTable` of the blocks that lines run
through; `FlexPrefill` chooses for each head between these and a router of pooled blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attndsl.routing.blocks import Blocks, blocks_of
from attndsl.routing.pooling import Pool, pooled
from attndsl.routing.router import Router, Routing, check_inputs
from attndsl.routing.selection import fewest, softmax
from attndsl.routing.table import BlockTable


@dataclass(frozen=True, slots=True, eq=False)
class Recent:
    """What the last queries give to each key `[B, H, kv_len]` and to each distance; and what each block of keys would
    get by the mean of these queries and its mean key, `[B, H, key blocks]`. float64.

    Distances `[B, H, queries + kv_len - 1]` count from that between the first of these queries and the last key.
    """

    keys: Tensor
    distances: Tensor
    means: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class VerticalSlash(Routing):
    """A router, made by `routers.vertical_slash`."""

    mass: float
    block: int

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
        check_inputs(q, k, enable_gqa)
        blocks = blocks_of((self.block, self.block), q.shape[2], k.shape[2], q_offset, q.device)
        if 0 in blocks.shape:
            return BlockTable(q.new_zeros((*q.shape[:2], *blocks.shape), dtype=torch.bool), (self.block, self.block))
        return self.table(recent(q, k, blocks, self.block, scale), blocks)

    def table(self, seen: Recent, blocks: Blocks) -> BlockTable:
        """The blocks of the fewest keys and the fewest distances that hold the mass, and the first and own blocks."""
        kept = (blocks.columns() == 0) | blocks.diagonal()
        live = _columns(fewest(seen.keys, seen.keys > 0, self.mass), blocks) | kept
        live = live | _diagonals(fewest(seen.distances, seen.distances > 0, self.mass), blocks)
        live = (live & ~blocks.future()).expand(*seen.keys.shape[:2], *blocks.shape)
        return BlockTable(live, (self.block, self.block))


@dataclass(frozen=True, slots=True, eq=False)
class FlexPrefill(Routing):
    """A router, made by `routers.flexprefill`."""

    pooled: Router
    lines: VerticalSlash
    divergence: float

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
        found = self.pooled(q, k, scale=scale, enable_gqa=enable_gqa, q_offset=q_offset)
        block = self.lines.block
        blocks = blocks_of((block, block), q.shape[2], k.shape[2], q_offset, q.device)
        if 0 in blocks.shape:
            return found
        seen = recent(q, k, blocks, block, scale)
        is_pooled = (_divergence(seen, blocks) < self.divergence)[..., None, None]
        return BlockTable(torch.where(is_pooled, found.live, self.lines.table(seen, blocks).live), found.block)


def recent(q: Tensor, k: Tensor, blocks: Blocks, rows: int, scale: float | None) -> Recent:
    """What the last `rows` queries see, head by head: no more than one head's attention is kept at a time."""
    scale = 1 / math.sqrt(max(1, q.shape[3])) if scale is None else scale
    group, rows = q.shape[1] // max(1, k.shape[1]), min(rows, q.shape[2])
    position = blocks.q_last[:, -1:] - torch.arange(rows - 1, -1, -1, device=q.device)
    keys, means = torch.arange(k.shape[2], device=k.device), pooled(k, blocks.key_tokens, Pool.MEAN)
    hidden, future = keys > position[..., None], blocks.future()[:, 0, -1:]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for head in range(q.shape[1]):
        queries = q[:, head, q.shape[2] - rows :].float()
        attention = _weights(queries, k[:, head // group].float(), scale, hidden)
        mean = _weights(queries.mean(1, keepdim=True), means[:, head // group], scale, future)
        found.append((attention.sum(1), _by_distance(attention), mean.sum(1)))
    return Recent(*(torch.stack(parts, 1) for parts in zip(*found, strict=True)))


def _weights(queries: Tensor, keys: Tensor, scale: float, hidden: Tensor) -> Tensor:
    """softmax over keys, float64 [B, queries, keys]; 0 where hidden or where the score is NaN, and in rows of those."""
    scores = scale * (queries @ keys.transpose(-1, -2))
    return softmax(scores.masked_fill(hidden | scores.isnan(), -torch.inf))


def _by_distance(attention: Tensor) -> Tensor:
    """Sums along diagonals, [B, queries + keys - 1]."""
    rows, keys = attention.shape[-2:]
    # Read as rows shorter by one than they are, each row stands one place further right than the row before.
    padded = functional.pad(attention.flip(-1), (0, rows)).flatten(-2)
    return padded[..., : rows * (rows + keys - 1)].reshape(-1, rows, rows + keys - 1).sum(-2)


def _columns(lines: Tensor, blocks: Blocks) -> Tensor:
    """Blocks that hold a key of a line, [B, H, 1, key blocks]."""
    tokens = blocks.key_tokens
    return (lines[..., tokens.clamp(min=0)] & (tokens >= 0)).any(-1)[:, :, None]


def _diagonals(lines: Tensor, blocks: Blocks) -> Tensor:
    """Blocks that hold a query and a key as far apart as a line says, [B, H, query blocks, key blocks]."""
    before = functional.pad(lines.long().cumsum(-1), (1, 0))
    (first, last), (first_key, last_key) = (
        (tokens[:, 0], tokens.amax(1)) for tokens in (blocks.query_tokens, blocks.key_tokens)
    )
    # The last place is that of the last query and the first key.
    farthest = lines.shape[-1] - 1 - last[-1]
    least, most = first[:, None] - last_key + farthest, last[:, None] - first_key + farthest
    return before[..., (most + 1).clamp(0, lines.shape[-1])] > before[..., least.clamp(0, lines.shape[-1])]


def _divergence(seen: Recent, blocks: Blocks) -> Tensor:
    """The square root of the Jensen-Shannon divergence between what blocks get and what their means say, [B, H]."""
    shares = seen.means.new_zeros(seen.means.shape).index_add_(2, blocks.key_block.long(), seen.keys)
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    middle = (shares + seen.means) / 2
    apart = [torch.xlogy(part, part) - torch.xlogy(part, middle) for part in (shares, seen.means)]
    return (torch.stack(apart).sum((0, -1)) / 2).clamp(min=0).sqrt()

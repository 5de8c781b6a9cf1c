"""FlexAttention written out densely: what lists of blocks, masks and score mods mean, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Mod = Callable[..., Any] | None


def coordinates(sizes: tuple[int, int, int, int]) -> tuple[Tensor, ...]:
    """b, h, q and kv of every pair, to broadcast."""
    shapes = ((-1, 1, 1, 1), (1, -1, 1, 1), (1, 1, -1, 1), (1, 1, 1, -1))
    return tuple(torch.arange(size).reshape(shape) for size, shape in zip(sizes, shapes, strict=True))


def listed(indices: Tensor, counts: Tensor, block: tuple[int, int], sizes: tuple[int, int, int, int]) -> Tensor:
    """The pairs in listed blocks, block by block."""
    found = torch.zeros(sizes, dtype=torch.bool)
    for b in range(sizes[0]):
        for h in range(sizes[1]):
            at = (b % indices.shape[0], h % indices.shape[1])
            for row in range(-(-sizes[2] // block[0])):
                for column in indices[at][row, : counts[at][row]].tolist():
                    rows = slice(row * block[0], (row + 1) * block[0])
                    found[b, h, rows, column * block[1] : (column + 1) * block[1]] = True
    return found


def live_pairs(block_mask: BlockMask | Mod, sizes: tuple[int, int, int, int]) -> Tensor:
    """The pairs that compiled FlexAttention sees."""
    if block_mask is None:
        return torch.ones(sizes, dtype=torch.bool)
    if not isinstance(block_mask, BlockMask):
        return torch.as_tensor(block_mask(*coordinates(sizes))).expand(sizes)
    block = block_mask.BLOCK_SIZE
    pairs = torch.as_tensor(block_mask.mask_mod(*coordinates(sizes))).expand(sizes)
    pairs = pairs & listed(block_mask.kv_indices, block_mask.kv_num_blocks, block, sizes)
    if block_mask.full_kv_num_blocks is not None:
        pairs = pairs | listed(block_mask.full_kv_indices, block_mask.full_kv_num_blocks, block, sizes)
    return pairs


def dense(
    q: Tensor, k: Tensor, v: Tensor, score_mod: Mod = None, block_mask: Any = None, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, lse and largest score of every row; a row without live pairs has output 0 and -inf for both."""
    sizes = (*q.shape[:3], k.shape[2])
    group = q.shape[1] // k.shape[1]
    k, v = (x.expand(sizes[0], -1, -1, -1).repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    if score_mod is not None:
        scores = score_mod(scores, *coordinates(sizes))
    live = live_pairs(block_mask, sizes)
    scores = torch.where(live, scores, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    shift = torch.where(top.isfinite(), top, 0.0).detach()
    weights = torch.where(live, (scores - shift).exp(), 0.0)
    total = weights.sum(-1, keepdim=True)
    out = (weights / torch.where(total == 0, 1.0, total)) @ v
    return out, (total.log() + shift).squeeze(-1), top.squeeze(-1)


def normal(*shape: int, seed: int = 0, **more: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **more)


def inputs(
    sizes: tuple[int, int, int, int], kv_heads: int | None = None, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """q, k and v, of head dimensions 8 and 5, that require grad."""
    batch, heads, q_len, kv_len = sizes
    kv_heads = heads if kv_heads is None else kv_heads
    shapes = ((batch, heads, q_len, 8), (batch, kv_heads, kv_len, 8), (batch, kv_heads, kv_len, 5))
    return [normal(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]


def ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of a bool map of blocks: counts, and columns, what stands beyond the counts being another row's."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int(), order.int()

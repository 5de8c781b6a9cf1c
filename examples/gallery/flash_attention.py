"""Exact attention in tiles with a running softmax, over all blocks or over chosen ones: causal training."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

BLOCK = 32

attention = ad.attention(mask_mod=ad.masks.causal, name="flash_attention")


def inputs(size: Size, draw: Draw) -> Inputs:
    blocks = -(-size.length // BLOCK)
    return {**draw.qkv(size, kv_heads=size.heads // 2), "kept": draw.uniform(0, 1, 1, size.heads, blocks, blocks) > 0.4}


def run(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Every block, and those whose bit is set."""
    blocks = -(-q.shape[2] // BLOCK)
    shaped("kept", kept, len(kept), q.shape[1], blocks, blocks)
    table = ad.BlockTable(kept, block=(BLOCK, BLOCK))
    return attention(q, k, v, enable_gqa=True), attention(q, k, v, enable_gqa=True, blocks=table)


def formula(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """O = softmax(Q K^T / sqrt(d)) V under the causal mask; then with scores of dropped blocks at -inf."""
    group, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    live = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    bits = kept.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)[..., :length, :length]
    return _attend(scores, live, v), _attend(scores, live & bits, v)


def _attend(scores: Tensor, live: Tensor, v: Tensor) -> Tensor:
    exponents = torch.where(live, (scores - scores.amax(-1, keepdim=True)).exp(), 0.0)
    total = exponents.sum(-1, keepdim=True)
    return exponents @ v / torch.where(total == 0, 1.0, total)


ENTRY = Entry(
    systems=("FlashAttention", "FlashAttention-3"),
    paper="FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
    year=2022,
    conventions="The operator of both is exact softmax attention, causal here, with grouped heads; the second result "
    "is the block-sparse one. What the third generation adds is how a Hopper GPU computes it; its FP8 is not here.",
    pitfall="A row all of whose blocks are dropped has no key: its output is 0, not the mean of the values, not NaN.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"kept": [torch.ones(1, 3, 4, 4).bool(), torch.ones(1, 4, 3, 4).bool()]},
    source="the authors' repository: causal masks align at the end where lengths differ, which an offset says here",
    usual=Size(1, 16, 4096, 128),
)

"""Static sparse causal attention: near blocks, the first block, and blocks at distances that are powers of two."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = """
attention power(block: int = 64, window: int = 4) {
    require block >= 1, "`block` counts tokens, at least 1"
    require window >= 1, "`window` counts blocks, the query's own among them, at least 1"
    let apart = q_idx // block - kv_idx // block
    mask  kv_idx <= q_idx and (kv_idx < block or apart < window or apart & (apart - 1) == 0)
}
"""
attention = ad.parse(TEXT).power


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "block": max(4, size.length // 64), "window": 6}


def run(q: Tensor, k: Tensor, v: Tensor, block: int, window: int) -> Tensor:
    return attention.bind(block=block, window=window)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, block: int, window: int) -> Tensor:
    """Softmax over block 0, the last `window` blocks, and blocks 1, 2, 4, 8, ... before the query's own."""
    length = q.shape[2]
    blocks = torch.arange(length, device=q.device) // block
    powers = torch.tensor([2**n for n in range(length.bit_length())], device=q.device)
    apart = blocks[:, None] - blocks[None, :]
    live = (blocks == 0) | (apart < window) | torch.isin(apart, powers)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live.tril(), -torch.inf)
    return scores.softmax(-1) @ v


ENTRY = Entry(
    systems=("PowerAttention",),
    paper="PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention",
    year=2025,
    conventions="Causal. Distances are between blocks; the first block is a sink, `window` counts the own block.",
    pitfall="A power of two is told by d & (d - 1) == 0, which also holds at d = 0 and must not be asked of d < 0. A "
    "window below 4 adds nothing to the powers 1 and 2.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The paper's abstract and its figure of 128 blocks (the authors' page), which show distances between blocks",
    refuses={"block": 0, "window": 0},
    usual=Size(1, 8, 4096, 128),
)

"""Heads share the context out among themselves: near blocks, and every stride-th block, other ones to each head."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = """
attention s2(block: int = 64, near: int = 16, stride: int = 16, step: int = 1, offset: int = 0, sparse: int = 8) {
    require block >= 1, "`block` counts tokens, at least 1"
    require near >= 1, "`near` counts blocks, the query's own among them, at least 1"
    require stride >= 1, "`stride` counts blocks, at least 1"
    require step >= 0, "`step` is how many blocks the next head is shifted by, at least 0"
    require offset >= 0, "`offset` counts blocks, at least 0"
    let here = q_idx // block
    let there = kv_idx // block
    mask  kv_idx <= q_idx and (here - there < near or (there + h * step + offset) % stride == 0 or h >= sparse)
}
"""
attention = ad.parse(TEXT).s2


def inputs(size: Size, draw: Draw) -> Inputs:
    block = max(4, size.length // 64)
    return {**draw.qkv(size), "block": block, "near": 2, "stride": 8, "offset": 1, "dense": 1}


def run(q: Tensor, k: Tensor, v: Tensor, block: int, near: int, stride: int, offset: int, dense: int) -> Tensor:
    heads = q.shape[1]
    ad.require(0 <= dense <= heads, f"`dense` counts heads that see all, 0 to {heads}")
    sparse, step = heads - dense, max(1, stride // heads)
    return attention.bind(block=block, near=near, stride=stride, step=step, offset=offset, sparse=sparse)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, block: int, near: int, stride: int, offset: int, dense: int) -> Tensor:
    """Block maps of the heads, spread over tokens and cut along the diagonal."""
    heads, length = q.shape[1:3]
    count = -(-length // block)
    maps = torch.zeros(heads, count, count, dtype=torch.bool, device=q.device)
    for head in range(heads):
        for i in range(count):
            first = (-head * max(1, int(stride / heads)) - offset) % stride
            maps[head, i, max(0, i - near + 1) : i + 1] = True
            maps[head, i, first : i + 1 : stride] = True
    maps[heads - dense :] = True
    live = maps.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :length, :length].tril()
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("S2-Attention (DKernel)",),
    paper="Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads",
    year=2024,
    conventions="Causal. Far blocks are counted from the start of the sequence; the last `dense` heads see everything.",
    pitfall="Under tensor parallelism the head in the pattern is the model's, not the device's: `offset` grows "
    "by a step for each head before the device's first.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The mask of the authors' dkernel (offset 0); Phi-3-small as served by vLLM has the same with offset 1",
    refuses={"block": 0, "near": 0, "stride": 0, "offset": -1, "dense": 99},
    usual=Size(1, 8, 4096, 128),
)

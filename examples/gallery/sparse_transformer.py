"""Two kinds of head: one reads the recent past, the other every l-th token before."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.mask_mod
def strided(h, q_idx, kv_idx, *, stride: int):
    ad.require(stride >= 1, "`stride` counts tokens, at least 1")
    distance = q_idx - kv_idx
    return (distance >= 0) & ad.where(h % 2 == 0, distance < stride, distance % stride == 0)


@ad.mask_mod
def fixed(h, q_idx, kv_idx, *, stride: int, summary: int):
    ad.require((summary >= 1) & (summary <= stride), "`summary` counts the last tokens of a block, 1 to `stride`")
    block = kv_idx // stride == q_idx // stride
    return (kv_idx <= q_idx) & ad.where(h % 2 == 0, block, kv_idx % stride >= stride - summary)


by_stride = ad.attention(mask_mod=strided, name="sparse_transformer_strided")
by_block = ad.attention(mask_mod=fixed, name="sparse_transformer_fixed")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "stride": 16, "summary": 4}


def run(q: Tensor, k: Tensor, v: Tensor, stride: int, summary: int) -> tuple[Tensor, Tensor]:
    return by_stride.bind(stride=stride)(q, k, v), by_block.bind(stride=stride, summary=summary)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, stride: int, summary: int) -> tuple[Tensor, Tensor]:
    """Even heads A^(1), odd heads A^(2), for both factorisations of the paper; rows without a key are 0."""
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(q.shape[2])[None, :]
    odd = (torch.arange(q.shape[1]) % 2 == 1)[:, None, None]
    past = j <= i
    near, far = past & (i - j < stride), past & ((i - j) % stride == 0)
    block, last = past & (j // stride == i // stride), past & (j % stride >= stride - summary)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    masks = torch.where(odd, far, near), torch.where(odd, last, block)
    first, second = (scores.masked_fill(~live, -torch.inf).softmax(-1).nan_to_num(0.0) @ v for live in masks)
    return first, second


ENTRY = Entry(
    systems=("Sparse Transformer",),
    paper="Generating Long Sequences with Sparse Transformers",
    year=2019,
    conventions="Causal, the query's own token included. Even heads take the first pattern, odd heads the second.",
    pitfall="In the fixed pattern the first tokens see no summary column before one has passed: such rows are 0.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"stride": 0, "summary": 0},
)

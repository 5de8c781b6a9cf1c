"""Keys are grouped more than values: query heads, value heads and key heads are three different numbers."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="diff_qkv")


def inputs(size: Size, draw: Draw) -> Inputs:
    """A quarter as many key heads as query heads, half as many value heads."""
    given = draw.qkv(size, kv_heads=size.heads // 4)
    return {**given, "v": draw.normal(size.batch, size.heads // 2, size.length, size.head_dim)}


def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    divides = q.shape[1] % v.shape[1] == 0 and v.shape[1] % k.shape[1] == 0
    ad.require(divides, "the heads of `v` divide those of `q` and are a multiple of those of `k`")
    return attention(q, k.repeat_interleave(v.shape[1] // k.shape[1], 1), v, enable_gqa=True)


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Head h: softmax(Q_h K_i^T / sqrt(d)) V_j, i = h H_k / H_q and j = h H_v / H_q, rounded down."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    heads = []
    for h in range(q.shape[1]):
        scores = q[:, h] @ k[:, h * k.shape[1] // q.shape[1]].mT / q.shape[-1] ** 0.5
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        heads.append(weights @ v[:, h * v.shape[1] // q.shape[1]])
    return torch.stack(heads, 1)


ENTRY = Entry(
    systems=("DiffQKV (Sigma)",),
    paper="Sigma: Differential Rescaling of Query, Key and Value for Efficient Language Models",
    year=2025,
    conventions="Causal. Queries come projected, from their wider space, to the width of a key. Values are read for "
    "all keys: leaving out those of small weight is an approximation on top.",
    pitfall="A query head has one index among key heads and another among value heads; a kernel of one index needs "
    "keys repeated up to the value heads, though the cache is not.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"v": torch.zeros(2, 3, 97, 32), "k": torch.zeros(2, 4, 97, 32)},
    usual=Size(1, 16, 4096, 128),
)

"""Attention of layers compressed to low rank: queries, keys and values are formed from their factors for the call."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(name="flash_svd")


def inputs(size: Size, draw: Draw) -> Inputs:
    """`x` (B, N, M); of each projection the factors (M, r) and (r, H D)."""
    width, wide = 3 * size.head_dim // 2, size.heads * size.head_dim
    ranks = {"q": 12, "k": 10, "v": 14}
    tall = {f"{name}_in": draw.normal(width, rank) / width**0.5 for name, rank in ranks.items()}
    flat = {f"{name}_out": draw.normal(rank, wide) / rank**0.5 for name, rank in ranks.items()}
    return {"x": draw.normal(size.batch, size.length, width), **tall, **flat, "heads": size.heads}


def run(x: Tensor, heads: int, **factors: Tensor) -> Tensor:
    """Two thin products make each of queries, keys and values; the product of two factors is never made."""
    ad.require(heads >= 1 and factors["q_out"].shape[1] % heads == 0, "`heads` divides the width of the projections")
    for name in ("k_out", "v_out"):
        shaped(name, factors[name], len(factors[name]), factors["q_out"].shape[1])
    q, k, v = (_heads(x @ factors[f"{name}_in"] @ factors[f"{name}_out"], heads) for name in "qkv")
    return attention(q, k, v)


def formula(x: Tensor, heads: int, **factors: Tensor) -> Tensor:
    """softmax(X Wq (X Wk)^T / sqrt(d)) X Wv, each W = U V of its factors, head by head."""
    wq, wk, wv = (factors[f"{name}_in"] @ factors[f"{name}_out"] for name in "qkv")
    d = wq.shape[1] // heads
    outs = []
    for head in range(heads):
        own = slice(head * d, (head + 1) * d)
        scores = (x @ wq[:, own]) @ (x @ wk[:, own]).mT / d**0.5
        outs.append(scores.softmax(-1) @ (x @ wv[:, own]))
    return torch.stack(outs, 1)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


ENTRY = Entry(
    systems=("FlashSVD",),
    paper="FlashSVD: Memory-Efficient Inference with Streaming for Low-Rank Models",
    year=2025,
    conventions="Softmax over all keys, as in the encoders of the paper. Factors are multiplied before the call; "
    "forming tiles of them inside the loop is left out.",
    pitfall="A projection's rank is not the head dim: the scale is that of the full head.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"heads": [0, 5], "k_out": torch.zeros(10, 127), "v_out": torch.zeros(14, 64)},
    trained=False,
    usual=Size(1, 12, 4096, 64),
)

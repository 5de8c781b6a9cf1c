"""Keys and values are the hidden states themselves, once for all heads: projections move to queries and outputs."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(mask_mod=ad.masks.padding(lengths=ad.IntTensor["B"]), name="el_attention")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = size.heads * size.head_dim
    weights = {f"w_{name}": draw.normal(size.heads, width, size.head_dim) / width**0.5 for name in "qkv"}
    return {
        "x": draw.normal(size.batch, size.length // 4, width),
        "hidden": draw.normal(size.batch, size.length, width),
        "lengths": draw.integers(1, size.length + 1, size.batch),
        **weights,
        "w_o": draw.normal(size.heads, size.head_dim, width) / width**0.5,
    }


def run(x: Tensor, hidden: Tensor, lengths: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
    """A head is as wide as the model."""
    shaped("lengths", lengths, len(hidden))
    ad.require(((lengths >= 1) & (lengths <= hidden.shape[1])).all(), "`lengths` count hidden states, at least 1")
    q = torch.einsum("bnc,hcd,hed->bhne", x, w_q, w_k)
    cache, scale = hidden[:, None], w_k.shape[-1] ** -0.5
    out = attention.bind(lengths=lengths)(q, cache, cache, scale=scale, enable_gqa=True)
    return torch.einsum("bhne,hed,hdc->bnc", out, w_v, w_o)


def formula(x: Tensor, hidden: Tensor, lengths: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
    """Multi-head attention as it was: sum_h softmax(X W_Q (H W_K)^T / sqrt(d)) H W_V W_O."""
    dead = torch.arange(hidden.shape[1], device=x.device) >= lengths[:, None, None]
    total = torch.zeros_like(x)
    for a, b, c, d in zip(w_q, w_k, w_v, w_o, strict=True):
        scores = (x @ a) @ (hidden @ b).mT / b.shape[-1] ** 0.5
        total = total + scores.masked_fill(dead, -torch.inf).softmax(-1) @ (hidden @ c) @ d
    return total


ENTRY = Entry(
    systems=("EL-attention",),
    paper="EL-Attention: Memory Efficient Lossless Attention for Generation",
    year=2021,
    conventions="A decoder attends to the states of an encoder, padded. The scale is that of the heads before. "
    "Kernels take heads up to 256 wide, so that is the widest model.",
    pitfall="Rotary positions would stand between the two projections and break the identity; biases of keys shift "
    "whole rows and cancel, those of values are added after.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"lengths": [torch.zeros(2).int(), torch.full((2,), 98), torch.ones(3).int()]},
    trained=False,
    usual=Size(1, 4, 4096, 64),
)

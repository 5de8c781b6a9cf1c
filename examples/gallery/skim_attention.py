"""Documents read by their layout: boxes on the page give queries and keys, once for all layers, words the values."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.parse("attention skim(lengths: int tensor[B]) { mask kv_idx < lengths[b] }").skim


def inputs(size: Size, draw: Draw) -> Inputs:
    width = 24
    return {
        "layout": draw.normal(size.batch, size.length, width),
        "to_q": draw.normal(size.heads, width, size.head_dim) / width**0.5,
        "to_k": draw.normal(size.heads, width, size.head_dim) / width**0.5,
        "v": draw.normal(size.batch, size.heads, size.length, 2 * size.head_dim),
        "to_v": draw.normal(size.heads, 2 * size.head_dim, 2 * size.head_dim) / size.head_dim**0.5,
        "lengths": draw.integers(size.length // 2, size.length + 1, size.batch),
    }


def run(layout: Tensor, to_q: Tensor, to_k: Tensor, v: Tensor, to_v: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Two layers of the same weights, computed anew from queries and keys that are kept."""
    ad.require((lengths >= 1) & (lengths <= layout.shape[1]), "`lengths` counts words of each document, 1 to all")
    q, k = (torch.einsum("bnc,hcd->bhnd", layout, weight) for weight in (to_q, to_k))
    skim = attention(lengths=lengths)
    first = skim(q, k, v)
    return first, skim(q, k, first @ to_v)


def formula(
    layout: Tensor, to_q: Tensor, to_k: Tensor, v: Tensor, to_v: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """A = softmax(Q K^T / sqrt(d)) of the layout alone; O = A V, and the next layer A V' with the same A."""
    scores = torch.einsum("bic,hcd,hed,bje->bhij", layout, to_q, to_k, layout) / to_q.shape[-1] ** 0.5
    padding = torch.arange(layout.shape[1], device=layout.device) >= lengths[:, None]
    weights = scores.masked_fill(padding[:, None, None], -torch.inf).softmax(-1)
    return weights @ v, weights @ (weights @ v @ to_v)


ENTRY = Entry(
    systems=("Skim-Attention",),
    paper="Skim-Attention: Learning to Focus via Document Layout",
    year=2021,
    conventions="`layout` embeds the boxes of words. Values are wider than queries; padding is no key.",
    pitfall="Weights are shared across layers, yet keeping them takes a number to a pair: they are made again instead.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"lengths": torch.zeros(2, dtype=torch.int64)},
)

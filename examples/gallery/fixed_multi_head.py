"""Heads as wide as the sequence is long, however many there are, so that their maps are not of low rank."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(name="fixed_multi_head")


def inputs(size: Size, draw: Draw) -> Inputs:
    width, heads = 2 * size.head_dim, (size.heads, 2 * size.head_dim, size.head_dim)
    return {
        "x": draw.normal(size.batch, size.length, width),
        "w_q": draw.normal(*heads) / width**0.5,
        "w_k": draw.normal(*heads) / width**0.5,
        "w_v": draw.normal(*heads) / width**0.5,
        "w_o": draw.normal(size.heads, size.head_dim, width) / (size.heads * size.head_dim) ** 0.5,
    }


def run(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
    for name, weight in {"w_k": w_k, "w_v": w_v}.items():
        shaped(name, weight, *w_q.shape)
    shaped("w_o", w_o, len(w_q), w_q.shape[-1], w_o.shape[-1])
    out = attention(*(torch.einsum("bnd,hdp->bhnp", x, weight) for weight in (w_q, w_k, w_v)))
    return torch.einsum("bhnp,hpd->bnd", out, w_o)


def formula(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
    """sum_h softmax(X W_q^h (X W_k^h)^T / sqrt(d_p)) X W_v^h W_o^h, d_p chosen, not d / h."""
    heads = []
    for q, k, v, o in zip(w_q, w_k, w_v, w_o, strict=True):
        weights = ((x @ q) @ (x @ k).mT / q.shape[-1] ** 0.5).softmax(-1)
        heads.append(weights @ (x @ v) @ o)
    return torch.stack(heads).sum(0)


ENTRY = Entry(
    systems=("FixedMultiHead (low-rank bottleneck)",),
    paper="Low-Rank Bottleneck in Multi-head Attention Models",
    year=2020,
    conventions="Plain softmax attention in its setting: the model is 2 heads wide and has 4 or more. Head dims reach "
    "256 here; the paper's 128 were for sequences of 128.",
    pitfall="The scores are divided by the root of the head's own width, which no longer follows from model and heads.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"w_k": torch.zeros(3, 64, 32), "w_v": torch.zeros(4, 64, 16), "w_o": torch.zeros(4, 16, 64)},
    usual=Size(1, 8, 4096, 128),
)

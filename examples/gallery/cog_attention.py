"""Weights that may be negative: softmax of the score's size, with the score's sign."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.normalizer
def signed_softmax(score):
    size = ad.abs(score)
    e = ad.exp(size - ad.row_max(size))
    return ad.where(score < 0, -e, ad.where(score > 0, e, 0.0)) / ad.row_sum(e)


attention = ad.attention(mask_mod=ad.masks.causal, normalizer=signed_softmax, name="cog")


def inputs(size: Size, draw: Draw) -> Inputs:
    return draw.qkv(size)


def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """W = sign(S) * softmax(|S|), S = Q K^T / sqrt(d)."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    live = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.abs().masked_fill(~live, -torch.inf).softmax(-1)
    return (scores.sign() * weights) @ v


ENTRY = Entry(
    systems=("Cog Attention",),
    paper="More Expressive Attention with Negative Weights",
    year=2024,
    conventions="Causal. The divisor sums the sizes, so a row of weights sums to between -1 and 1.",
    pitfall="A masked pair adds nothing to the divisor: mask before taking the size, or exp(|-inf|) is infinite.",
    inputs=inputs,
    run=run,
    formula=formula,
)

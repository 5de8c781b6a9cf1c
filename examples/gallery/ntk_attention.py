"""Stands in for an endless learned prefix by its sums over feature maps: a matrix and a vector to each head."""

import torch
from torch import Tensor
from torch.nn import functional as F

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="ntk_attention")


def inputs(size: Size, draw: Draw) -> Inputs:
    d = size.head_dim
    return {**draw.qkv(size), "state": draw.normal(size.heads, d, d), "total": draw.normal(size.heads, d)}


def run(q: Tensor, k: Tensor, v: Tensor, state: Tensor, total: Tensor) -> Tensor:
    """The prefix is one more part of the row: its divisor is the features' product with `total`."""
    h, d = q.shape[1], q.shape[-1]
    ad.require(state.shape == (h, d, d), "`state` has a matrix for each head")
    ad.require(total.shape == (h, d), "`total` has a vector for each head")
    features = F.elu(q / q.shape[-1] ** 0.25) + 1
    divisor = (features * total.abs()[:, None]).sum(-1)
    prefix = features @ state / divisor[..., None]
    out, _ = ad.merge(attention(q, k, v, return_aux=["lse"]), (prefix, divisor.log()))
    return out


def formula(q: Tensor, k: Tensor, v: Tensor, state: Tensor, total: Tensor) -> Tensor:
    """(sum_j exp(s_ij) v_j + phi(q_i) Z) / (sum_j exp(s_ij) + phi(q_i) |k|), phi(x) = elu(x / d^(1/4)) + 1."""
    x = q / q.shape[-1] ** 0.25
    phi = torch.where(x > 0, x + 1, x.clamp(max=0).exp())
    raised = (q @ k.mT / q.shape[-1] ** 0.5).exp().tril()
    above = raised @ v + torch.einsum("bhnd,hde->bhne", phi, state)
    below = raised.sum(-1) + torch.einsum("bhnd,hd->bhn", phi, total.abs())
    return above / below[..., None]


ENTRY = Entry(
    systems=("NTK-Attention",),
    paper="Toward Infinite-Long Prefix in Transformer",
    year=2024,
    conventions="Causal among tokens; the prefix is seen by all. The vector is taken by its absolute value, so that "
    "divisors stay positive.",
    pitfall="The prefix's terms are not divided by the exponential of the row's largest score: they must be brought to "
    "its scale, and a gradient runs through the logarithm of the divisor.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the demonstration `ntk_attn` of the authors' code",
    refuses={"state": torch.zeros(1, 32, 32), "total": torch.zeros(1, 32)},
)

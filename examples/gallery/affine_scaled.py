"""The softmax weight of every visible key is scaled and shifted by two numbers of the query."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = ad.parse("""
attention affine_scaled(scale: tensor[B, H, N], shift: tensor[B, H, N]) {
    mask    kv_idx <= q_idx
    weight  scale[b, h, q_idx] * weight + shift[b, h, q_idx]
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    rows = (size.batch, size.heads, size.length)
    return {**draw.qkv(size), "scale": draw.uniform(0.2, 1.5, *rows), "shift": draw.normal(*rows) / size.length}


def run(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shaped("scale", scale, *q.shape[:3])
    shaped("shift", shift, *q.shape[:3])
    return PROGRAM.affine_scaled(scale=scale, shift=shift)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """O_i = a_i softmax(..)_i V + b_i sum of the values up to i."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    plain = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1) @ v
    return scale[..., None] * plain + shift[..., None] * v.cumsum(2)


ENTRY = Entry(
    systems=("Affine-Scaled Attention",),
    paper="Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention",
    year=2026,
    conventions="Causal. The two numbers are computed from the input outside: one of each for a query and head.",
    pitfall="The shift reaches visible keys alone, so the bias is a prefix sum of the values; weights no longer sum "
    "to 1, and the row sum that the softmax's gradient takes is that of its own weights.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the paper's abstract: scale and bias depend on the input and apply to normalized weights",
    refuses={"scale": torch.ones(2, 4, 98), "shift": torch.ones(2, 1, 97)},
)

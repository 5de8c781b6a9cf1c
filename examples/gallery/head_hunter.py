"""Weakens an image model on purpose, in chosen heads, by mixing their attention with the identity; guidance then
moves away from what the weakened model says."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = ad.parse("""
attention soft_pag(strength: tensor[H]) {
    let identity = 1.0 if kv_idx == q_idx else 0.0
    weight  weight + strength[h] * (identity - weight)
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    strength = torch.where(torch.arange(size.heads) % 2 == 0, draw.uniform(0.1, 1.0, size.heads), 0.0)
    return {**draw.qkv(size), "strength": strength}


def run(q: Tensor, k: Tensor, v: Tensor, strength: Tensor) -> Tensor:
    shaped("strength", strength, q.shape[1])
    ad.require(((strength >= 0) & (strength <= 1)).all(), "`strength` of each head is 0 to 1, 0 where it is left alone")
    return PROGRAM.soft_pag(strength=strength)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, strength: Tensor) -> Tensor:
    """o_i = (1 - lambda_h) softmax(..)_i V + lambda_h v_i."""
    plain = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return (1 - strength)[:, None, None] * plain + strength[:, None, None] * v


ENTRY = Entry(
    systems=("HeadHunter / SoftPAG",),
    paper="Fine-Grained Perturbation Guidance via Attention Head Selection",
    year=2025,
    conventions="Self-attention over all places of an image. Heads that were not selected have strength 0; 1 is "
    "perturbed-attention guidance. The guidance itself is outside.",
    pitfall="The identity is the query's own value, which exists in self-attention alone.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the paper's abstract: selected heads' maps are interpolated linearly towards the identity",
    refuses={"strength": [torch.full((4,), 2.0), torch.full((4,), -1.0), torch.ones(5)]},
    trained=False,
)

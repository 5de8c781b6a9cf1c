"""Latents of each head collect from all points and hand back to them, through the same scores read both ways."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(name="flare")


def inputs(size: Size, draw: Draw) -> Inputs:
    given = draw.qkv(size)
    latents = draw.normal(size.heads, max(8, size.length // 16), size.head_dim) / size.head_dim**0.25
    return {"k": given["k"] / size.head_dim**0.25, "v": given["v"], "latents": latents}


def run(k: Tensor, v: Tensor, latents: Tensor) -> Tensor:
    """Latents are queries first and keys after."""
    shaped("latents", latents, k.shape[1], latents.shape[1], k.shape[-1])
    asked = latents.expand(len(k), -1, -1, -1)
    return attention(k, asked, attention(asked, k, v, scale=1.0), scale=1.0)


def formula(k: Tensor, v: Tensor, latents: Tensor) -> Tensor:
    """Y = W_decode W_encode V, both softmaxes of Q K^T: over its columns, and over its rows."""
    scores = torch.einsum("hmd,bhnd->bhmn", latents, k)
    return (scores.softmax(2).mT @ scores.softmax(3)) @ v


ENTRY = Entry(
    systems=("FLARE",),
    paper="FLARE: Fast Low-rank Attention Routing Engine",
    year=2025,
    conventions="No mask. Keys and values come from deep residual projections outside.",
    pitfall="The scale is 1, not 1 / sqrt(d); the second softmax runs over the latents.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"latents": [torch.zeros(3, 8, 32), torch.zeros(4, 8, 16)]},
    usual=Size(1, 8, 4096, 16),
)

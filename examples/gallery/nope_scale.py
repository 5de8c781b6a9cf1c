"""No encoding of positions; each head's scores are sharpened by a learned factor, so that longer contexts work."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

sharpened = ad.scores.temperature(factor=ad.Tensor["H"])
attention = ad.attention(mask_mod=ad.masks.causal, score_mod=sharpened, name="nope_scale")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "factor": draw.uniform(1.0, 2.0, size.heads), "uniform": 1.2}


def run(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, uniform: float) -> tuple[Tensor, Tensor]:
    """HeadScale: a factor of each head; UniformScale: one for all."""
    ad.require(uniform > 0, "`uniform` multiplies scores, above 0")
    return attention.bind(factor=factor)(q, k, v), attention.bind(factor=torch.full_like(factor, uniform))(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, uniform: float) -> tuple[Tensor, Tensor]:
    """softmax(lambda_h q k / sqrt(d)); softmax(lambda q k / sqrt(d))."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    scaled = factor[:, None, None] * scores, uniform * scores
    of_heads, alike = (each.masked_fill(future, -torch.inf).softmax(-1) @ v for each in scaled)
    return of_heads, alike


ENTRY = Entry(
    systems=("NoPE HeadScale / UniformScale",),
    paper="Length Generalization of Causal Transformers without Position Encoding",
    year=2024,
    conventions="Causal. The factors come on top of 1 / sqrt(d); only they are tuned, on a few longer texts.",
    pitfall="Without positions, the mask alone tells the order of tokens: a kernel that drops it is a bag of words.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"uniform": 0.0, "factor": torch.ones(3)},
    usual=Size(1, 8, 4096, 64),
)

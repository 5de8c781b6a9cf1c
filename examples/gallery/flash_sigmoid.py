"""Every key is weighed by itself, by a sigmoid, and nothing divides a row."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = ad.parse("""
attention flash_sigmoid(slopes: tensor[H]) {
    mask        kv_idx <= q_idx
    score       score - slopes[h] * (q_idx - kv_idx)
    normalizer  sigmoid(score - log(kv_len))
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "slopes": draw.uniform(0.01, 0.5, size.heads)}


def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    shaped("slopes", slopes, q.shape[1])
    ad.require((slopes >= 0).all(), "`slopes` are penalties of a distance, at least 0")
    return PROGRAM.flash_sigmoid(slopes=slopes)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """(1 + exp(-(q k / sqrt(d) - m |i - j| - log n)))^-1 V."""
    length = k.shape[2]
    places = torch.arange(length, device=q.device)
    apart = places[:, None] - places
    scores = q @ k.mT / q.shape[-1] ** 0.5 - slopes[:, None, None] * apart.abs()
    weights = 1 / (1 + length * (-scores).exp())
    return torch.where(apart >= 0, weights, 0.0) @ v


ENTRY = Entry(
    systems=("FlashSigmoid (sigmoid attention)",),
    paper="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
    year=2024,
    conventions="Causal, with ALiBi, as the paper's language models; the bias is -log n, n being the number of keys of "
    "the call.",
    pitfall="The weight of a masked key must be 0, not the sigmoid of a very negative bias; the number of keys is part "
    "of every weight, so a packed or growing sequence is another function.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"slopes": [torch.full((4,), -1.0), torch.ones(3), torch.ones(5)]},
)

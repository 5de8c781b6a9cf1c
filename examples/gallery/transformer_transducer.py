"""Streaming speech encoder: each frame sees some frames before it and, for a bounded delay, a few after."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.band, name="transformer_transducer")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "left": 10, "right": 2}


def run(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """A layer that looks ahead, and one above it that does not: one kernel, two settings."""
    below = attention.bind(left=left, right=right)(q, k, v)
    return below, attention.bind(left=left, right=0)(q, k, below)


def formula(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """Softmax over the frames from t - left to t + right, then over those from t - left to t."""
    offset = torch.arange(q.shape[2], device=q.device) - torch.arange(q.shape[2], device=q.device)[:, None]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    below = scores.masked_fill((offset < -left) | (offset > right), -torch.inf).softmax(-1) @ v
    return below, scores.masked_fill((offset < -left) | (offset > 0), -torch.inf).softmax(-1) @ below


ENTRY = Entry(
    systems=("Transformer Transducer",),
    paper="Transformer Transducer: A Streamable Speech Recognition Model with Transformer Encoders and RNN-T Loss",
    year=2020,
    conventions="`left` and `right` do not count the frame itself. Relative position terms are left out.",
    pitfall="Look-ahead adds up over layers, so its delay is the sum of every layer's `right`: most layers have 0.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"left": -1, "right": -1},
    usual=Size(1, 8, 4096, 64),
)

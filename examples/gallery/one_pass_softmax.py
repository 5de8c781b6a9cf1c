"""Exact attention in a single pass over the keys, on machines that stream: the division is moved behind the values."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(name="one_pass_softmax")


def inputs(size: Size, draw: Draw) -> Inputs:
    return draw.qkv(size)


def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Key by key: the running maximum m, sum and output o, corrected by exp(m - m') as the maximum grows."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    m = torch.full_like(scores[..., :1], -torch.inf)
    total, o = torch.zeros_like(m), torch.zeros(*m.shape[:-1], v.shape[-1], dtype=v.dtype, device=v.device)
    for key in range(k.shape[2]):
        s = scores[..., key : key + 1]
        grown = torch.maximum(m, s)
        p, correction = (s - grown).exp(), (m - grown).exp()
        total, o, m = total * correction + p, o * correction + p * v[..., key : key + 1, :], grown
    return o / total


ENTRY = Entry(
    systems=("FuseMax", "SDPA on streaming dataflow", "UbiMoE"),
    paper="FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design",
    year=2024,
    conventions="Softmax attention over all keys, as in vision transformers; the three are accelerators for one "
    "and the same operator, and the formula is their recurrence.",
    pitfall="The correction multiplies the sum and the output alike: dividing as one goes needs another pass.",
    inputs=inputs,
    run=run,
    formula=formula,
    usual=Size(1, 12, 4096, 64),
)

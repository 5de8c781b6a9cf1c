"""Alignment of labels with speech as a latent position that only moves forward: attention to that frame alone, to a
window about it, or to the segment since the position of the label before."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

bounds_of_queries = {"first": ad.IntTensor["B, Q"], "end": ad.IntTensor["B, Q"]}
attention = ad.attention(mask_mod=ad.masks.between(**bounds_of_queries), name="latent_monotonic")


def inputs(size: Size, draw: Draw) -> Inputs:
    frames = size.length
    labels = Size(size.batch, size.heads, frames // 3, size.head_dim)
    position = draw.integers(0, 6, size.batch, labels.length).cumsum(1).clamp(max=frames - 1)
    return {**draw.qkv(labels, kv_length=frames), "position": position, "radius": 5}


def run(q: Tensor, k: Tensor, v: Tensor, position: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    ad.require(radius >= 0, "`radius` counts frames to either side, at least 0")
    shaped("position", position, len(q), q.shape[2])
    ad.require(((position >= 0) & (position < k.shape[2])).all(), "`position` of a label is a frame of the call")
    ad.require((position.diff(dim=1) >= 0).all(), "`position` of a label is not before that of the label before it")
    before = torch.cat((torch.full_like(position[:, :1], -1), position[:, :-1]), 1)
    bounds = (position, position + 1), (position - radius, position + radius + 1), (before + 1, position + 1)
    hard, window, segment = (attention.bind(first=first, end=end)(q, k, v) for first, end in bounds)
    return hard, window, segment


def formula(q: Tensor, k: Tensor, v: Tensor, position: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """v at t_s; softmax over [t_s - r, t_s + r]; softmax over (t_(s-1), t_s], 0 where that is empty."""
    frames = torch.arange(k.shape[2], device=q.device)
    hard = v.gather(2, position[:, None, :, None].expand(-1, v.shape[1], -1, v.shape[-1]))
    here = position[:, None, :, None]
    before = torch.nn.functional.pad(here, (0, 0, 1, 0), value=-1)[:, :, :-1]
    masks = (frames - here).abs() <= radius, (frames > before) & (frames <= here)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    window, segment = (scores.masked_fill(~live, -1e30).softmax(-1) * live @ v for live in masks)
    return hard, window, segment


ENTRY = Entry(
    systems=("Latent monotonic attention variants", "Monotonic segmental attention"),
    paper="A study of latent monotonic attention variants",
    year=2021,
    conventions="Three calls of one attention with other bounds. The segmental one is also that of monotonic "
    "segmental attention (2022). The segment of label 0 starts at frame 0. Positions come from a search or a length "
    "model outside.",
    pitfall="Segments are as long as labels are, and empty where two labels share a frame: bounds are numbers of the "
    "query, and an empty row is 0.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "radius": -1,
        "position": [
            torch.arange(32).flip(0).expand(2, 32),
            torch.full((2, 32), 97),
            torch.full((2, 32), -1),
            torch.zeros(2, 33).int(),
        ],
    },
    usual=Size(1, 1, 4096, 128),
)

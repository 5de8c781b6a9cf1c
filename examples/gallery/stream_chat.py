"""Chat about a video while it plays: a word looks at the frames shown by then, placed in time and in the image."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate_axes

TEXT = "attention shown(asked: int tensor[B, N], seen: int tensor[B, M]) { mask seen[b, kv_idx] <= asked[b, q_idx] }"
attention = ad.parse(TEXT).shown
FRAME = 500
"""Milliseconds from one frame to the next, which are one position apart."""


def inputs(size: Size, draw: Draw) -> Inputs:
    """Frames of 3 x 4 patches; the first words come before any of them."""
    words = size.length // 3
    given, place = draw.qkv(size), torch.arange(size.length)
    return {
        **given,
        "q": given["q"][:, :, :words],
        "asked": draw.integers(-1000, size.length // 12 * FRAME, size.batch, words).sort(1).values,
        "seen": (place // 12 * FRAME).expand(size.batch, -1),
        "patch": torch.stack((place % 12 // 4, place % 4)),
    }


def run(q: Tensor, k: Tensor, v: Tensor, asked: Tensor, seen: Tensor, patch: Tensor) -> Tensor:
    ad.require(asked.shape == (q.shape[0], q.shape[2]), "`asked` has the time of each word of each text")
    ad.require(seen.shape == (k.shape[0], k.shape[2]), "`seen` has the time of each visual token of each video")
    ad.require(patch.shape == (2, k.shape[2]), "`patch` has a row and a column for each visual token")
    d = q.shape[-1]
    channels, now = (d // 2, d // 4, d // 4), asked.double() / FRAME
    words = rotate_axes(q, (now, now, now), channels)
    images = rotate_axes(k, (seen.double() / FRAME, patch[0], patch[1]), channels)
    return attention(asked=asked, seen=seen)(words, images, v)


def formula(q: Tensor, k: Tensor, v: Tensor, asked: Tensor, seen: Tensor, patch: Tensor) -> Tensor:
    """Softmax over the tokens with time(k) <= time(q) of a product of pairs turned as complex numbers."""

    def turned(x: Tensor, axes: list[Tensor]) -> Tensor:
        parts = []
        for part, place in zip(x.split([x.shape[-1] // 2, x.shape[-1] // 4, x.shape[-1] // 4], -1), axes, strict=True):
            rates = 10000.0 ** -(torch.arange(0, part.shape[-1], 2, device=x.device).double() / part.shape[-1])
            angle = place.double()[:, None, :, None] * rates
            parts.append(torch.complex(*part.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle))
        return torch.cat(parts, -1)

    words = turned(q, [asked.double() / FRAME] * 3)
    images = turned(k, [seen.double() / FRAME, *(axis.expand(len(q), -1) for axis in patch)])
    scores = (words @ images.mH).real / q.shape[-1] ** 0.5
    hidden = (seen[:, None, :] > asked[:, :, None])[:, None]
    weights = torch.where(hidden, -1e30, scores).softmax(-1)
    return torch.where(hidden, 0.0, weights).to(v.dtype) @ v


ENTRY = Entry(
    systems=("StreamChat-3DRoPE",),
    paper="StreamChat: Chatting with Streaming Video",
    year=2024,
    conventions="Times in milliseconds; words have their time on all three axes, and are 0 while no frame was shown.",
    pitfall="Timestamps decide what is visible, not indices: tokens in storage order may be in any order in time.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "asked": torch.zeros(2, 1, dtype=torch.int64),
        "seen": torch.zeros(2, 1, dtype=torch.int64),
        "patch": torch.zeros(2, 1, dtype=torch.int64),
    },
    usual=Size(1, 8, 4096, 128),
)

"""Chat about a video while it plays: a word looks at the frames shown by then, placed in time and in the image."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate_axes

TEXT = "attention shown(asked: tensor[B, N], seen: tensor[B, M]) { mask seen[b, kv_idx] <= asked[b, q_idx] }"
attention = ad.parse(TEXT).shown


def inputs(size: Size, draw: Draw) -> Inputs:
    """Frames of 3 x 4 patches at half a second each; the first words come before any of them."""
    words = size.length // 3
    frames = -(-size.length // 12)
    place = torch.arange(frames * 12)[: size.length]
    given = draw.qkv(size)
    return {
        **given,
        "q": given["q"][:, :, :words],
        "asked": (draw.uniform(0, frames / 2, size.batch, words).sort(1).values - 1).float(),
        "seen": (place // 12 * 0.5).expand(size.batch, -1).float(),
        "patch": torch.stack((place % 12 // 4, place % 4)),
    }


def run(q: Tensor, k: Tensor, v: Tensor, asked: Tensor, seen: Tensor, patch: Tensor) -> Tensor:
    ad.require(patch.shape == (2, k.shape[2]), "`patch` has a row and a column for each visual token")
    d = q.shape[-1]
    channels = (d // 2, d // 4, d // 4)
    now, then = asked.detach().to(q.dtype) * 2, seen.detach().to(q.dtype) * 2
    words = rotate_axes(q, (now, now, now), channels)
    images = rotate_axes(k, (then, patch[0], patch[1]), channels)
    return attention(asked=asked.detach(), seen=seen.detach())(words, images, v)


def formula(q: Tensor, k: Tensor, v: Tensor, asked: Tensor, seen: Tensor, patch: Tensor) -> Tensor:
    """Softmax over the tokens with time(k) <= time(q) of a product of pairs turned as complex numbers."""
    asked, seen = asked.detach(), seen.detach()

    def turned(x: Tensor, axes: list[Tensor]) -> Tensor:
        parts = []
        for part, place in zip(x.split([x.shape[-1] // 2, x.shape[-1] // 4, x.shape[-1] // 4], -1), axes, strict=True):
            real, imaginary = part.chunk(2, -1)
            rates = 10000.0 ** -(torch.arange(real.shape[-1], device=x.device).double() / real.shape[-1])
            angle = place.double()[:, None, :, None] * rates
            parts.append(torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle))
        return torch.cat(parts, -1)

    words = turned(q, [2 * asked] * 3)
    images = turned(k, [2 * seen, *(axis.expand(len(q), -1) for axis in patch)])
    scores = (words @ images.mH).real / q.shape[-1] ** 0.5
    hidden = (seen[:, None, :] > asked[:, :, None])[:, None]
    weights = torch.where(hidden, -1e30, scores).softmax(-1)
    return torch.where(hidden, 0.0, weights).to(v.dtype) @ v


ENTRY = Entry(
    systems=("StreamChat-3DRoPE",),
    paper="StreamChat: Chatting with Streaming Video",
    year=2024,
    conventions="Times in seconds, two positions to a second; words have their time on all axes. No frame yet: 0.",
    pitfall="Timestamps decide what is visible, not indices: tokens in storage order may be in any order in time.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"patch": torch.zeros(2, 1, dtype=torch.int64)},
    usual=Size(1, 8, 4096, 128),
)

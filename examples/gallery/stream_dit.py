"""Streaming video diffusion: attention in windows of time, height and width, shifted in every other layer."""

from functools import cache

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

Three = tuple[int, int, int]


@cache
def attention(sizes: Three, window: Three, shift: Three) -> ad.Attention:
    grid = ad.grid(t=sizes[0], y=sizes[1], x=sizes[2])
    return ad.attention(mask_mod=ad.masks.shifted_windows(grid, window, shift=shift), name="windows")


def inputs(size: Size, draw: Draw) -> Inputs:
    side = int((size.length / 4) ** 0.5)
    sizes = (4, side, size.length // (4 * side))
    given = draw.qkv(Size(size.batch, size.heads, sizes[0] * sizes[1] * sizes[2], size.head_dim))
    return {**given, "sizes": sizes, "window": (2, max(2, side // 3), max(2, side // 4))}


def run(q: Tensor, k: Tensor, v: Tensor, sizes: Three, window: Three) -> tuple[Tensor, Tensor]:
    """A layer of windows, and one above it of windows shifted by half their sizes."""
    ad.require(sizes[0] * sizes[1] * sizes[2] == q.shape[2], "`sizes` do not multiply out to the length")
    fits = all(1 <= wide <= length for wide, length in zip(window, sizes, strict=True))
    ad.require(fits, "`window` counts places along each axis, 1 to all of them")
    below = attention(sizes, window, (0, 0, 0))(q, k, v)
    shift = (window[0] // 2, window[1] // 2, window[2] // 2)
    return below, attention(sizes, window, shift)(q, k, below)


def formula(q: Tensor, k: Tensor, v: Tensor, sizes: Three, window: Three) -> tuple[Tensor, Tensor]:
    """Tokens attend where the numbers of their windows agree along all three axes."""
    ranges = [torch.arange(length, device=q.device) for length in sizes]
    places = torch.stack(torch.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
    width = torch.tensor(window, device=q.device)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    outputs = []
    for shift in (torch.zeros_like(width), width // 2):
        number = torch.where(shift > 0, places + width - shift, places) // width
        same = (number[:, None] == number[None, :]).all(-1)
        v = scores.masked_fill(~same, -torch.inf).softmax(-1) @ v
        outputs.append(v)
    return outputs[0], outputs[1]


ENTRY = Entry(
    systems=("StreamDiT",),
    paper="StreamDiT: Real-Time Streaming Text-to-Video Generation",
    year=2025,
    conventions="Tokens in the order time, height, width. Shifted windows are cut off at borders, they do not wrap.",
    pitfall="Windows are stretches of tokens only after a permutation; in this order they are scattered over tiles.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"sizes": (4, 5, 5), "window": (0, 2, 2)},
)

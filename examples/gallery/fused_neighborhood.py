"""Fused neighbourhood attention: every pixel sees the window around it, kept whole at borders, dilated if asked for."""

from functools import cache

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

WIDTH, DILATION = 8, 2


@cache
def attention_on(height: int) -> ad.Attention:
    """Tokens stay row by row; kernels keep them in tiles of the canvas, so that a block of keys is a small square."""
    canvas = ad.grid(y=height, x=WIDTH, tile=(2, 4))
    return ad.attention(mask_mod=ad.masks.neighborhood(canvas, (5, 3), dilation=(1, DILATION)), name="fna")


def inputs(size: Size, draw: Draw) -> Inputs:
    height = size.length // WIDTH // 2 * 2
    return {**draw.qkv(Size(size.batch, size.heads, height * WIDTH, size.head_dim)), "rows": 5, "columns": 3}


def run(q: Tensor, k: Tensor, v: Tensor, rows: int, columns: int) -> Tensor:
    height = q.shape[2] // WIDTH
    ad.require(q.shape[2] % (2 * WIDTH) == 0, f"`q` is a canvas {WIDTH} pixels wide, with an even number of rows")
    ad.require(1 <= rows <= height, "`rows` counts places along y, 1 to the height of the canvas")
    ad.require(1 <= columns <= WIDTH // DILATION, "`columns` counts every second place along x, 1 to half the width")
    return attention_on(height).bind(window_y=rows, window_x=columns)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, rows: int, columns: int) -> Tensor:
    """Query by query: softmax over the product of the two axes' windows, start = clamp(i - w // 2, 0, L - w)."""
    height = q.shape[2] // WIDTH
    outs = []
    for place in range(height * WIDTH):
        y, x = divmod(place, WIDTH)
        top = min(max(y - rows // 2, 0), height - rows)
        own, near = x % DILATION, x // DILATION
        left = min(max(near - columns // 2, 0), WIDTH // DILATION - columns)
        seen = [
            line * WIDTH + own + DILATION * step
            for line in range(top, top + rows)
            for step in range(left, left + columns)
        ]
        scores = q[:, :, place : place + 1] @ k[:, :, seen].mT / q.shape[-1] ** 0.5
        outs.append(scores.softmax(-1) @ v[:, :, seen])
    return torch.cat(outs, 2)


ENTRY = Entry(
    systems=("FNA (fused neighborhood attention)",),
    paper="Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
    year=2024,
    conventions="Windows of `rows` by `columns`, the latter over every second pixel. Even windows reach one key "
    "further back than ahead.",
    pitfall="A dilated axis is as many axes as its dilation, each with borders of its own: clamp places among those.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"rows": [0, 13], "columns": [0, 5], "q": torch.zeros(2, 4, 97, 32)},
    source="the authors' repository",
    usual=Size(1, 4, 4096, 32),
)

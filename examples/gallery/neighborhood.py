"""Generalized neighbourhood attention: windows on a grid of any rank that slide, that jump with a stride shared by
neighbours, that are dilated or causal, each axis in its own way."""

from functools import cache

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

HEIGHT, WIDTH = 4, 6
STRIDE, DILATION = 2, 2
WINDOW = (3, 2, 3)


@cache
def attention_on(frames: int) -> ad.Attention:
    grid = ad.grid(t=frames, y=HEIGHT, x=WIDTH)
    shape = {"stride": (1, 1, STRIDE), "dilation": (1, DILATION, 1), "causal": (True, False, False)}
    return ad.attention(mask_mod=ad.masks.neighborhood(grid, WINDOW, **shape), name="neighborhood")


def inputs(size: Size, draw: Draw) -> Inputs:
    frames = max(size.length // (HEIGHT * WIDTH), WINDOW[0])
    grid = Size(size.batch, size.heads, frames * HEIGHT * WIDTH, size.head_dim)
    return {**draw.qkv(grid), "window_t": 3, "window_y": 2, "window_x": 3}


def run(q: Tensor, k: Tensor, v: Tensor, window_t: int, window_y: int, window_x: int) -> Tensor:
    attention = attention_on(q.shape[2] // (HEIGHT * WIDTH))
    return attention.bind(window_t=window_t, window_y=window_y, window_x=window_x)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, window_t: int, window_y: int, window_x: int) -> Tensor:
    """A key is seen if it lies in the window along every axis; windows move inwards at borders and never shrink."""
    frames = q.shape[2] // (HEIGHT * WIDTH)
    rows = [[max(t - window_t + 1, 0) <= other <= t for other in range(frames)] for t in range(frames)]
    times = torch.tensor(rows, device=q.device)
    lines = torch.zeros(HEIGHT, HEIGHT, dtype=torch.bool, device=q.device)
    for y in range(HEIGHT):
        residue = torch.arange(y % DILATION, HEIGHT, DILATION)
        start = min(max(y // DILATION - window_y // 2, 0), len(residue) - window_y)
        lines[y, residue[start : start + window_y]] = True
    columns = torch.zeros(WIDTH, WIDTH, dtype=torch.bool, device=q.device)
    for x in range(WIDTH):
        leader = min(x // STRIDE * STRIDE + STRIDE // 2, WIDTH - 1)
        start = min(max(leader - window_x // 2, 0), WIDTH - window_x)
        columns[x, start : start + window_x] = True
    live = torch.kron(torch.kron(times.int(), lines.int()), columns.int()).bool()
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("GNA (NATTEN)",),
    paper="Generalized Neighborhood Attention: Multi-dimensional Sparse Attention at the Speed of Light",
    year=2025,
    conventions="A video: causal in time, dilated along y, strided along x. A query without a stride leads itself; "
    "with one, the query in the middle of a group leads it. Kernels are of one grid; windows are numbers of the call.",
    pitfall="Windows keep their size at borders by moving, so every query sees as many keys (on a causal axis fewer "
    "at the start): shrinking them is another operator.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"window_t": 0, "window_y": 3, "window_x": 7},
)

"""Attention of Swin: every window of the canvas on its own, a learned bias by offset, shifted in every other layer."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

SIDE = 7
TEXT = """
attention flash_window(table: tensor[H, Y, X], regions: int tensor[W, N]) {
    grid        g(y = 7, x = 7)
    let up = g(q_idx).y - g(kv_idx).y
    let right = g(q_idx).x - g(kv_idx).x
    score       score + table[h, up + 6, right + 6]
    mask        regions[b, q_idx] == regions[b, kv_idx]
}
"""
swin = ad.parse(TEXT).flash_window


def inputs(size: Size, draw: Draw) -> Inputs:
    """`q`, `k`, `v` (B, H, Y, X, D) on a canvas of windows; `table` (H, 2 SIDE - 1, 2 SIDE - 1)."""
    rows = max(1, round((size.length / SIDE**2) ** 0.5))
    shape = (size.batch, size.heads, rows * SIDE, (rows + 1) * SIDE, size.head_dim)
    tensors = {name: draw.normal(*shape) for name in "qkv"}
    return {**tensors, "table": draw.normal(size.heads, 2 * SIDE - 1, 2 * SIDE - 1), "shift": 3}


def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor, shift: int) -> Tensor:
    """Windows are batches; a rolled canvas has windows of up to four regions that were not neighbours."""
    ad.require(0 <= shift < SIDE, f"`shift` counts places, 0 to {SIDE - 1}")
    ad.require(q.shape[2] % SIDE == 0 and q.shape[3] % SIDE == 0, "`q` is a canvas of whole windows")
    shaped("table", table, q.shape[1], 2 * SIDE - 1, 2 * SIDE - 1)
    rolled = (_windows(x.roll((-shift, -shift), (2, 3))) for x in (q, k, v))
    own = _windows(_regions(q, shift)[None, None, ..., None])[:, 0, :, 0].repeat(q.shape[0], 1)
    out = swin(table=table, regions=own)(*rolled)
    return _canvas(out, q.shape).roll((shift, shift), (2, 3))


def formula(q: Tensor, k: Tensor, v: Tensor, table: Tensor, shift: int) -> Tensor:
    """Over all places of the canvas: softmax(s + bias) where two places share a cell of the grid of cuts at
    shift, shift + SIDE, ...; cells at the border are smaller."""
    height, width = q.shape[2:4]
    y, x = (place.flatten() for place in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    cell = torch.stack(((y - shift) // SIDE, (x - shift) // SIDE))
    live = (cell[:, :, None] == cell[:, None, :]).all(0).to(q.device)
    up, right = y[:, None] - y[None, :], x[:, None] - x[None, :]
    middle, near = SIDE - 1, (up.abs() < SIDE) & (right.abs() < SIDE)
    bias = table[:, torch.where(near, up, 0) + middle, torch.where(near, right, 0) + middle]
    q, k, v = (tensor.flatten(2, 3) for tensor in (q, k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5 + bias).masked_fill(~live, -torch.inf)
    return (scores.softmax(-1) @ v).unflatten(2, (height, width))


def _regions(q: Tensor, shift: int) -> Tensor:
    """Of every place of the rolled canvas, which unrolled neighbourhood it belongs to."""
    height, width = q.shape[2:4]
    y, x = torch.arange(height, device=q.device), torch.arange(width, device=q.device)
    return (y >= height - shift)[:, None] * 2 + (x >= width - shift)[None, :].long()


def _windows(x: Tensor) -> Tensor:
    """(B, H, Y, X, D) as (B windows, H, SIDE * SIDE, D)."""
    b, h, height, width, d = x.shape
    cut = x.reshape(b, h, height // SIDE, SIDE, width // SIDE, SIDE, d)
    return cut.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, h, SIDE * SIDE, d)


def _canvas(x: Tensor, shape: torch.Size) -> Tensor:
    b, h, height, width, _ = shape
    cut = x.reshape(b, height // SIDE, width // SIDE, h, SIDE, SIDE, -1)
    return cut.permute(0, 3, 1, 4, 2, 5, 6).reshape(b, h, height, width, -1)


ENTRY = Entry(
    systems=("Flash Window Attention (Swin)",),
    paper="Flash Window Attention: speedup the attention computation for Swin Transformer",
    year=2025,
    conventions="Windows of 7 x 7 are batches of 49 tokens. The shift moves the canvas up and left, and back after.",
    pitfall="A shifted window at the border holds pieces of opposite sides of the canvas, which must not meet.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "shift": [-1, 7],
        "q": torch.zeros(2, 4, 7, 15, 32),
        "table": [torch.zeros(4, 13, 14), torch.zeros(5, 13, 13)],
    },
    source="the released Swin Transformer",
    usual=Size(1, 4, 3136, 32),
)

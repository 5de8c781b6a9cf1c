"""Bi-level routing: a region of the image picks the few regions most like it, and its pixels attend to theirs."""

import torch
from torch import Tensor
from torch.nn import functional

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

HEIGHT, WIDTH = 3, 4
"""Of a region, in pixels."""

attention = ad.attention(name="biformer")


def inputs(size: Size, draw: Draw) -> Inputs:
    """`q`, `k`, `v` (B, H, Y, X, D) on a canvas of regions; `local` (H D, 1, 3, 3), the depthwise filter of values."""
    side = max(2, round((size.length / (HEIGHT * WIDTH)) ** 0.5))
    shape = (size.batch, size.heads, side * HEIGHT, side * WIDTH, size.head_dim)
    local = draw.normal(size.heads * size.head_dim, 1, 3, 3) / 3
    return {**{name: draw.normal(*shape) for name in "qkv"}, "local": local, "top_k": 2}


def run(q: Tensor, k: Tensor, v: Tensor, local: Tensor, top_k: int) -> Tensor:
    """Pixels region by region make a region a block; which blocks meet is decided by means over all heads."""
    ad.require(q.shape[2] % HEIGHT == 0 and q.shape[3] % WIDTH == 0, "`q` is a canvas of whole regions")
    shaped("local", local, q.shape[1] * q.shape[-1], 1, 3, 3)
    regions = [_regions(x) for x in (q, k, v)]
    count = regions[0].shape[2] // (HEIGHT * WIDTH)
    ad.require(1 <= top_k <= count, "`top_k` counts regions, 1 to all of them")
    means = [x.unflatten(2, (count, -1)).mean(3).transpose(1, 2).flatten(2) for x in regions[:2]]
    chosen = (means[0] @ means[1].mT).topk(top_k, -1).indices
    live = torch.zeros(len(q), count, count, dtype=torch.bool, device=q.device).scatter(-1, chosen, True)
    table = ad.BlockTable(live[:, None], block=(HEIGHT * WIDTH, HEIGHT * WIDTH))
    return _canvas(attention(*regions, blocks=table), q.shape) + _filtered(v, local)


def formula(q: Tensor, k: Tensor, v: Tensor, local: Tensor, top_k: int) -> Tensor:
    """Region by region: softmax over the keys of the `top_k` regions of largest Q^r K^rT, gathered."""
    out = torch.zeros_like(q)
    corners = [(y, x) for y in range(0, q.shape[2], HEIGHT) for x in range(0, q.shape[3], WIDTH)]
    for batch in range(len(q)):
        own = {corner: [_region(x[batch], corner) for x in (q, k, v)] for corner in corners}
        for y, x in corners:
            mine = own[y, x][0]
            likeness = torch.stack([(mine.mean(1) * own[other][1].mean(1)).sum() for other in corners])
            seen = [own[corners[at]] for at in likeness.topk(top_k).indices.tolist()]
            keys, values = (torch.cat([each[part] for each in seen], 1) for part in (1, 2))
            rows = (mine @ keys.mT / q.shape[-1] ** 0.5).softmax(-1) @ values
            out[batch, :, y : y + HEIGHT, x : x + WIDTH] = rows.unflatten(1, (HEIGHT, WIDTH))
    return out + _filtered(v, local)


def _region(x: Tensor, corner: tuple[int, int]) -> Tensor:
    return x[:, corner[0] : corner[0] + HEIGHT, corner[1] : corner[1] + WIDTH].flatten(1, 2)


def _filtered(v: Tensor, local: Tensor) -> Tensor:
    """Values through a filter of 3 x 3 pixels for each channel."""
    b, h, y, x, d = v.shape
    flat = v.permute(0, 1, 4, 2, 3).reshape(b, h * d, y, x)
    return functional.conv2d(flat, local, padding=1, groups=h * d).reshape(b, h, d, y, x).permute(0, 1, 3, 4, 2)


def _regions(x: Tensor) -> Tensor:
    b, h, height, width, d = x.shape
    cut = x.reshape(b, h, height // HEIGHT, HEIGHT, width // WIDTH, WIDTH, d)
    return cut.permute(0, 1, 2, 4, 3, 5, 6).reshape(b, h, height * width, d)


def _canvas(x: Tensor, shape: torch.Size) -> Tensor:
    b, h, height, width, d = shape
    cut = x.reshape(b, h, height // HEIGHT, width // WIDTH, HEIGHT, WIDTH, d)
    return cut.permute(0, 1, 2, 4, 3, 5, 6).reshape(shape)


ENTRY = Entry(
    systems=("BiFormer (bi-level routing)",),
    paper="BiFormer: Vision Transformer with Bi-Level Routing Attention",
    year=2023,
    conventions="Regions of 3 x 4 pixels, chosen for all heads together; a region need not choose itself. The choice "
    "has no gradient.",
    pitfall="Gathering keys makes copies of them: a table of regions reads each where it lies.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"top_k": [0, 10], "q": torch.zeros(2, 4, 10, 12, 32), "local": torch.zeros(127, 1, 3, 3)},
    usual=Size(1, 8, 3072, 32),
)

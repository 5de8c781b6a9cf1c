"""Streaming super-resolution: boxes of a video look at the boxes most like them nearby, now and in frames before."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

ROWS, COLUMNS = 3, 4
"""Boxes of a slice of time; `TOKENS` tokens lie in each, one box after the other."""
TOKENS = 8

attention = ad.attention(name="flash_vsr")


def inputs(size: Size, draw: Draw) -> Inputs:
    slices = max(2, size.length // (ROWS * COLUMNS * TOKENS))
    video = Size(size.batch, size.heads, slices * ROWS * COLUMNS * TOKENS, size.head_dim)
    return {**draw.qkv(video), "reach": 1, "top_k": 3}


def run(q: Tensor, k: Tensor, v: Tensor, reach: int, top_k: int) -> Tensor:
    """Boxes out of reach lose before the largest are taken."""
    ad.require(reach >= 0, "`reach` counts boxes to each side, at least 0")
    ad.require(top_k >= 1, "`top_k` counts boxes, at least 1")
    ad.require(q.shape[2] % (ROWS * COLUMNS * TOKENS) == 0, "`q` holds whole slices of time")
    means = [x.unflatten(2, (-1, TOKENS)).mean(3) for x in (q, k)]
    t, y, x = torch.unravel_index(torch.arange(means[0].shape[2], device=q.device), (means[0].shape[2], ROWS, COLUMNS))
    near = (t[:, None] >= t) & ((y[:, None] - y).abs() <= reach) & ((x[:, None] - x).abs() <= reach)
    scores = (means[0] @ means[1].mT).masked_fill(~near, -torch.inf)
    chosen = scores.topk(min(top_k, scores.shape[-1]), -1).indices
    live = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True) & near
    return attention(q, k, v, blocks=ad.BlockTable(live, block=(TOKENS, TOKENS)))


def formula(q: Tensor, k: Tensor, v: Tensor, reach: int, top_k: int) -> Tensor:
    """Box by box and head by head: softmax over the tokens of the `top_k` boxes in reach, of slices up to the own one,
    whose mean key has the largest product with the mean query."""
    boxes = q.shape[2] // TOKENS
    out = torch.zeros_like(q)
    tokens = [slice(box * TOKENS, (box + 1) * TOKENS) for box in range(boxes)]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for box in range(boxes):
                (t, y), x = divmod(box // COLUMNS, ROWS), box % COLUMNS
                near = [
                    (s * ROWS + row) * COLUMNS + column
                    for s in range(t + 1)
                    for row in range(max(y - reach, 0), min(y + reach, ROWS - 1) + 1)
                    for column in range(max(x - reach, 0), min(x + reach, COLUMNS - 1) + 1)
                ]
                mine = q[b, h, tokens[box]].detach().mean(0)
                near.sort(key=lambda one: -float(mine @ k[b, h, tokens[one]].detach().mean(0)))
                keys, values = (torch.cat([z[b, h, tokens[one]] for one in near[:top_k]]) for z in (k, v))
                weights = (q[b, h, tokens[box]] @ keys.mT / q.shape[-1] ** 0.5).softmax(-1)
                out[b, h, tokens[box]] = weights @ values
    return out


ENTRY = Entry(
    systems=("FlashVSR (locality-constrained sparse attention)",),
    paper="FlashVSR: Towards Real-Time Diffusion-Based Streaming Video Super-Resolution",
    year=2025,
    conventions="Tokens box by box. Locality is said of boxes; the own slice of time is seen in both directions.",
    pitfall="Boxes out of reach are barred before the largest are taken, or some queries keep fewer than they could.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"reach": -1, "top_k": 0, "q": torch.zeros(2, 4, 97, 32)},
    usual=Size(1, 12, 4096, 128),
)

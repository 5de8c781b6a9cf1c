"""A few agents, pooled from the queries, collect from all places of an image and hand back to them."""

import torch
from torch import Tensor
from torch.nn import functional as F

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(score_mod=ad.scores.bias(table=ad.Tensor["H, Q, K"]), name="agent_attention")


def inputs(size: Size, draw: Draw) -> Inputs:
    """`q`, `k`, `v` (B, H, Y, X, D); biases of each head, agent and cell of a 7 x 7 grid, row and column, both ways."""
    height = int(size.length**0.5)
    width, agents = size.length // height, 9
    tensors = {name: draw.normal(size.batch, size.heads, height, width, size.head_dim) for name in "qkv"}
    return {
        **tensors,
        "cells": draw.normal(2, size.heads, agents, 7, 7),
        "rows": draw.normal(2, size.heads, agents, height, 1),
        "columns": draw.normal(2, size.heads, agents, 1, width),
        "kernel": draw.normal(size.heads, size.head_dim, 3, 3) / 3,
    }


def run(q: Tensor, k: Tensor, v: Tensor, cells: Tensor, rows: Tensor, columns: Tensor, kernel: Tensor) -> Tensor:
    """Agents are queries first and keys after; a depthwise convolution of the values is added."""
    shape, side = q.shape[2:4], round(cells.shape[2] ** 0.5)
    ad.require(side**2 == cells.shape[2], "`cells` has a square number of agents")
    shaped("cells", cells, 2, q.shape[1], side**2, 7, 7)
    shaped("rows", rows, 2, q.shape[1], side**2, shape[0], 1)
    shaped("columns", columns, 2, q.shape[1], side**2, 1, shape[1])
    shaped("kernel", kernel, q.shape[1], q.shape[-1], 3, 3)
    pooled = F.adaptive_avg_pool2d(q.flatten(0, 1).movedim(-1, 1), side).unflatten(0, q.shape[:2])
    agents = pooled.flatten(3).mT
    smooth = F.interpolate(cells.flatten(0, 1), size=shape, mode="bilinear").unflatten(0, cells.shape[:2])
    first, second = (smooth + rows + columns).flatten(3)
    collected = attention.bind(table=first)(agents, k.flatten(2, 3), v.flatten(2, 3))
    out = attention.bind(table=second.mT)(q.flatten(2, 3), agents, collected).unflatten(2, shape)
    near = F.conv2d(
        v.movedim(-1, 2).flatten(1, 2), kernel.flatten(0, 1)[:, None], padding=1, groups=kernel[..., 0, 0].numel()
    )
    return out + near.unflatten(1, kernel.shape[:2]).movedim(2, -1)


def formula(q: Tensor, k: Tensor, v: Tensor, cells: Tensor, rows: Tensor, columns: Tensor, kernel: Tensor) -> Tensor:
    """softmax(Q A^T / sqrt(d) + B_2) softmax(A K^T / sqrt(d) + B_1) V + DWC(V), A the means of Q over 3 x 3 boxes."""
    height, width = q.shape[2:4]
    side = round(cells.shape[2] ** 0.5)

    def boxes(length: int) -> list[slice]:
        return [slice(n * length // side, -(-(n + 1) * length // side)) for n in range(side)]

    def blend(length: int) -> Tensor:
        place = ((torch.arange(length, dtype=q.dtype, device=q.device) + 0.5) * 7 / length - 0.5).clamp(0, 6)
        return (1 - (place[:, None] - torch.arange(7, device=q.device)).abs()).clamp(min=0)

    agents = torch.stack([q[:, :, y, x].mean((2, 3)) for y in boxes(height) for x in boxes(width)], 2)
    bias = (blend(height) @ cells @ blend(width).T + rows + columns).flatten(3)
    places = q.flatten(2, 3)
    root = q.shape[-1] ** 0.5
    collected = (agents @ k.flatten(2, 3).mT / root + bias[0]).softmax(-1) @ v.flatten(2, 3)
    out = ((places @ agents.mT / root + bias[1].mT).softmax(-1) @ collected).reshape(q.shape)
    padded = F.pad(v, (0, 0, 1, 1, 1, 1))
    for y in range(3):
        for x in range(3):
            out = out + padded[:, :, y : y + height, x : x + width] * kernel[:, None, None, :, y, x]
    return out


ENTRY = Entry(
    systems=("Agent Attention",),
    paper="Agent Attention: On the Integration of Softmax and Linear Attention",
    year=2023,
    conventions="Agents are a 3 x 3 pooling of the queries. The bias of an agent and a place is bilinear between cells "
    "and has one of the row and one of the column added; tables are no larger than agents by places.",
    pitfall="The first softmax has few queries and many keys, the second many queries and few keys: one wants the keys "
    "split among programs, the other does not.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "cells": [torch.zeros(2, 4, 8, 7, 7), torch.zeros(1, 4, 9, 7, 7)],
        "rows": torch.zeros(2, 4, 9, 10, 1),
        "columns": torch.zeros(2, 4, 9, 1, 9),
        "kernel": torch.zeros(4, 32, 5, 5),
    },
    usual=Size(1, 4, 3136, 32),
)

"""Object detection: a query's box and another's, as they lie to each other, are a bias of their attention."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = "attention relation(bias: tensor[B, H, N, N]) { score score + bias[b, h, q_idx, kv_idx] }"
attention = ad.parse(TEXT).relation
CHANNELS, TEMPERATURE, SCALE, SMALL = 16, 10000.0, 100.0, 1e-5


def inputs(size: Size, draw: Draw) -> Inputs:
    """Boxes (centre, width, height) of two decoder layers, kept in float32: their embedding takes large angles."""
    return {
        **draw.qkv(size),
        "before": draw.uniform(0.1, 0.9, size.batch, size.length, 4).float(),
        "boxes": draw.uniform(0.1, 0.9, size.batch, size.length, 4).float(),
        "weight": draw.normal(size.heads, 4 * CHANNELS) / 8,
        "offset": draw.normal(size.heads),
    }


def embedded(entry: Tensor) -> Tensor:
    """Sines and cosines of an entry at rates that fall off."""
    rates = SCALE * TEMPERATURE ** -torch.arange(0, 1, 2 / CHANNELS, dtype=torch.float64, device=entry.device)
    angles = entry[..., None] * rates
    return torch.cat((angles.sin(), angles.cos()), -1)


def run(q: Tensor, k: Tensor, v: Tensor, before: Tensor, boxes: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    ad.require(before.shape == boxes.shape and boxes.shape[-1] == 4, "`boxes` has centre, width and height of each")
    ad.require(weight.shape == (q.shape[1], 4 * CHANNELS), f"`weight` has {4 * CHANNELS} numbers for each head")
    ad.require(len(offset) == q.shape[1], "`offset` has a number for each head")
    with torch.no_grad():
        one, other = before.double()[:, :, None], boxes.double()[:, None]
        apart = (one[..., :2] - other[..., :2]).abs() / (one[..., 2:] + SMALL)
        larger = (one[..., 2:] + SMALL) / (other[..., 2:] + SMALL)
        relation = torch.cat(((apart + 1).log(), larger.log()), -1)
    bias = offset[:, None, None]
    # One entry at a time: all 64 sines and cosines of all pairs would take more memory than the bias of every head.
    for entry, columns in zip(relation.unbind(-1), weight.split(CHANNELS, -1), strict=True):
        bias = bias + torch.einsum("bijc,hc->bhij", embedded(entry).to(q.dtype), columns)
    bias = bias.relu()
    return attention(bias=bias)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, before: Tensor, boxes: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """softmax(QK^T / sqrt(d) + max(0, W Embed(e) + c)), e = log(|dx| / w + 1), ..., log(w / w'), ..."""
    x, y, w, h = before.detach().double().unbind(-1)
    x2, y2, w2, h2 = boxes.detach().double().unbind(-1)
    entries = (
        ((x[:, :, None] - x2[:, None]).abs() / (w[:, :, None] + SMALL) + 1).log(),
        ((y[:, :, None] - y2[:, None]).abs() / (h[:, :, None] + SMALL) + 1).log(),
        ((w[:, :, None] + SMALL) / (w2[:, None] + SMALL)).log(),
        ((h[:, :, None] + SMALL) / (h2[:, None] + SMALL)).log(),
    )
    bias = offset[None, :, None, None]
    for place, entry in enumerate(entries):
        for n in range(CHANNELS // 2):
            angle = SCALE * entry / TEMPERATURE ** (2 * n / CHANNELS)
            column = place * CHANNELS + n
            bias = bias + weight[:, column, None, None] * angle.sin()[:, None]
            bias = bias + weight[:, column + CHANNELS // 2, None, None] * angle.cos()[:, None]
    return (q @ k.mT / q.shape[-1] ** 0.5 + bias.clamp(min=0)).softmax(-1).to(v.dtype) @ v


ENTRY = Entry(
    systems=("Relation-DETR",),
    paper="Relation DETR: Exploring Explicit Position Relation Prior for Object Detection",
    year=2024,
    conventions="Queries have boxes of the layer before, keys those of this one; no gradient reaches a box.",
    pitfall="Embedded on the fly, a pair takes 64 sines a head: they are made once for all heads, and the bias read.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The authors' code, and its port to transformers: relu, 16 channels an entry, boxes widened by 1e-5",
    refuses={"boxes": torch.zeros(1, 1, 4), "weight": torch.zeros(4, 63), "offset": torch.zeros(1)},
    usual=Size(1, 8, 900, 32),
)

"""Long videos chunk by chunk: each pixel's frames read those before, and text with an anchor image is read by all."""

import torch
from torch import Tensor
from torch.nn import functional

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(name="streaming_t2v")
FRAMES, BEFORE, WORDS = 16, 8, 77


def inputs(size: Size, draw: Draw) -> Inputs:
    pixels, width = max(1, size.length // FRAMES), size.heads * size.head_dim
    temporal = (size.batch, pixels, size.heads)
    return {
        "x": draw.normal(size.batch, pixels, FRAMES, width),
        "q": draw.normal(*temporal, FRAMES, size.head_dim),
        "k": draw.normal(*temporal, BEFORE, size.head_dim),
        "v": draw.normal(*temporal, BEFORE, size.head_dim),
        "project": draw.normal(width, width) / width**0.5,
        "place_q": draw.normal(size.batch, size.heads, size.length, size.head_dim),
        "text": draw.normal(size.batch, WORDS, width),
        "mixed": draw.normal(size.batch, WORDS, width),
        "alpha": draw.normal(1),
        "w_k": draw.normal(width, width) / width**0.5,
        "w_v": draw.normal(width, width) / width**0.5,
    }


def run(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    project: Tensor,
    place_q: Tensor,
    text: Tensor,
    mixed: Tensor,
    alpha: Tensor,
    w_k: Tensor,
    w_v: Tensor,
) -> tuple[Tensor, Tensor]:
    """Conditional attention with pixels as a batch, then appearance preservation."""
    out = attention(*(each.flatten(0, 1) for each in (q, k, v)))
    conditioned = x + out.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2]) @ project
    context = functional.silu(alpha) * mixed + text
    keys, values = ((context @ w).unflatten(-1, (place_q.shape[1], -1)).transpose(1, 2) for w in (w_k, w_v))
    return conditioned, attention(place_q, keys, values)


def formula(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    project: Tensor,
    place_q: Tensor,
    text: Tensor,
    mixed: Tensor,
    alpha: Tensor,
    w_k: Tensor,
    w_v: Tensor,
) -> tuple[Tensor, Tensor]:
    """x + P_out softmax(Q K^T / sqrt(d)) V at every pixel; cross-attention to SiLU(a) x_mixed + x_text."""
    scale, heads = q.shape[-1] ** -0.5, place_q.shape[1]
    weights = torch.einsum("bphfd,bphcd->bphfc", q, k).mul(scale).softmax(-1)
    conditioned = x + torch.einsum("bphfc,bphcd->bpfhd", weights, v).flatten(3) @ project
    context = alpha * torch.sigmoid(alpha) * mixed + text
    keys, values = (torch.stack((context @ w).chunk(heads, -1), 1) for w in (w_k, w_v))
    return conditioned, (place_q @ keys.mT * scale).softmax(-1) @ values


ENTRY = Entry(
    systems=("StreamingT2V (CAM / APM)",),
    paper="StreamingT2V: Consistent, Dynamic, and Extendable Long Video Generation from Text",
    year=2024,
    conventions="Plain softmax attention in its two settings. First: 16 frames of a pixel read the 8 before them, "
    "added through a projection that starts at 0. Second: all places read 77 mixed tokens.",
    pitfall="As many tiny problems as there are pixels: they are a batch, and their two lengths differ.",
    inputs=inputs,
    run=run,
    formula=formula,
)

"""3D reconstruction from a stream of images: tokens see all views up to their own, or the first and the last few."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.block_causal(sink=1), name="views")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "tokens": max(9, size.length // 16), "window": 5}


def run(q: Tensor, k: Tensor, v: Tensor, tokens: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both modes of the model on a whole stream, and its last view against a cache of those before."""
    ad.require(tokens >= 1, "`tokens` counts those of a view, at least 1")
    views = -(-k.shape[2] // tokens)
    last = (views - 1) * tokens
    causal, rolling = attention.bind(block=tokens, window=views), attention.bind(block=tokens, window=window)
    return causal(q, k, v), rolling(q, k, v), rolling(q[:, :, last:], k, v, q_offset=last)


def formula(q: Tensor, k: Tensor, v: Tensor, tokens: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the views up to the own; over the first of them and the last `window`."""
    view = torch.arange(q.shape[2], device=q.device) // tokens
    behind = view[:, None] - view[None, :]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(behind < 0, -torch.inf)
    rolling = scores.masked_fill((behind >= window) & (view > 0), -torch.inf).softmax(-1) @ v
    return scores.softmax(-1) @ v, rolling, rolling[:, :, view == view[-1]]


ENTRY = Entry(
    systems=("STream3R",),
    paper="STream3R: Scalable Sequential 3D Reconstruction with Causal Transformer",
    year=2025,
    conventions="Full inside a view. `window` counts views, the own one among them; the first is always seen.",
    pitfall="The first view comes on top of the window, and stays in the cache when the window has moved on: it is the "
    "frame of reference for the rest.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The attention modes of the authors' repository, as its camera head makes their masks",
    refuses={"tokens": 0, "window": 0},
)

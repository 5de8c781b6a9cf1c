"""Streaming geometry transformer: attention inside each frame, then over all frames so far, cached frame by frame."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.block_causal, name="frame_causal")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "tokens": max(13, size.length // 12)}


def run(q: Tensor, k: Tensor, v: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Within frames, over time, and over time for the last frame alone, against the cache."""
    ad.require(tokens >= 1, "`tokens` counts those of a frame, at least 1")
    frames = -(-k.shape[2] // tokens)
    within, over_time = (attention.bind(block=tokens, window=views) for views in (1, frames))
    last = (frames - 1) * tokens
    spatial = within(q, k, v)
    return spatial, over_time(q, k, spatial), over_time(q[:, :, last:], k, spatial, q_offset=last)


def formula(q: Tensor, k: Tensor, v: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the own frame; then over all frames up to it."""
    frame = torch.arange(q.shape[2], device=q.device) // tokens
    scores = q @ k.mT / q.shape[-1] ** 0.5
    spatial = scores.masked_fill(frame[:, None] != frame, -torch.inf).softmax(-1) @ v
    temporal = scores.masked_fill(frame[:, None] < frame, -torch.inf).softmax(-1) @ spatial
    return spatial, temporal, temporal[:, :, frame == frame[-1]]


ENTRY = Entry(
    systems=("StreamVGGT",),
    paper="Streaming 4D Visual Geometry Transformer",
    year=2025,
    conventions="Full inside a frame, causal among frames of `tokens` tokens; both layers of one q and k, for brevity.",
    pitfall="Tokens of a frame are hardly ever a multiple of a kernel's tile: frames end inside tiles.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The mask of the released aggregator: frames numbered by place over tokens a frame",
    refuses={"tokens": 0},
)

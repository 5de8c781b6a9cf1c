"""Streams long video frame by frame: a frame sees itself, the frames just before it, and the first frames as a sink."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.block_causal, name="longlive")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "block": 12, "window": 3, "sink": 1}


def run(q: Tensor, k: Tensor, v: Tensor, block: int, window: int, sink: int) -> Tensor:
    return attention.bind(block=block, window=window, sink=sink)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, block: int, window: int, sink: int) -> Tensor:
    """Frame f sees frames f - window + 1 to f and frames 0 to sink - 1, whole frames of `block` tokens."""
    frames = -(-q.shape[2] // block)
    seen = torch.zeros(frames, frames, dtype=torch.bool, device=q.device)
    for frame in range(frames):
        seen[frame, max(frame - window + 1, 0) : frame + 1] = True
        seen[frame, : min(sink, frame + 1)] = True
    live = seen.repeat_interleave(block, 0).repeat_interleave(block, 1)[: q.shape[2], : q.shape[2]]
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("LongLive",),
    paper="LongLive: Real-time Interactive Long Video Generation",
    year=2025,
    conventions="`block` tokens to a frame (or to a chunk of frames generated together); the window includes the own "
    "frame, and the sink does not count against it.",
    pitfall="Keys of past frames hold the prompt they were made under: at a new prompt the cache is computed again, "
    "which the mask does not show.",
    source="block masks of the causal video models LongLive builds on: frames below the own frame's end, and above it "
    "less a window",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"block": 0, "window": 0, "sink": -1},
    usual=Size(1, 8, 4096, 128),
)

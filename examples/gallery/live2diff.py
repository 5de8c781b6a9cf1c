"""Live video translation: the first frames, denoised together to warm up, stay visible for ever; every later frame sees
them and the frames just before it."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.parse("""
attention live2diff(frame: int = 1, warmup: int = 8, recent: int = 8) {
    require frame >= 1, "`frame` counts the tokens of a frame, at least 1"
    require warmup >= 0, "`warmup` counts frames, 0 for none"
    require recent >= 1, "`recent` counts frames up to the query's own, at least 1"
    let now = q_idx // frame
    let then = kv_idx // frame
    mask then < warmup or (then <= now and now - then < recent)
}
""").live2diff


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "frame": 6, "warmup": 4, "recent": 3}


def run(q: Tensor, k: Tensor, v: Tensor, frame: int, warmup: int, recent: int) -> Tensor:
    return attention(frame=frame, warmup=warmup, recent=recent)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, frame: int, warmup: int, recent: int) -> Tensor:
    """Frame f sees the warm-up frames, all of them, and frames max(0, f - recent + 1) to f."""
    frames = torch.arange(q.shape[2], device=q.device) // frame
    behind = frames[:, None] - frames
    live = (frames < warmup) | ((behind >= 0) & (behind <= recent - 1))
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("Live2Diff",),
    paper="Live2Diff: Live Stream Translation via Uni-directional Attention in Video Diffusion Models",
    year=2024,
    conventions="`recent` includes the own frame. The model's temporal attention has one token a frame, a sequence "
    "for each place of the picture; `frame` above 1 is the same on whole frames.",
    pitfall="Warm-up frames see each other in both directions, so the mask is not causal: a bound of the own frame "
    "alone would cut them. Every denoising step has a cache of its own.",
    source="the temporal attention with a sink of warm-up frames and a window in open-mmlab/Live2Diff",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"frame": 0, "warmup": -1, "recent": 0},
)

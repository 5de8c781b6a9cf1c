"""Long video diffusion: frames at rising noise levels are denoised jointly, over sinks and the frames just before."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.turned import turned

TEXT = """
attention rolling(tokens: int = 4, sink: int = 1, recent: int = 3, start: int = 8) {
    require tokens >= 1, "`tokens` counts those of a frame, at least 1"
    require sink >= 0, "`sink` counts frames, 0 for none"
    require recent >= 0, "`recent` counts clean frames in the cache, 0 for none"
    let frame = kv_idx // tokens
    mask  frame < sink or frame >= start - recent
}
"""
attention = ad.parse(TEXT).rolling


def inputs(size: Size, draw: Draw) -> Inputs:
    """All frames so far, of which the last five are the window that is denoised."""
    tokens = size.length // 16
    given = draw.qkv(size)
    return {**given, "q": given["q"][:, :, -5 * tokens :], "tokens": tokens, "start": 11, "sink": 2, "recent": 3}


def run(q: Tensor, k: Tensor, v: Tensor, tokens: int, start: int, sink: int, recent: int) -> Tensor:
    ad.require(start * tokens + q.shape[2] <= k.shape[2], "`start` leaves no keys for the window that is denoised")
    k, v = k[:, :, : start * tokens + q.shape[2]], v[:, :, : start * tokens + q.shape[2]]
    ad.require(start >= sink + recent, "`start` is the first noisy frame, after sinks and cache")
    here = start + torch.arange(q.shape[2]) // max(tokens, 1)
    frame = torch.arange(k.shape[2]) // max(tokens, 1)
    placed = torch.where(frame < sink, frame + start - recent - sink, frame)
    step = attention.bind(tokens=tokens, start=start, sink=sink, recent=recent)
    return step(rotate(q, here), rotate(k, placed), v)


def formula(q: Tensor, k: Tensor, v: Tensor, tokens: int, start: int, sink: int, recent: int) -> Tensor:
    """Keys are put together as the cache is: sinks, recent frames, window, at consecutive positions."""
    window = torch.arange(start * tokens, start * tokens + q.shape[2])
    cache = torch.arange((start - recent) * tokens, start * tokens)
    places = torch.cat((torch.arange(sink * tokens), cache, window))
    positions = torch.arange(len(places)) // tokens
    queries, keys = turned(q, positions[-q.shape[2] :]), turned(k[:, :, places], positions)
    return ((queries @ keys.mH).real / q.shape[-1] ** 0.5).softmax(-1) @ v[:, :, places]


ENTRY = Entry(
    systems=("Rolling Forcing",),
    paper="Rolling Forcing: Autoregressive Long Video Diffusion in Real Time",
    year=2025,
    conventions="Frames of the window see each other both ways. Sinks lie right before the recent frames, in time.",
    pitfall="Sinks are cached without a rotation: their positions change at every step, with the window's.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The paper as summed up by its authors' repository; positions of time only",
    refuses={"tokens": 0, "sink": -1, "recent": -1, "start": 4},
    usual=Size(1, 12, 4096, 128),
)

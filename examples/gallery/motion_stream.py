"""Streaming video generation: chunks of frames see the first chunks and the last few, at positions of cache slots."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.turned import turned

TEXT = """
attention sinks(chunk: int = 15, sink: int = 1) {
    let there = kv_idx // chunk
    mask  there <= q_idx // chunk and there < sink
}
attention window(chunk: int = 15, sink: int = 1, window: int = 2) {
    require window >= 1, "`window` counts chunks, the query's own among them, at least 1"
    let here = q_idx // chunk
    let there = kv_idx // chunk
    mask  there <= here and there >= sink and here - there < window
}
"""
cache = ad.parse(TEXT)


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "tokens": max(5, size.length // 24), "frames": 3, "sink": 1, "window": 2}


def run(q: Tensor, k: Tensor, v: Tensor, tokens: int, frames: int, sink: int, window: int) -> Tensor:
    ad.require(tokens >= 1, "`tokens` counts those of a frame, at least 1")
    ad.require(frames >= 1, "`frames` counts those of a chunk, at least 1")
    ad.require(sink >= 0, "`sink` counts chunks, 0 for none")
    frame, chunk = torch.arange(q.shape[2]) // tokens, tokens * frames
    # Once the cache rolls, the window's chunks move to the slots behind the sinks, and the query with them.
    rolled = (frame // frames - (sink + window - 1)).clamp(min=0) * frames
    seen = rotate(k, frame)
    near, far = cache.window(chunk=chunk, sink=sink, window=window), cache.sinks(chunk=chunk, sink=sink)
    parts = (
        near(rotate(q, frame), seen, v, return_aux=["lse"]),
        far(rotate(q, frame - rolled), seen, v, return_aux=["lse"]),
    )
    return ad.merge(*parts)[0]


def formula(q: Tensor, k: Tensor, v: Tensor, tokens: int, frames: int, sink: int, window: int) -> Tensor:
    """Chunk by chunk as it is generated: the cache is the sinks and the window, rotated by the slots they lie in."""
    length, size, outputs = q.shape[2], tokens * frames, []
    for start in range(0, length, size):
        now = start // size
        kept = [chunk for chunk in range(now + 1) if chunk < sink or now - chunk < window]
        places = torch.cat([torch.arange(chunk * size, min((chunk + 1) * size, length)) for chunk in kept])
        slots = torch.cat([slot * frames + torch.arange(size) // tokens for slot in range(len(kept))])[: len(places)]
        keys, own = turned(k[:, :, places], slots), torch.arange(start, min(start + size, length))
        queries = turned(q[:, :, own], slots[len(places) - len(own) :])
        outputs.append(((queries @ keys.mH).real / q.shape[-1] ** 0.5).softmax(-1) @ v[:, :, places])
    return torch.cat(outputs, 2)


ENTRY = Entry(
    systems=("MotionStream",),
    paper="MotionStream: Real-Time Video Generation with Interactive Motion Controls",
    year=2025,
    conventions="A chunk sees itself whole; `window` counts it, `sink` chunks come on top. Temporal rotary axis only.",
    pitfall="A query's slot stops growing once the cache rolls, so its distance to a sink does: in training as later.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The paper's abstract: windows of chunks, sinks, and a cache that rolls in training as at inference",
    refuses={"tokens": 0, "frames": 0, "sink": -1, "window": 0},
    usual=Size(1, 12, 4096, 128),
)

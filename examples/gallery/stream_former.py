"""Video backbone with attention over time at each place of the image, causal, and inside each frame over places."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.mask_mod
def temporal(q_idx, kv_idx, *, places: int):
    ad.require(places >= 1, "`places` counts those of a frame, at least 1")
    return (kv_idx <= q_idx) & ((q_idx - kv_idx) % places == 0)


over_time = ad.attention(mask_mod=temporal, name="temporal")
within = ad.attention(mask_mod=ad.masks.block_causal(window=1), name="spatial")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "places": max(7, size.length // 16)}


def run(q: Tensor, k: Tensor, v: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Tokens stay flattened: no reshape to sequences of time or space in between."""
    past = over_time.bind(places=places)(q, k, v)
    return past, within.bind(block=places)(q, k, past)


def formula(q: Tensor, k: Tensor, v: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Causal attention for each place, then full attention for each frame, as sequences of their own."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    token = torch.arange(q.shape[2], device=q.device)
    frame, place = token // places, token % places
    column = (place[:, None] == place) & (frame[:, None] >= frame)
    past = scores.masked_fill(~column, -torch.inf).softmax(-1) @ v
    return past, scores.masked_fill(frame[:, None] != frame, -torch.inf).softmax(-1) @ past


ENTRY = Entry(
    systems=("StreamFormer",),
    paper="Learning Streaming Video Representation via Multitask Training",
    year=2025,
    conventions="Time before space, `places` tokens to a frame; both layers of one q and k, for brevity.",
    pitfall="On flattened tokens causality is not enough: a query sees only earlier tokens of its own place.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"places": 0},
)

"""A grid of videos, one for each camera: a token attends to its own view at all times and to all views at its time."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.mask_mod
def view_or_time(q_idx, kv_idx, kv_len, *, times: int, places: int):
    ad.require((times >= 1) & (places >= 1), "`times` and `places` count frames of a view and tokens of a frame")
    ad.require(kv_len % (times * places) == 0, "`times` frames of `places` tokens do not divide the tokens into views")
    frame, other = q_idx // places, kv_idx // places
    return (frame // times == other // times) | (frame % times == other % times)


attention = ad.attention(mask_mod=view_or_time, name="four_real_video")
VIEWS, TIMES = 4, 5


def inputs(size: Size, draw: Draw) -> Inputs:
    places = size.length // (VIEWS * TIMES)
    grid = Size(size.batch, size.heads, VIEWS * TIMES * places, size.head_dim)
    return {**draw.qkv(grid), "times": TIMES, "places": places}


def run(q: Tensor, k: Tensor, v: Tensor, times: int, places: int) -> Tensor:
    return attention.bind(times=times, places=places)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, times: int, places: int) -> Tensor:
    """One softmax over the tokens of the same view and those of the same time."""
    views = q.shape[2] // (times * places)
    view, time, _ = torch.meshgrid(*(torch.arange(n, device=q.device) for n in (views, times, places)), indexing="ij")
    view, time = view.flatten(), time.flatten()
    live = (view[:, None] == view) | (time[:, None] == time)
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("4Real-Video-V2 (view-time attention)",),
    paper="4Real-Video-V2: Fused View-Time Attention and Feedforward Reconstruction for 4D Scene Generation",
    year=2025,
    conventions="Tokens are in the order view, time, place. (views + times - 1) / (views * times) of the pairs are "
    "seen.",
    pitfall="One softmax over the union: the sum of a view attention and a time attention counts the own frame twice.",
    source="the project page: tokens attend to those in the same frame, at the same time or of the same view",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"times": [0, 3], "places": [0, 3]},
)

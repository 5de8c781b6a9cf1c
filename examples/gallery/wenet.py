"""Chunked encoder attention of streaming speech recognition, with a chunk size that changes from call to call."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.mask_mod
def chunks(q_idx, kv_idx, *, chunk: int, left: int):
    ad.require(chunk >= 1, "`chunk` counts frames, at least 1")
    ad.require(left >= 0, "`left` counts chunks before the query's own, 0 for none")
    here, there = q_idx // chunk, kv_idx // chunk
    return (there <= here) & (there >= here - left)


attention = ad.attention(mask_mod=chunks, name="wenet")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "chunk": 16, "left": 2}


def run(q: Tensor, k: Tensor, v: Tensor, chunk: int, left: int) -> Tensor:
    return attention.bind(chunk=chunk, left=left)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, chunk: int, left: int) -> Tensor:
    """Softmax over the frames of the query's own chunk, all of it, and of `left` chunks before."""
    places = torch.arange(q.shape[2]) // chunk
    behind = places[:, None] - places[None, :]
    live = (behind >= 0) & (behind <= left)
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("WeNet (dynamic chunk)",),
    paper="WeNet: Production Oriented Streaming and Non-streaming End-to-End Speech Recognition Toolkit",
    year=2021,
    conventions="Chunks count from frame 0; a frame sees its whole chunk, later frames of it included, and "
    "`left` chunks before. All chunks (-1 in the toolkit) are as many as there are.",
    pitfall="The chunk size is drawn anew for every training batch: as a run-time number it compiles once.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"chunk": 0, "left": -1},
)

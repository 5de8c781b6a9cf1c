"""Self-supervised speech encoder trained for any latency: attention within chunks, or to all chunks so far, of a size
drawn for every batch."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.block_causal, name="gigaam")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "chunk": 25}


def run(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    ad.require(chunk >= 1, "`chunk` counts frames, at least 1")
    chunks = -(-k.shape[2] // chunk)
    return attention.bind(block=chunk, window=1)(q, k, v), attention.bind(block=chunk, window=chunks)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Softmax over the frames of the own chunk; over those of the own chunk and all before."""
    chunks = torch.arange(q.shape[2], device=q.device) // chunk
    scores = q @ k.mT / q.shape[-1] ** 0.5
    masks = chunks == chunks[:, None], chunks <= chunks[:, None]
    own, past = (scores.masked_fill(~live, -torch.inf).softmax(-1) @ v for live in masks)
    return own, past


ENTRY = Entry(
    systems=("GigaAM",),
    paper="GigaAM: Efficient Self-Supervised Learner for Speech Recognition",
    year=2025,
    conventions="Chunks count from frame 0 and are seen whole; a chunk as long as the recording is full attention. "
    "The second result is the dynamic chunk attention of WeNet without a limit to the left.",
    pitfall="The size of a chunk differs from batch to batch: it must be a number of the call.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"chunk": 0},
)

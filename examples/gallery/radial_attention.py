"""Video attention whose band of tokens narrows, and whose frames thin out, as frames lie farther apart."""

from functools import cache

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@cache
def attention(frames: int, tokens: int, decay: float, block: int) -> ad.Attention:
    grid = ad.grid(t=frames, place=tokens)
    return ad.attention(mask_mod=ad.masks.radial(grid, decay=decay, block=block), name="radial")


def inputs(size: Size, draw: Draw) -> Inputs:
    frames = 16
    tokens = size.length // frames
    given = draw.qkv(Size(size.batch, size.heads, frames * tokens, size.head_dim))
    return {**given, "frames": frames, "decay": 0.75, "block": 1 << max(1, (tokens // 4).bit_length() - 1)}


def run(q: Tensor, k: Tensor, v: Tensor, frames: int, decay: float, block: int) -> Tensor:
    ad.require(frames >= 1 and q.shape[2] % max(frames, 1) == 0, "`frames` does not divide the length")
    return attention(frames, q.shape[2] // frames, decay, block)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, frames: int, decay: float, block: int) -> Tensor:
    """Frame pair by frame pair: a band of width 2^ceil * decay / 2^group, none thinner than a block."""
    tokens = q.shape[2] // frames
    apart = (torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]).abs()
    full = 2 ** len(f"{tokens:b}")
    live = torch.zeros(frames, tokens, frames, tokens, dtype=torch.bool)
    for i in range(frames):
        for j in range(frames):
            distance = abs(i - j)
            width = full / 2 ** len(f"{distance:b}") if distance else full
            if j == 0 or distance <= 1:
                live[i, :, j] = True
            elif width >= block or distance % int(block / width) == 0:
                live[i, :, j] = apart <= max(width * decay, block)
    live = live.reshape(q.shape[2], q.shape[2]).to(q.device)
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("Radial Attention",),
    paper="Radial Attention: O(n log n) Sparse Attention with Energy Decay for Long Video Generation",
    year=2025,
    conventions="Video tokens alone, as in models whose text has attention of its own. The first frame is a sink.",
    pitfall="The released kernels round this mask to blocks of 128, which keeps other tokens than the mask says.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The mask of the authors' repository, before it is rounded to blocks",
    refuses={"frames": 7, "decay": 0.0, "block": 0},
    usual=Size(1, 12, 4096, 128),
)

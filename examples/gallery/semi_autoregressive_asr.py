"""Streaming speech encoder in blocks: frames see their block, some around it, and a summary of the one before."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = """
attention contextual(frames: int, hop: int = 16, left: int = 8, right: int = 4) {
    let block = q_idx // hop if q_idx < frames else q_idx - frames
    let first = block * hop
    let near = kv_idx < frames and kv_idx >= first - left and kv_idx < first + hop + right
    mask  near or kv_idx >= frames and kv_idx == frames + block - 1
}
"""
attention = ad.parse(TEXT).contextual


def inputs(size: Size, draw: Draw) -> Inputs:
    """Frames, and behind them a context token for each block."""
    hop = max(12, size.length // 64)
    frames = (size.length - 1) * hop // (hop + 1)
    given = draw.qkv(Size(size.batch, size.heads, frames + -(-frames // hop), size.head_dim))
    return {**given, "frames": frames, "hop": hop, "left": hop // 2, "right": hop // 3}


def run(q: Tensor, k: Tensor, v: Tensor, frames: int, hop: int, left: int, right: int) -> Tensor:
    ad.require(hop >= 1, "`hop` counts the frames of a block, at least 1")
    ad.require(left >= 0, "`left` counts frames before a block, at least 0")
    ad.require(right >= 0, "`right` counts frames after a block, at least 0")
    ad.require(frames + -(-frames // hop) == q.shape[2], "`frames` and a context token a block are not the tokens")
    return attention(frames=frames, hop=hop, left=left, right=right)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, frames: int, hop: int, left: int, right: int) -> Tensor:
    """Block by block: its frames and its context token over frames around it and the context token before."""
    rows = []
    for block, start in enumerate(range(0, frames, hop)):
        near = list(range(max(0, start - left), min(start + hop + right, frames)))
        keys = near + ([frames + block - 1] if block > 0 else [])
        own = [*range(start, min(start + hop, frames)), frames + block]
        weights = (q[:, :, own] @ k[:, :, keys].mT / q.shape[-1] ** 0.5).softmax(-1)
        rows.append((own, weights @ v[:, :, keys]))
    order = torch.tensor([place for own, _ in rows for place in own]).argsort()
    return torch.cat([out for _, out in rows], 2)[:, :, order]


ENTRY = Entry(
    systems=("Semi-autoregressive streaming ASR",),
    paper="Semi-Autoregressive Streaming ASR With Label Context",
    year=2023,
    conventions="Encoder only; labels are in a language model. Context tokens follow the frames; block 0 sees none.",
    pitfall="Blocks overlap in what they see. The token before block 0 would be the last frame, unless it is excluded.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"hop": 0, "left": -1, "right": -1, "frames": 3},
)

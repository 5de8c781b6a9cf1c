"""Digital humans: interleaved text, sound and video in chunks, a reference portrait, and states of a thinking model."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate_axes

TEXT = """
attention actor(chunk: int tensor[N], reference: bool tensor[N]) {
    mask  chunk[kv_idx] <= chunk[q_idx] or reference[kv_idx]
}
attention thinker(chunk: int tensor[N], thought: int tensor[M]) { mask thought[kv_idx] <= chunk[q_idx] }
"""
streamer = ad.parse(TEXT)


def inputs(size: Size, draw: Draw) -> Inputs:
    """Chunks of 3 words, 5 sounds and the patches of a picture, after which the portrait is stored, last of all."""
    portrait, span = 6, max(14, size.length // 6)
    token = torch.arange(size.length)
    place = token % span
    video, is_portrait = place >= 8, token >= size.length - portrait
    time = torch.where(is_portrait, 0, token // span * 8 + torch.where(video, 7, place))
    thoughts = draw.qkv(size, kv_length=20)
    return {
        **draw.qkv(size),
        "thought_k": thoughts["k"],
        "thought_v": thoughts["v"],
        "chunk": torch.where(is_portrait, -1, token // span),
        "thought": torch.arange(20) // 4,
        "positions": torch.stack((time, torch.where(video, place % 3, 0), torch.where(video, place // 3, 0))),
    }


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    thought_k: Tensor,
    thought_v: Tensor,
    chunk: Tensor,
    thought: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    ad.require(chunk.shape == q.shape[2:3] and chunk >= -1, "`chunk` has a number for each token, -1 for the portrait")
    ad.require(thought.shape == thought_k.shape[2:3], "`thought` has a chunk for each state")
    ad.require(positions.shape == (3, q.shape[2]), "`positions` has time, row and column of each token")
    d = q.shape[-1]
    channels = (d // 2, d // 4, d // 4)
    turned = [rotate_axes(x, tuple(positions), channels) for x in (q, k)]
    told = streamer.actor(chunk=chunk, reference=chunk < 0)(*turned, v)
    return told, streamer.thinker(chunk=chunk, thought=thought)(q, thought_k, thought_v)


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    thought_k: Tensor,
    thought_v: Tensor,
    chunk: Tensor,
    thought: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Self-attention over chunks up to this one and the portrait; cross-attention over thoughts of chunks up to it."""
    d, sizes = q.shape[-1], (q.shape[-1] // 2, q.shape[-1] // 4, q.shape[-1] // 4)
    turned = []
    for x in (q, k):
        parts = []
        for part, place in zip(x.split(sizes, -1), positions, strict=True):
            rates = 10000.0 ** -(torch.arange(0, part.shape[-1], 2, device=x.device).double() / part.shape[-1])
            angle = place[:, None] * rates
            parts.append(torch.complex(*part.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle))
        turned.append(torch.cat(parts, -1))
    scores = (turned[0] @ turned[1].mH).real.to(q.dtype)
    hidden = (chunk[None, :] > chunk[:, None]) & (chunk[None, :] >= 0)
    told = (scores / d**0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    unthought = thought[None, :] > chunk[:, None]
    weights = torch.where(unthought, -1e30, q @ thought_k.mT / d**0.5).softmax(-1)
    return told, torch.where(unthought, 0.0, weights) @ thought_v


ENTRY = Entry(
    systems=("X-Streamer",),
    paper="X-Streamer: Unified Human World Modeling with Audiovisual Interaction",
    year=2025,
    conventions="Full inside a chunk. Tokens of the portrait have chunk -1, are seen by all, and have no thoughts: 0.",
    pitfall="Modalities are interleaved in storage: chunk and time of a token are data, not its index.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The paper's abstract; which thoughts a chunk sees is a reading of it",
    refuses={
        "chunk": torch.zeros(5, dtype=torch.int64),
        "thought": torch.zeros(5, dtype=torch.int64),
        "positions": torch.zeros(3, 1, dtype=torch.int64),
    },
    usual=Size(1, 8, 4096, 128),
)

"""A playable world model: chunks of video attend to a rolling window of chunks, and in training noisy chunks attend to
the clean ones before them and to themselves."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.mask_mod
def teacher_forced(q_idx, kv_idx, *, chunks=ad.IntTensor["N"], noisy=ad.BoolTensor["N"]):
    behind = chunks[q_idx] - chunks[kv_idx]
    among_clean = ~noisy[kv_idx] & ad.where(noisy[q_idx], behind > 0, behind >= 0)
    return among_clean | (noisy[q_idx] & noisy[kv_idx] & (behind == 0))


played = ad.attention(mask_mod=ad.masks.block_causal, name="matrix_game")
trained = ad.attention(mask_mod=teacher_forced, name="matrix_game_training")


def inputs(size: Size, draw: Draw) -> Inputs:
    half = size.length // 2
    chunks = (torch.arange(half) // 12).repeat(2)
    noisy = torch.arange(2 * half) >= half
    even = Size(size.batch, size.heads, 2 * half, size.head_dim)
    return {**draw.qkv(even), "chunk": 12, "window": 3, "chunks": chunks, "noisy": noisy}


def run(
    q: Tensor, k: Tensor, v: Tensor, chunk: int, window: int, chunks: Tensor, noisy: Tensor
) -> tuple[Tensor, Tensor]:
    ad.require(chunk >= 1, "`chunk` counts tokens, at least 1")
    fits = chunks.shape == noisy.shape == q.shape[2:3]
    ad.require(fits, "`chunks` and `noisy` have one value for each token")
    rolling = played.bind(block=chunk, window=window)
    return rolling(q, k, v), trained.bind(chunks=chunks, noisy=noisy)(q, k, v)


def formula(
    q: Tensor, k: Tensor, v: Tensor, chunk: int, window: int, chunks: Tensor, noisy: Tensor
) -> tuple[Tensor, Tensor]:
    """Chunks c - window + 1 to c; and, of chunk c, clean: clean chunks to c, noisy: clean before c and noisy c."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    order = torch.arange(q.shape[2], device=q.device) // chunk
    behind = order[:, None] - order
    rolling = (behind >= 0) & (behind < window)
    of_query, of_key = chunks[:, None], chunks[None]
    clean = ~noisy[:, None] & ~noisy & (of_key <= of_query)
    forced = noisy[:, None] & torch.where(noisy, of_key == of_query, of_key < of_query)
    first, second = (scores.masked_fill(~live, -torch.inf).softmax(-1) @ v for live in (rolling, clean | forced))
    return first, second


ENTRY = Entry(
    systems=("Matrix-Game 2.0",),
    paper="Matrix-Game 2.0: An Open-Source, Real-Time, and Streaming Interactive World Model",
    year=2025,
    conventions="The video's self-attention. First the mask that runs, whose window includes the own chunk; then that "
    "of training, on clean tokens followed by as many noisy ones. Each chunk is seen whole.",
    pitfall="The two masks differ: trained on the one that runs, noisy chunks would see noisy ones before them.",
    source="teacher-forcing masks of public causal video models of the same family: clean chunks are causal, a noisy "
    "chunk sees the clean chunks before it and itself",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "chunk": 0,
        "window": 0,
        "chunks": torch.zeros(5, dtype=torch.int64),
        "noisy": torch.zeros(5, dtype=torch.bool),
    },
    usual=Size(1, 8, 4096, 128),
)

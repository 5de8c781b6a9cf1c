"""Personalised speech enhancement: frames of a mixture look up a speaker's enrolment, then their own recent past."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

enrolment = ad.parse("attention enrolment(lengths: int tensor[B]) { mask kv_idx < lengths[b] }").enrolment
recent = ad.attention(mask_mod=ad.masks.band(right=0), name="recent")


def inputs(size: Size, draw: Draw) -> Inputs:
    frames = max(8, size.length // 3)
    mixture, speaker = draw.qkv(size), draw.qkv(size, kv_length=frames)
    lengths = draw.integers(frames // 2, frames + 1, size.batch)
    return {**mixture, "speaker_k": speaker["k"], "speaker_v": speaker["v"], "lengths": lengths, "left": 20}


def run(
    q: Tensor, k: Tensor, v: Tensor, speaker_k: Tensor, speaker_v: Tensor, lengths: Tensor, left: int
) -> tuple[Tensor, Tensor]:
    ad.require((lengths >= 1) & (lengths <= speaker_k.shape[2]), "`lengths` counts frames of each enrolment, 1 to all")
    return enrolment(lengths=lengths)(q, speaker_k, speaker_v), recent.bind(left=left)(q, k, v)


def formula(
    q: Tensor, k: Tensor, v: Tensor, speaker_k: Tensor, speaker_v: Tensor, lengths: Tensor, left: int
) -> tuple[Tensor, Tensor]:
    """Cross-attention over the real frames of the enrolment, and self-attention over t - left to t."""
    known = torch.arange(speaker_k.shape[2], device=q.device) < lengths[:, None]
    cross = (q @ speaker_k.mT / q.shape[-1] ** 0.5).masked_fill(~known[:, None, None], -torch.inf).softmax(-1)
    behind = torch.arange(q.shape[2], device=q.device)[:, None] - torch.arange(q.shape[2], device=q.device)
    near = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill((behind < 0) | (behind > left), -torch.inf).softmax(-1)
    return cross @ speaker_v, near @ v


ENTRY = Entry(
    systems=("Streaming PSE cross-attention",),
    paper="Cross-Attention is all you need: Real-Time Streaming Transformers for Personalised Speech Enhancement",
    year=2022,
    conventions="Enrolments are padded at their end; a frame sees itself and `left` before it.",
    pitfall="Enrolments differ in length from one utterance to the next: their padding must be out of the softmax.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"left": -1, "lengths": torch.zeros(2, dtype=torch.int64)},
)

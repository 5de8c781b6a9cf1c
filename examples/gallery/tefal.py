"""A caption reads the audio and the frames of a video, each by an attention of its own, and the two are added."""

from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(name="tefal")
CAPTIONS = 16


def inputs(size: Size, draw: Draw) -> Inputs:
    def tokens(length: int) -> Tensor:
        return draw.normal(size.batch, size.heads, length, size.head_dim)

    audio, frames = size.length, max(1, size.length // 8)
    named = {"audio_k": audio, "audio_v": audio, "frames_k": frames, "frames_v": frames}
    return {"captions": tokens(CAPTIONS), **{name: tokens(length) for name, length in named.items()}}


def run(captions: Tensor, audio_k: Tensor, audio_v: Tensor, frames_k: Tensor, frames_v: Tensor) -> Tensor:
    return attention(captions, audio_k, audio_v) + attention(captions, frames_k, frames_v)


def formula(captions: Tensor, audio_k: Tensor, audio_v: Tensor, frames_k: Tensor, frames_v: Tensor) -> Tensor:
    """softmax(T A^T / sqrt(d)) A' + softmax(T F^T / sqrt(d)) F'."""
    results = []
    for k, v in ((audio_k, audio_v), (frames_k, frames_v)):
        results.append((captions @ k.mT / k.shape[-1] ** 0.5).softmax(-1) @ v)
    return results[0] + results[1]


ENTRY = Entry(
    systems=("TEFAL",),
    paper="Audio-Enhanced Text-to-Video Retrieval using Text-Conditioned Feature Alignment",
    year=2023,
    conventions="Plain softmax attention in its setting: a few captions as queries, one row each.",
    pitfall="Two softmaxes whose outputs add up; one over audio and frames together would let the longer of them "
    "drown the other.",
    inputs=inputs,
    run=run,
    formula=formula,
)

"""Speech from text that is still arriving: audio frames attend to a few text tokens about where the voice is, both
sides rotated by positions of their own stream."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.shapes import shaped
from examples.gallery.turned import turned

bounds_of_queries = {"first": ad.IntTensor["B, Q"], "end": ad.IntTensor["B, Q"]}
attention = ad.attention(mask_mod=ad.masks.between(**bounds_of_queries), name="livespeech2")


def inputs(size: Size, draw: Draw) -> Inputs:
    tokens = max(size.length // 4, 2)
    start = draw.integers(0, 3, size.batch, size.length).eq(0).cumsum(1).clamp(max=tokens - 1)
    return {**draw.qkv(size, kv_length=tokens), "start": start, "window": 9, "q_from": 40, "k_from": 7}


def run(q: Tensor, k: Tensor, v: Tensor, start: Tensor, window: int, q_from: int, k_from: int) -> Tensor:
    ad.require(window >= 1, "`window` counts text tokens, at least 1")
    ad.require(q_from >= 0, "`q_from` is a position in the stream of frames, at least 0")
    ad.require(k_from >= 0, "`k_from` is a position in the stream of text, at least 0")
    shaped("start", start, len(q), q.shape[2])
    ad.require(((start >= 0) & (start < k.shape[2])).all(), "`start` is a text token of the call")
    q = rotate(q, q_from + torch.arange(q.shape[2], device=q.device))
    k = rotate(k, k_from + torch.arange(k.shape[2], device=k.device))
    return attention.bind(first=start, end=start + window)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, start: Tensor, window: int, q_from: int, k_from: int) -> Tensor:
    """Softmax over tokens start_i to start_i + window - 1 of Re <q_i, k_j exp(i (p_j - p_i) theta)> / sqrt(d)."""
    dim, tokens = q.shape[-1], torch.arange(k.shape[2], device=q.device)
    frames = torch.arange(q.shape[2], device=q.device)
    scores = turned(q, q_from + frames) @ turned(k, k_from + tokens).mH
    ahead = tokens - start[:, None, :, None]
    live = (ahead >= 0) & (ahead < window)
    return (scores.real / dim**0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("LiveSpeech 2",),
    paper="Zero-Shot Text-to-Speech from Continuous Text Streams",
    year=2024,
    conventions="Cross-attention: queries are audio frames, keys the text tokens that are kept, the first of each at "
    "the positions `q_from` and `k_from` of its stream. A frame sees `window` tokens from its `start`, fewer at the "
    "end.",
    pitfall="Positions are those in the stream: the places in a cache, which move with the window, rotate wrongly.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "window": 0,
        "start": [torch.full((2, 97), -1), torch.full((2, 97), 24), torch.zeros(2, 98).int()],
        "q_from": -1,
        "k_from": -1,
    },
)

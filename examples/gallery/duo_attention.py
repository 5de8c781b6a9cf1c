"""Tells heads that retrieve from heads that stream: while searching, every head is a mix of full attention and of a
sink with a window; after that each is one of the two."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped


@ad.mask_mod
def by_role(h, q_idx, kv_idx, *, retrieves=ad.BoolTensor["H"], sink: int, window: int):
    ad.require(sink >= 0, "`sink` counts tokens, 0 for none")
    ad.require(window >= 1, "`window` counts tokens up to the query's own, at least 1")
    streams = (kv_idx < sink) | (q_idx - kv_idx < window)
    return (kv_idx <= q_idx) & (retrieves[h] | streams)


attention = ad.attention(mask_mod=by_role, name="duo_attention")


def inputs(size: Size, draw: Draw) -> Inputs:
    kv_heads = size.heads // 2
    shares = draw.uniform(0.0, 1.0, kv_heads)
    return {**draw.qkv(size, kv_heads=kv_heads), "shares": shares, "sink": 4, "window": 16}


def run(q: Tensor, k: Tensor, v: Tensor, shares: Tensor, sink: int, window: int) -> tuple[Tensor, Tensor]:
    shaped("shares", shares, k.shape[1])
    ad.require(((shares >= 0) & (shares <= 1)).all(), "`shares` of full attention are 0 to 1, one for each key head")
    shares = shares.repeat_interleave(q.shape[1] // k.shape[1])
    every = torch.ones_like(shares, dtype=torch.bool)
    roles = every, ~every, shares.detach() > 0.5
    heads = attention.bind(sink=sink, window=window)
    full, streaming, split = (heads.bind(retrieves=each)(q, k, v, enable_gqa=True) for each in roles)
    return streaming.lerp(full, shares[:, None, None]), split


def formula(q: Tensor, k: Tensor, v: Tensor, shares: Tensor, sink: int, window: int) -> tuple[Tensor, Tensor]:
    """a full + (1 - a) streaming; then full where a > 1/2, streaming elsewhere."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    shares = shares.repeat_interleave(group)[:, None, None]
    places = torch.arange(q.shape[2], device=q.device)
    behind = places[:, None] - places
    full, streaming = behind >= 0, (behind >= 0) & ((behind < window) | (places < sink))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    both = [scores.masked_fill(~live, -torch.inf).softmax(-1) @ v for live in (full, streaming)]
    return shares * both[0] + (1 - shares) * both[1], torch.where(shares > 0.5, *both)


ENTRY = Entry(
    systems=("DuoAttention",),
    paper="DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads",
    year=2024,
    conventions="Causal; the window includes the query's own token. A share belongs to a key head and its query "
    "heads. Three calls of one attention, with other roles.",
    pitfall="Roles are those of key heads, as the cache is: under grouped heads all queries of a group have one role.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"sink": -1, "window": 0, "shares": [torch.full((2,), 1.5), torch.ones(1), torch.ones(4)]},
    usual=Size(1, 8, 4096, 128),
)

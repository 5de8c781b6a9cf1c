"""Finds the lazy layers of a language model, whose last queries read little but the first and the latest tokens, and
lets these layers see nothing else."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.sinks_and_window, name="light_transfer")
share = ad.aux.mass(ad.masks.sinks_and_window)


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "sink": 4, "window": 24, "last": 16}


def run(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    ad.require(window >= 1, "`window` counts tokens up to the query's own, at least 1")
    ad.require(sink >= 0, "`sink` counts tokens, 0 for none")
    ad.require(1 <= last <= q.shape[2], "`last` counts the queries that judge a layer, 1 to the length")
    lazy = {"sink": sink, "window": window}
    full, aux = attention.bind(sink=0, window=k.shape[2])(q, k, v, return_aux=[share.bind(**lazy)])
    return full, aux.mass[:, :, -last:].mean(-1), attention.bind(**lazy)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, sink: int, window: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Full attention; the weight its last rows give to sink and window; attention to these alone."""
    length = q.shape[2]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    places = torch.arange(length, device=q.device)
    behind = places[:, None] - places
    weights = scores.masked_fill(behind < 0, -torch.inf).softmax(-1)
    kept = (behind >= 0) & ((places < sink) | (behind < window))
    ratio = (weights * kept)[:, :, length - last :].sum(-1).mean(-1)
    return weights @ v, ratio, scores.masked_fill(~kept, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("LightTransfer",),
    paper="LightTransfer: Your Long-Context LLM is Secretly a Hybrid Model with Effortless Adaptation",
    year=2024,
    conventions="Causal; the window includes the query's own token. The ratio is that of a head: a layer's is their "
    "mean, and the layers with the largest become lazy. A window as long as the sequence is full attention.",
    pitfall="The ratio is the weight of a set of keys under the softmax over all: the softmax over that set has "
    "weight 1.",
    source="the paper's page: streaming attention for the layers whose weight on first and latest tokens is largest",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"window": 0, "sink": -1, "last": [0, 98]},
    usual=Size(1, 8, 4096, 128),
)

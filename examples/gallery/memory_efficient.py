"""Exact attention that never holds more of the scores than a chunk: memory for the output, not for pairs."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

QUERIES, KEYS = 32, 24

attention = ad.attention(name="memory_efficient")


def inputs(size: Size, draw: Draw) -> Inputs:
    return draw.qkv(size, kv_length=size.length + 11)


def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Chunks of queries; of each, chunks of keys summarised by (maximum, sum, values), computed again for gradients."""
    return torch.cat([_rows(rows, k, v) for rows in q.split(QUERIES, 2)], 2)


def _rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = [
        checkpoint(_summary, q, keys, values, use_reentrant=False)
        for keys, values in zip(k.split(KEYS, 2), v.split(KEYS, 2), strict=True)
    ]
    tops, sums, values = (torch.stack(list(each)) for each in zip(*parts, strict=True))
    shares = (tops - tops.amax(0)).exp()
    return (shares * values).sum(0) / (shares * sums).sum(0)


def _summary(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    top = scores.detach().amax(-1, keepdim=True)
    exponents = (scores - top).exp()
    return top, exponents.sum(-1, keepdim=True), exponents @ v


ENTRY = Entry(
    systems=("Memory-efficient attention (Rabe-Staats)",),
    paper="Self-attention Does Not Need O(n^2) Memory",
    year=2021,
    conventions="Softmax over all keys. The formula is the paper's chunked one; a test holds the memory of a call, "
    "forward and backward, to a multiple of its inputs.",
    pitfall="The maximum of a chunk is a constant for gradients: it cancels in the quotient.",
    inputs=inputs,
    run=run,
    formula=formula,
    usual=Size(1, 1, 16384, 64),
)

"""Weights are the nearest point of the simplex to the scores: keys of low score get exactly nothing."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(
    mask_mod=ad.masks.padding(lengths=ad.IntTensor["B"]), normalizer=ad.normalizers.sparsemax(), name="sparsemax"
)


def inputs(size: Size, draw: Draw) -> Inputs:
    """Words of one sentence attend to those of another of `lengths` words."""
    return {**draw.qkv(size), "lengths": draw.integers(1, size.length + 1, size.batch)}


def run(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    ad.require(((lengths >= 1) & (lengths <= k.shape[2])).all(), "`lengths` count words, at least 1 of each sentence")
    return attention.bind(lengths=lengths)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    """Sorted scores z_1 >= z_2 >= ..: the largest k with 1 + k z_k > z_1 + .. + z_k; tau = (z_1 + .. + z_k - 1) / k."""
    live = torch.arange(k.shape[2], device=q.device) < lengths[:, None, None, None]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -1e4)
    ranked = scores.sort(-1, descending=True).values
    rank = torch.arange(1, k.shape[2] + 1, device=q.device)
    support = 1 + rank * ranked > ranked.cumsum(-1)
    tau = (torch.where(support, ranked, 0.0).sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True)
    return (scores - tau).clamp(min=0) @ v


ENTRY = Entry(
    systems=("Sparsemax",),
    paper="From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification",
    year=2016,
    conventions="All words of the other sentence, by their own scores; no causal mask.",
    pitfall="The threshold takes passes of its own over the keys and is what a backward pass keeps; of a key without "
    "weight, neither its score nor its value has a gradient.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"lengths": torch.zeros(2, dtype=torch.int64)},
)

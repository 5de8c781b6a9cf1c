"""Experts are chosen together by tokens that attend to each other: routing scores are averaged by attention weights."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(mask_mod=ad.masks.causal, name="attention_aware_smoe")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "routing": draw.normal(size.batch, size.length, 16)}


def run(q: Tensor, k: Tensor, v: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
    """The attention's output and the averaged scores: the scores travel as further columns of the values."""
    shaped("routing", routing, len(k), k.shape[2], routing.shape[-1])
    columns = routing[:, None].expand(-1, q.shape[1], -1, -1)
    packed = attention(q, k, torch.cat([v, columns], -1))
    out, mixed = packed.split([v.shape[-1], routing.shape[-1]], -1)
    return out, mixed.mean(1)


def formula(q: Tensor, k: Tensor, v: Tensor, routing: Tensor) -> tuple[Tensor, Tensor]:
    """O = P V and r'_i = sum_j mean_h(P_ij) r_j."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1)
    return weights @ v, weights.mean(1) @ routing


ENTRY = Entry(
    systems=("Attention-Aware SMoE",),
    paper="Improving Routing in Sparse Mixture of Experts with Graph of Tokens",
    year=2025,
    conventions="Causal. The scores are averaged with the mean of all heads' weights, before experts are chosen; the "
    "choice itself is not part of the attention.",
    pitfall="The weights are never there to average with: what is averaged has to ride along with the values.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"routing": torch.zeros(2, 96, 16)},
)

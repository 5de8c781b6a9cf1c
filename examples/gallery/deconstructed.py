"""What remains of attention when one of its principles goes: the exponential, the product of queries and keys, or
their dependence on the input."""

import torch
from torch import Tensor
from torch.nn import functional as F

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(mask_mod=ad.masks.causal, name="deconstructed")
approximate = ad.attention(mask_mod=ad.masks.causal, normalizer=ad.normalizers.taylor(), name="deconstructed_taylor")


def inputs(size: Size, draw: Draw) -> Inputs:
    """`fixed_q` and `fixed_k` come from embeddings, random or of one text, that are the same for every input."""
    fixed = {name: draw.normal(1, size.heads, size.length, size.head_dim) for name in ("fixed_q", "fixed_k")}
    return {**draw.qkv(size), **fixed}


def run(q: Tensor, k: Tensor, v: Tensor, fixed_q: Tensor, fixed_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate, non-approximate (each key scores itself), fixed (one table of weights for the whole batch)."""
    shaped("fixed_q", fixed_q, 1, *q.shape[1:])
    shaped("fixed_k", fixed_k, 1, *k.shape[1:])
    alone = attention(torch.ones_like(q), F.silu(q) * k, v)
    same = attention(fixed_q.expand_as(q), fixed_k.expand_as(k), v)
    return approximate(q, k, v), alone, same


def formula(q: Tensor, k: Tensor, v: Tensor, fixed_q: Tensor, fixed_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(1 + s + s^2 / 2) / sum; softmax_j(silu(q_j) k_j / sqrt(d)); softmax(Q K^T / sqrt(d)) of constants; times V."""
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    root = q.shape[-1] ** 0.5
    scores = q @ k.mT / root
    series = torch.where(past, 1 + scores + scores.square() / 2, 0.0)
    own = torch.einsum("bhnd,bhnd->bhn", q * torch.sigmoid(q), k)[:, :, None] / root
    weights = own.expand_as(scores).masked_fill(~past, -torch.inf).softmax(-1)
    table = (fixed_q @ fixed_k.mT / root).masked_fill(~past, -torch.inf).softmax(-1)
    return series / series.sum(-1, keepdim=True) @ v, weights @ v, table @ v


ENTRY = Entry(
    systems=("Deconstructed attention variants",),
    paper="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
    year=2025,
    conventions="Causal. The variant without mixing of tokens is no attention and is left out; queries and keys from "
    "static embeddings of the input are softmax attention as it is.",
    pitfall="Fixed queries and keys have a batch of one, expanded: a kernel that wants them contiguous copies them for "
    "each input, and their gradient is a sum over the batch.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the paper's equations 6, 7, 10 and 12",
    refuses={"fixed_q": torch.zeros(2, 4, 97, 32), "fixed_k": torch.zeros(1, 4, 96, 32)},
)

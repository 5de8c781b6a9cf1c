"""A learned importance of each key, from its value, that is both a bias of the score and what decides who is kept."""

import torch
from torch import Tensor
from torch.nn import functional

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

TEXT = """
attention dma(importance: tensor[B, H, N], kept: bool tensor[B, H, N]) {
    score       score + importance[b, h, kv_idx]
    mask        kv_idx <= q_idx and kept[b, h, kv_idx]
}
"""
masked = ad.parse(TEXT).dma


def inputs(size: Size, draw: Draw) -> Inputs:
    """`weight` (Hkv, Hkv, D) and `gain` (Hkv,) make the importance; `keep` keys of each head are kept."""
    heads = size.heads // 2
    weight = draw.normal(heads, heads, size.head_dim) / (heads * size.head_dim) ** 0.5
    gain = draw.uniform(-2, 2, heads)
    return {**draw.qkv(size, kv_heads=heads), "weight": weight, "gain": gain, "keep": size.length // 3}


def run(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, gain: Tensor, keep: int) -> Tensor:
    """A head's importance of a key is read from the values of all heads there."""
    ad.require(1 <= keep <= k.shape[2], "`keep` counts keys, 1 to all of them")
    shaped("weight", weight, v.shape[1], v.shape[1], v.shape[-1])
    shaped("gain", gain, v.shape[1])
    values = v.transpose(1, 2).flatten(2)
    importance = gain[:, None] * functional.softplus(values @ weight.flatten(1).T).mT
    kept = torch.zeros_like(importance, dtype=torch.bool).scatter(-1, importance.topk(keep, -1).indices, True)
    importance, kept = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (importance, kept))
    return masked(importance=importance, kept=kept)(q, k, v, enable_gqa=True)


def formula(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, gain: Tensor, keep: int) -> Tensor:
    """softmax(Q K^T / sqrt(d) + delta) V over the keys with the `keep` largest delta, delta = A softplus(W v)."""
    delta = gain[:, None] * torch.log1p(torch.exp(torch.einsum("bhnd,ghd->bgn", v, weight)))
    least = delta.detach().sort(-1, descending=True).values[..., keep - 1 : keep]
    group, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v, delta, least = (x.repeat_interleave(group, 1) for x in (k, v, delta, least))
    live = (delta.detach() >= least)[:, :, None, :]
    live = live & torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    scores = q @ k.mT / q.shape[-1] ** 0.5 + delta[:, :, None, :]
    top = scores.detach().masked_fill(~live, -torch.inf).amax(-1, keepdim=True).clamp(min=-1e30)
    exponents = torch.where(live, torch.where(live, scores - top, 0.0).exp(), 0.0)
    total = exponents.sum(-1, keepdim=True)
    return exponents @ v / torch.where(total == 0, 1.0, total)


ENTRY = Entry(
    systems=("DMA (trainable dynamic mask)",),
    paper="Trainable Dynamic Mask Sparse Attention",
    year=2025,
    conventions="Causal, grouped heads. The importance is the logarithm of the paper's exp(A softplus(W v)). Keys are "
    "kept for the whole sequence, not for each prefix. The gradient of kept importances is that of the bias; the "
    "choice itself has none.",
    pitfall="The first queries may find no kept key before them: their output is 0, and so are their gradients.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"keep": [0, 98], "weight": torch.ones(2, 2, 31), "gain": torch.ones(3)},
    source="SmallDoges/flash-dmattn: its model's bias, in which the values of all heads make each head's, and its "
    "`topk_mask`",
    usual=Size(1, 16, 4096, 128),
)

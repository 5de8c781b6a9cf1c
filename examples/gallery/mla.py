"""Latent attention as one shared key and value: projections of keys and values are absorbed by queries and outputs."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="mla")


def inputs(size: Size, draw: Draw) -> Inputs:
    """`latent` (B, N, R) is all that is cached besides one rotary key for all heads; rotary parts come turned."""
    (b, h, n), d, rank = (size.batch, size.heads, size.length), size.head_dim, 2 * size.head_dim
    return {
        "q": draw.normal(b, h, n, d),
        "q_rotary": draw.normal(b, h, n, 8),
        "latent": draw.normal(b, n, rank),
        "k_rotary": draw.normal(b, n, 8),
        "up_k": draw.normal(h, rank, d) / rank**0.5,
        "up_v": draw.normal(h, rank, d) / rank**0.5,
    }


def run(q: Tensor, q_rotary: Tensor, latent: Tensor, k_rotary: Tensor, up_k: Tensor, up_v: Tensor) -> Tensor:
    """Queries move into the latent space, where the cache is key and value at once for every head."""
    queries = torch.cat((torch.einsum("bhnd,hrd->bhnr", q, up_k), q_rotary), -1)
    keys = torch.cat((latent, k_rotary), -1)[:, None]
    scale = (q.shape[-1] + q_rotary.shape[-1]) ** -0.5
    out = attention(queries, keys, latent[:, None], scale=scale, enable_gqa=True)
    return torch.einsum("bhnr,hrd->bhnd", out, up_v)


def formula(q: Tensor, q_rotary: Tensor, latent: Tensor, k_rotary: Tensor, up_k: Tensor, up_v: Tensor) -> Tensor:
    """Keys and values of every head built from the latent; s = (q . k + q_rotary . k_rotary) / sqrt(d + d_rotary)."""
    k, v = (torch.einsum("bnr,hrd->bhnd", latent, up) for up in (up_k, up_v))
    scores = (q @ k.mT + q_rotary @ k_rotary[:, None].mT) / (q.shape[-1] + q_rotary.shape[-1]) ** 0.5
    live = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("MLA (hardware-centric analysis)",),
    paper="Hardware-Centric Analysis of DeepSeek's Multi-Head Latent Attention",
    year=2025,
    conventions="Causal; rotary parts come turned. The scale is that of the head as it was before absorption, rotary "
    "part included.",
    pitfall="Rotary positions stand between a projection and the product and cannot be absorbed: they keep columns of "
    "their own, and values are narrower than keys.",
    inputs=inputs,
    run=run,
    formula=formula,
    usual=Size(1, 16, 4096, 64),
)

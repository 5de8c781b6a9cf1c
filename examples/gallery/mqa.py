"""All query heads share one head of keys and values, so that a step of decoding reads a small cache."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="mqa")


def inputs(size: Size, draw: Draw) -> Inputs:
    width, d = size.heads * size.head_dim, size.head_dim
    return {
        "x": draw.normal(size.batch, size.length, width),
        "w_q": draw.normal(size.heads, width, d) / width**0.5,
        "w_k": draw.normal(width, d) / width**0.5,
        "w_v": draw.normal(width, d) / width**0.5,
        "w_o": draw.normal(size.heads, d, width) / width**0.5,
    }


def run(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> tuple[Tensor, Tensor]:
    """Of all tokens at once, as in training, and of the last one alone against the cache, as in decoding."""
    ad.require(w_k.shape == w_v.shape == w_q.shape[1:], "`w_k` and `w_v` have the shape of one head of `w_q`")
    q, k, v = torch.einsum("bnc,hcd->bhnd", x, w_q), (x @ w_k)[:, None], (x @ w_v)[:, None]
    every = attention(q, k, v, enable_gqa=True)
    last = attention(q[:, :, -1:], k, v, enable_gqa=True, q_offset=x.shape[1] - 1)
    return torch.einsum("bhnd,hdc->bnc", every, w_o), torch.einsum("bhnd,hdc->bnc", last, w_o)


def formula(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> tuple[Tensor, Tensor]:
    """Y = sum_h softmax(X P_h (X P_K)^T / sqrt(d)) X P_V P_O,h."""
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
    total = torch.zeros_like(x)
    for project, back in zip(w_q, w_o, strict=True):
        scores = x @ project @ (x @ w_k).mT / w_k.shape[-1] ** 0.5
        total = total + scores.masked_fill(future, -torch.inf).softmax(-1) @ (x @ w_v) @ back
    return total, total[:, -1:]


ENTRY = Entry(
    systems=("MQA (multi-query attention)",),
    paper="Fast Transformer Decoding: One Write-Head is All You Need",
    year=2019,
    conventions="Causal, with the scale 1 / sqrt(d). The second result is the newest token against the whole cache.",
    pitfall="Gradients of the one key and value head are sums over all query heads; a step of decoding is fast only if "
    "heads share a tile.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"w_k": torch.zeros(128, 16)},
)

"""All heads share one query, key and value and differ by a learned vector each, added or multiplied."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.score_mod
def head_bias(score, b, h, kv_idx, *, bias=ad.Tensor["B, H, K"]):
    return score + bias[b, h, kv_idx]


added = ad.attention(score_mod=head_bias, name="mhe_add")
multiplied = ad.attention(name="mhe_mul")


def inputs(size: Size, draw: Draw) -> Inputs:
    one = Size(size.batch, 1, size.length, size.head_dim)
    embeddings = {f"e_{name}": draw.normal(size.heads, size.head_dim) / 2 for name in "qkv"}
    return {**draw.qkv(one), **embeddings}


def run(q: Tensor, k: Tensor, v: Tensor, e_q: Tensor, e_k: Tensor, e_v: Tensor) -> tuple[Tensor, Tensor]:
    """Added: the key's vector shifts whole rows and cancels, the query's is a bias of each key, the value's is added.

    Multiplied: both vectors move to the query, the value's to the output. Keys and values have one head either way.
    """
    ad.require(e_q.shape == e_k.shape == e_v.shape, "`e_q`, `e_k` and `e_v` have a vector for each head")
    queries = q.expand(-1, len(e_q), -1, -1)
    bias = e_q @ k[:, 0].mT / q.shape[-1] ** 0.5
    first = added.bind(bias=bias)(queries, k, v, enable_gqa=True) + e_v[:, None]
    second = multiplied(q * ((1 + e_q) * (1 + e_k))[:, None], k, v, enable_gqa=True) * (1 + e_v)[:, None]
    return first, second


def formula(q: Tensor, k: Tensor, v: Tensor, e_q: Tensor, e_k: Tensor, e_v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of q + a_h, k + b_h, v + c_h, and of q (1 + a_h), k (1 + b_h), v (1 + c_h)."""
    a, b, c = (each[:, None] for each in (e_q, e_k, e_v))
    scale = q.shape[-1] ** -0.5
    return (
        ((q + a) @ (k + b).mT * scale).softmax(-1) @ (v + c),
        ((q * (1 + a)) @ (k * (1 + b)).mT * scale).softmax(-1) @ (v * (1 + c)),
    )


ENTRY = Entry(
    systems=("MHE (multi-head embedding)",),
    paper="Pit One Against Many: Leveraging Attention-head Embeddings for Parameter-efficient Multi-head Attention",
    year=2023,
    conventions="First result: embeddings added; second: multiplied, as 1 + e. No mask.",
    pitfall="The key's embedding cancels where weights sum to 1 and shifts do nothing: not with a sink or a sigmoid.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"e_v": torch.zeros(1, 32)},
)

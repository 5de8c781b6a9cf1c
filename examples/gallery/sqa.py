"""Fewer query heads than the model is wide: the product of queries and keys itself is computed less often."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="sqa")


def inputs(size: Size, draw: Draw) -> Inputs:
    """Of `size.heads` heads that full attention would have, half remain for queries and a quarter for keys."""
    width = size.heads * size.head_dim
    queries, keys = size.heads // 2, size.heads // 4
    return {
        "x": draw.normal(size.batch, size.length, width),
        "w_q": draw.normal(width, queries, size.head_dim) / width**0.5,
        "w_k": draw.normal(width, keys, size.head_dim) / width**0.5,
        "w_v": draw.normal(width, keys, size.head_dim) / width**0.5,
        "w_o": draw.normal(queries, size.head_dim, width) / (queries * size.head_dim) ** 0.5,
    }


def run(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
    ad.require(w_q.shape[1] % w_k.shape[1] == 0, "`w_q` has a multiple of the heads of `w_k`")
    q, k, v = (torch.einsum("bnd,dhp->bhnp", x, weight) for weight in (w_q, w_k, w_v))
    return torch.einsum("bhnp,hpd->bnd", attention(q, k, v, enable_gqa=True), w_o)


def formula(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
    """concat over the H_q heads of softmax(Q_i K_j^T / sqrt(d)) V_j times W_O, j = i H_kv / H_q rounded down."""
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
    heads = []
    for i in range(w_q.shape[1]):
        j = i * w_k.shape[1] // w_q.shape[1]
        scores = (x @ w_q[:, i]) @ (x @ w_k[:, j]).mT / w_q.shape[-1] ** 0.5
        heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ (x @ w_v[:, j]))
    return torch.cat(heads, -1) @ w_o.flatten(0, 1)


ENTRY = Entry(
    systems=("SQA (sparse query attention)",),
    paper="Sparse Query Attention (SQA): A Computationally Efficient Attention Mechanism with Query Heads Reduction",
    year=2025,
    conventions="Plain softmax attention in its setting: half the query heads, a quarter of the key heads. Causal.",
    pitfall="The output projection is not square: it takes the reduced heads back to the width of the model.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"w_k": torch.zeros(128, 4, 32)},
    usual=Size(1, 16, 4096, 64),
)

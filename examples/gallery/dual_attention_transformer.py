"""Heads that gather relations: what is summed is not the other token but how it relates to this one."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(mask_mod=ad.masks.causal, name="dual_attention_transformer")
RELATIONS, WIDTH = 4, 8


def inputs(size: Size, draw: Draw) -> Inputs:
    relation = (size.batch, RELATIONS, size.length, WIDTH)
    given = draw.qkv(size)
    return {
        "q": given["q"],
        "k": given["k"],
        "symbols": given["v"],
        "relation_q": draw.normal(*relation),
        "relation_k": draw.normal(*relation),
        "weight": draw.normal(size.heads, RELATIONS, size.head_dim) / RELATIONS**0.5,
    }


def run(q: Tensor, k: Tensor, symbols: Tensor, relation_q: Tensor, relation_k: Tensor, weight: Tensor) -> Tensor:
    """Relations are products, so the attended keys of all relations, as value columns, say all that is needed."""
    relations, width = relation_k.shape[1], relation_k.shape[3]
    shaped("relation_q", relation_q, len(q), relations, q.shape[2], width)
    shaped("relation_k", relation_k, len(k), relations, k.shape[2], width)
    shaped("weight", weight, q.shape[1], relations, symbols.shape[-1])
    columns = relation_k.transpose(1, 2).flatten(2)[:, None].expand(-1, q.shape[1], -1, -1)
    packed = attention(q, k, torch.cat([columns, symbols], -1))
    keys = packed[..., : relations * width].unflatten(-1, (relations, width))
    attended = torch.einsum("bhnrp,brnp->bhnr", keys, relation_q) / width**0.5
    return attended @ weight + packed[..., relations * width :]


def formula(q: Tensor, k: Tensor, symbols: Tensor, relation_q: Tensor, relation_k: Tensor, weight: Tensor) -> Tensor:
    """o_i = sum_j a_ij (W_r r_ij + s_j), r_ij the vector of all relations between i and j."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1)
    between = relation_q @ relation_k.mT / relation_q.shape[-1] ** 0.5
    return torch.einsum("bhij,brij,hrd->bhid", weights, between, weight) + weights @ symbols


ENTRY = Entry(
    systems=("DAT (dual attention transformer)",),
    paper="Disentangling and Integrating Relational and Sensory Information in Transformer Architectures",
    year=2024,
    conventions="Causal. The relational heads; the sensory ones are plain. Relations have queries and keys of their "
    "own, are scaled by the root of their width, and all heads share them. `symbols` are projected.",
    pitfall="Only relations that stay products fold into the values: with a non-linear one, or symbols of the distance "
    "between two tokens, every pair has a value of its own.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "relation_q": torch.zeros(2, 3, 97, WIDTH),
        "relation_k": torch.zeros(2, RELATIONS, 96, WIDTH),
        "weight": torch.zeros(RELATIONS, 32),
    },
    source="the authors' one-file implementation of `RelationalAttention`: relations belong to the layer, not to the "
    "head, and have projections apart from those of the attention",
)

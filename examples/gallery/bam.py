"""Attention layers of several specialised models become experts of one layer, all of which run for every token."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(mask_mod=ad.masks.causal, name="bam")
EXPERTS = 3


def inputs(size: Size, draw: Draw) -> Inputs:
    more = Size(size.batch, size.heads * EXPERTS, size.length, size.head_dim)
    return {**draw.qkv(more, kv_heads=size.heads), "gates": draw.normal(size.batch, size.length, EXPERTS)}


def run(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """The experts' queries are groups of query heads over the keys and values they share."""
    shaped("gates", gates, len(q), q.shape[2], q.shape[1] // k.shape[1])
    out = attention(q, k, v, enable_gqa=True).unflatten(1, (k.shape[1], -1))
    return torch.einsum("bhend,bne->bhnd", out, gates.softmax(-1))


def formula(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """y_t = sum_e g_e(x_t) Attention_e(x)_t, head h of expert e being query head h E + e."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    shares, experts = gates.softmax(-1), gates.shape[-1]
    total = torch.zeros_like(v)
    for expert in range(experts):
        scores = q[:, expert::experts] @ k.mT / q.shape[-1] ** 0.5
        own = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        total = total + shares[:, None, :, expert, None] * own
    return total


ENTRY = Entry(
    systems=("BAM (attention experts)",),
    paper="BAM! Just Like That: Simple and Efficient Parameter Upcycling for Mixture of Experts",
    year=2024,
    conventions="Causal. The variant in which the experts share keys and values; with their own the same call has as "
    "many key heads as query heads. Output projections follow.",
    pitfall="Soft routing: every expert sees every token, so no tokens are dispatched and the gate is an epilogue. "
    "Query heads are grouped by the key head they share, not by expert.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"gates": [torch.zeros(2, 97, EXPERTS + 1), torch.zeros(1, 97, EXPERTS)]},
)

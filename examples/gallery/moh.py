"""Heads are experts: some always count, of the others each token has its few best, weighed by a router."""

from dataclasses import replace

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="moh")


def inputs(size: Size, draw: Draw) -> Inputs:
    """Of twice as many heads a quarter is shared: one head alone would have a gate that is always 1."""
    size = replace(size, heads=2 * size.heads)
    shared = size.heads // 4
    logits = {
        "shared": draw.normal(size.batch, size.length, shared),
        "routed": draw.normal(size.batch, size.length, size.heads - shared),
        "balance": draw.normal(size.batch, size.length, 2),
    }
    return {**draw.qkv(size), **logits, "active": (size.heads - shared) // 2}


def run(q: Tensor, k: Tensor, v: Tensor, shared: Tensor, routed: Tensor, balance: Tensor, active: int) -> Tensor:
    """Gates are an epilogue on the heads' outputs."""
    ad.require(1 <= active <= routed.shape[-1], "`active` counts routed heads, 1 to all of them")
    heads = shared.shape[-1] + routed.shape[-1]
    ad.require(heads == q.shape[1], "`shared` and `routed` have a logit for each head between them")
    ad.require(balance.shape[-1] == 2, "`balance` has one logit for the shared heads and one for the routed")
    best = routed.softmax(-1).topk(active)
    kept = best.values / best.values.sum(-1, keepdim=True) * active
    gates = [shared.softmax(-1) * shared.shape[-1], torch.zeros_like(routed).scatter(-1, best.indices, kept)]
    groups = (2 * balance.softmax(-1)).split(1, -1)
    gate = torch.cat([group * one for group, one in zip(groups, gates, strict=True)], -1)
    return attention(q, k, v) * gate.mT[..., None]


def formula(q: Tensor, k: Tensor, v: Tensor, shared: Tensor, routed: Tensor, balance: Tensor, active: int) -> Tensor:
    """g_h H_h(x): shared a_1 n_s softmax(W_s x)_h, routed a_2 k softmax(W_r x)_h over those kept, a = 2 softmax."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    out = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1) @ v
    first, second = (2 * balance.softmax(-1)).unbind(-1)
    least = routed.topk(active).values[..., -1:]
    raised = torch.where(routed >= least, routed.exp(), 0.0)
    parts = []
    for head in range(shared.shape[-1]):
        parts.append(first * shared.shape[-1] * shared.softmax(-1)[..., head])
    for head in range(routed.shape[-1]):
        parts.append(second * active * raised[..., head] / raised.sum(-1))
    return out * torch.stack(parts, 1)[..., None]


ENTRY = Entry(
    systems=("MoH (mixture of heads)",),
    paper="MoH: Multi-Head Attention as Mixture-of-Head Attention",
    year=2024,
    conventions="Causal. Shared heads come first. Routed gates are renormalised over those kept and add up to how many "
    "those are. The output projection follows.",
    pitfall="All heads are computed for all tokens and most of some thrown away, here as in the released code: the "
    "saving needs queries compacted head by head.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="`MoHAttention` of the authors' SkyworkAI/MoH, as several repositories carry it",
    refuses={
        "active": 0,
        "shared": torch.zeros(2, 97, 3),
        "routed": torch.zeros(2, 97, 7),
        "balance": torch.zeros(2, 97, 1),
    },
)

"""Full attention at the cost of a sparse one: far regions are seen through one summary each, in the same softmax."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size


@ad.mask_mod
def own_block(q_idx, kv_idx, *, block: int):
    ad.require(block >= 1, "`block` counts tokens, at least 1")
    return (kv_idx // block == q_idx // block) & (kv_idx <= q_idx)


@ad.mask_mod
def members(q_idx, kv_idx, *, block: int):
    return (kv_idx >= q_idx * block) & (kv_idx < q_idx * block + block)


@ad.mask_mod
def earlier_regions(q_idx, kv_idx, *, block: int):
    return kv_idx < q_idx // block


near = ad.attention(mask_mod=own_block, name="combiner_near")
summarise = ad.attention(mask_mod=members, name="combiner_summaries")
far = ad.attention(mask_mod=earlier_regions, name="combiner_far")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "block": 16 if size.length < 1024 else 64}


def run(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """A region is summarised by a softmax over its keys from the maximum of its queries."""
    part = near.bind(block=block)(q, k, v, return_aux=["lse"])
    whole = q.shape[2] // block
    ad.require(whole >= 1, "`block` is longer than the sequence")
    queries, keys = (_regions(each, block, whole).amax(3) for each in (q, k))
    values = summarise.bind(block=block)(queries, k[:, :, : whole * block], v[:, :, : whole * block])
    return ad.merge(part, far.bind(block=block)(q, keys, values, return_aux=["lse"]))[0]


def _regions(tokens: Tensor, block: int, whole: int) -> Tensor:
    return tokens[:, :, : whole * block].unflatten(2, (whole, block))


def formula(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """One softmax over the tokens of the own block so far and the summary (k_r, v_r) of every earlier one."""
    scale, whole = q.shape[-1] ** -0.5, q.shape[2] // block
    parts = [tuple(each[:, :, r * block : (r + 1) * block] for each in (q, k, v)) for r in range(whole)]
    pooled = torch.stack([part[0].amax(2) for part in parts], 2)
    keys = torch.stack([part[1].amax(2) for part in parts], 2)
    values = [torch.softmax(pooled[:, :, r, None] @ part[1].mT * scale, -1) @ part[2] for r, part in enumerate(parts)]
    place = torch.arange(q.shape[2], device=q.device)
    same = (place[:, None] // block == place // block) & (place <= place[:, None])
    past = torch.arange(whole, device=q.device) < place[:, None] // block
    scores = torch.cat([q @ k.mT, q @ keys.mT], -1) * scale
    weights = scores.masked_fill(~torch.cat([same, past], -1), -torch.inf).softmax(-1)
    return weights @ torch.cat([v, *values], 2)


ENTRY = Entry(
    systems=("Combiner",),
    paper="Combiner: Full Attention Transformer with Sparse Computation Cost",
    year=2021,
    conventions="Causal, the fixed partition: regions are blocks of the sequence, summaries those of blocks wholly in "
    "the past. Queries and keys of a region are pooled by their maximum.",
    pitfall="Summaries and tokens share one softmax although they are keys of two kinds with two masks. A summary may "
    "not depend on the query that reads it, and gradients run through it.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="`sqrt_fixed_full` of the authors' code in google-research/google-research, which pools what it is told to: "
    "maximum, mean or sum",
    refuses={"block": [0, 98]},
)

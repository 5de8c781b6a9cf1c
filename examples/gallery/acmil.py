"""Several branches pool the patches of a slide; in training, each loses some of its best patches by chance, so that
branches do not all rest on the same few."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = ad.parse("attention acmil(dropped: bool tensor[B, H, N]) { mask not dropped[b, h, kv_idx] }")


def inputs(size: Size, draw: Draw) -> Inputs:
    width, hidden, best = 2 * size.head_dim, size.head_dim, 10
    lots = draw.uniform(0, 1, size.batch, size.heads, best).argsort(-1)
    return {
        "patches": draw.normal(size.batch, size.length, width),
        "to_tanh": draw.normal(width, hidden) / width**0.5,
        "to_gate": draw.normal(width, hidden) / width**0.5,
        "branches": draw.normal(size.heads, hidden),
        "unlucky": lots[..., :6],
    }


def run(patches: Tensor, to_tanh: Tensor, to_gate: Tensor, branches: Tensor, unlucky: Tensor) -> Tensor:
    """`unlucky` (B, H, r) are the ranks, drawn among the first ten, of the patches a branch goes without."""
    shaped("unlucky", unlucky, len(patches), len(branches), unlucky.shape[-1])
    ad.require(((unlucky >= 0) & (unlucky < patches.shape[1])).all(), "`unlucky` are ranks among the patches, from 0")
    keys = torch.tanh(patches @ to_tanh) * torch.sigmoid(patches @ to_gate)
    with torch.no_grad():
        ranked = (branches @ keys.mT).argsort(-1, descending=True)
        lost = torch.zeros_like(ranked, dtype=torch.bool).scatter(-1, ranked.gather(-1, unlucky), True)
    query = branches[:, None].expand(len(patches), -1, -1, -1)
    out = PROGRAM.acmil(dropped=lost)(query, keys[:, None], patches[:, None], scale=1.0, enable_gqa=True)
    return out[:, :, 0].mean(1)


def formula(patches: Tensor, to_tanh: Tensor, to_gate: Tensor, branches: Tensor, unlucky: Tensor) -> Tensor:
    """Mean over branches of softmax(l) H, l = w_m (tanh(V h) sigmoid(U h)), -1e9 for patches of an unlucky rank."""
    gated = (patches @ to_tanh).tanh() / (1 + (-(patches @ to_gate)).exp())
    logits = torch.einsum("bnd,md->bmn", gated, branches)
    rank = (logits[..., None, :] > logits[..., None]).sum(-1)
    lost = (rank[..., None] == unlucky[..., None, :]).any(-1)
    return (logits.masked_fill(lost, -1e9).softmax(-1) @ patches).mean(1)


ENTRY = Entry(
    systems=("ACMIL",),
    paper="Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification",
    year=2023,
    conventions="Branches are query heads over one key head, at scale 1. Which ranks are dropped is drawn outside, "
    "once for a step.",
    pitfall="Logits are ranked before anything is dropped, for each branch by itself; the ranking has no gradient.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"unlucky": [torch.full((2, 4, 1), -1), torch.full((2, 4, 1), 97), torch.zeros(2, 3, 1).long()]},
    usual=Size(1, 5, 16384, 128),
)

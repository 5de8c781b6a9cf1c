"""Trains attention against the small change of its logits that would hurt most."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

PROGRAM = ad.parse("attention attention_at(change: tensor[B, N]) { score score + change[b, kv_idx] }")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = size.head_dim
    return {
        "words": draw.normal(size.batch, size.length, width),
        "asked": draw.normal(size.batch, width),
        "project": draw.normal(width, width) / width**0.5,
        "to_logit": draw.normal(width) / 2,
        "to_loss": draw.normal(width),
        "epsilon": 2.0,
    }


def run(
    words: Tensor, asked: Tensor, project: Tensor, to_logit: Tensor, to_loss: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The gradient of the loss by a bias of the logits, which is 0, is the direction of the change."""
    ad.require(epsilon >= 0, "`epsilon` is the length of a change, at least 0")
    keys = torch.tanh(words @ project + asked[:, None])[:, None]
    query, values = to_logit.expand(len(words), 1, 1, -1), words[:, None]
    with torch.enable_grad():
        change = torch.zeros_like(words[..., 0]).requires_grad_()
        clean = PROGRAM.attention_at(change=change)(query, keys, values, scale=1.0)[:, 0, 0]
        (slope,) = torch.autograd.grad(torch.log1p((clean @ to_loss).exp()).sum(), change, retain_graph=True)
    worst = epsilon * slope / slope.norm(dim=-1, keepdim=True)
    return clean, PROGRAM.attention_at(change=worst)(query, keys, values, scale=1.0)[:, 0, 0]


def formula(
    words: Tensor, asked: Tensor, project: Tensor, to_logit: Tensor, to_loss: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """softmax(s) H and softmax(s + eps g / |g|) H, g_j = L' a_j (h_j - sum a h) u, s_j = w tanh(W h_j + q)."""
    logits = (words @ project + asked[:, None]).tanh() @ to_logit
    weights = logits.softmax(-1)[:, None]
    clean = (weights @ words)[:, 0]
    outside = torch.sigmoid(clean @ to_loss)
    slope = outside[:, None] * weights[:, 0] * (words @ to_loss - (clean @ to_loss)[:, None])
    worst = (epsilon * slope / slope.square().sum(-1, keepdim=True).sqrt()).detach()
    return clean, ((logits + worst).softmax(-1)[:, None] @ words)[:, 0]


ENTRY = Entry(
    systems=("Attention AT / iAT",),
    paper="Attention Meets Perturbations: Robust and Interpretable Attention with Adversarial Training",
    year=2020,
    conventions="Additive attention of one query. First the clean vector, then the one under the worst change, which "
    "is a constant of the gradient. Attention iAT makes the change from differences between words instead.",
    pitfall="The direction is a gradient by a bias of the logits that is 0 in value: it must exist though the bias "
    "does nothing.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"epsilon": -1.0},
    usual=Size(8, 1, 4096, 128),
)

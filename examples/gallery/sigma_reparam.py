"""Weights of projections are divided by their largest singular value and scaled back by a learned number, which
bounds scores and keeps the entropy of attention from collapsing."""

import torch
from torch import Tensor
from torch.nn import functional as F

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="sigma_reparam")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = size.heads * size.head_dim
    return {
        "x": draw.normal(size.batch, size.length, width),
        "weights": draw.normal(3, width, width),
        "gamma": draw.uniform(4.0, 8.0, 3),
        "left": draw.normal(3, width),
        "heads": size.heads,
    }


def run(x: Tensor, weights: Tensor, gamma: Tensor, left: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """One step of power iteration from the vectors of the step before; the entropy is watched, not trained."""
    ad.require(heads >= 1 and x.shape[-1] % max(heads, 1) == 0, "`heads` divides the width of the model")
    with torch.no_grad():
        right = F.normalize(torch.einsum("sde,sd->se", weights, left), dim=-1)
        left = F.normalize(torch.einsum("sde,se->sd", weights, right), dim=-1)
    largest = torch.einsum("sd,sde,se->s", left, weights, right)
    projected = torch.einsum("bnd,sde->sbne", x, (gamma / largest)[:, None, None] * weights)
    q, k, v = projected.unflatten(-1, (heads, -1)).transpose(2, 3)
    out, aux = attention(q, k, v, return_aux=["entropy"])
    return out, aux.entropy.detach()


def formula(x: Tensor, weights: Tensor, gamma: Tensor, left: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """W' = gamma W / (u^T W v); softmax(Q K^T / sqrt(d)) V of the heads; -sum a log a."""
    parts = []
    for w, g, u in zip(weights, gamma, left, strict=True):
        v = w.detach().T @ u.detach()
        v = v / v.square().sum().sqrt()
        u = w.detach() @ v
        u = u / u.square().sum().sqrt()
        whole = x @ w * (g / (u @ w @ v))
        parts.append(torch.stack(whole.chunk(heads, -1), 1))
    q, k, v = parts
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
    weight = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1)
    return weight @ v, torch.special.entr(weight.detach()).sum(-1)


ENTRY = Entry(
    systems=("sigmaReparam",),
    paper="Stabilizing Transformer Training by Preventing Attention Entropy Collapse",
    year=2023,
    conventions="Causal. Plain softmax attention on reparametrised projections of queries, keys and values; the second "
    "result is what is monitored.",
    pitfall="The singular vectors are constants of the gradient, the singular value is not.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"heads": 3},
)

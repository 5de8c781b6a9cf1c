"""Pools the patches of a slide by gated logits of each, and rewards weights that spread."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.attention(name="aem")


def inputs(size: Size, draw: Draw) -> Inputs:
    width, hidden = 2 * size.head_dim, size.head_dim
    return {
        "patches": draw.normal(size.batch, size.length, width),
        "to_tanh": draw.normal(width, hidden) / width**0.5,
        "to_gate": draw.normal(width, hidden) / width**0.5,
        "asked": draw.normal(hidden),
    }


def run(patches: Tensor, to_tanh: Tensor, to_gate: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """One query, as many keys as there are patches; the entropy is subtracted from the loss."""
    shaped("asked", asked, to_tanh.shape[1])
    keys = torch.tanh(patches @ to_tanh) * torch.sigmoid(patches @ to_gate)
    query = asked.expand(len(patches), 1, 1, -1)
    out, aux = attention(query, keys[:, None], patches[:, None], scale=1.0, return_aux=["entropy"])
    return out[:, 0], aux.entropy[:, 0]


def formula(patches: Tensor, to_tanh: Tensor, to_gate: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """z = sum_k a_k h_k, a = softmax_k w (tanh(V h_k) sigmoid(U h_k)); H = -sum_k a_k log a_k."""
    gated = (patches @ to_tanh).tanh() / (1 + (-(patches @ to_gate)).exp())
    logs = (gated @ asked).log_softmax(-1)
    return torch.einsum("bn,bnd->bd", logs.exp(), patches)[:, None], -(logs.exp() * logs).sum(-1, keepdim=True)


ENTRY = Entry(
    systems=("AEM",),
    paper="AEM: Attention Entropy Maximization for Multiple Instance Learning based Whole Slide Image Classification",
    year=2024,
    conventions="The learned vector of the logits is the query, at scale 1. The second result is the entropy of each "
    "slide's weights.",
    pitfall="One query and very many keys: without a split over the keys, one program does all the work.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"asked": torch.zeros(31)},
    usual=Size(1, 1, 16384, 128),
)

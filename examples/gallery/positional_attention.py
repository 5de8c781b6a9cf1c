"""Weights that depend on positions alone: queries and keys come from fixed encodings, values from the data."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(name="positional")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = 16
    return {
        "places": draw.normal(size.length, width),
        "to_q": draw.normal(size.heads, width, size.head_dim) / width,
        "to_k": draw.normal(size.heads, width, size.head_dim) / width,
        "v": draw.normal(size.batch, size.heads, size.length, size.head_dim),
    }


def run(places: Tensor, to_q: Tensor, to_k: Tensor, v: Tensor) -> Tensor:
    """One set of weights for the whole batch, whose values are columns side by side."""
    ad.require(len(places) == v.shape[2], "`places` has an encoding for each token")
    batch, heads, length, width = v.shape
    columns = v.permute(1, 2, 0, 3).reshape(1, heads, length, batch * width)
    out = attention((places @ to_q)[None], (places @ to_k)[None], columns, scale=1.0)
    return out.reshape(heads, length, batch, width).permute(2, 0, 1, 3)


def formula(places: Tensor, to_q: Tensor, to_k: Tensor, v: Tensor) -> Tensor:
    """softmax((P Wq)(P Wk)^T) times the values of each sequence."""
    scores = torch.einsum("id,hde,hfe,jf->hij", places, to_q, to_k, places)
    return torch.einsum("hij,bhjv->bhiv", scores.softmax(-1), v)


ENTRY = Entry(
    systems=("Positional Attention",),
    paper="Positional Attention: Expressivity and Learnability of Algorithmic Computation",
    year=2024,
    conventions="Scores are not scaled. The batch lies in the columns of the values, so it must be small.",
    pitfall="Queries and keys have no batch of their own: expanding them computes the same weights again and again.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"places": torch.zeros(3, 16)},
)

"""Rotary attention in which no key turns further than its query: keys lie in the direction of the query, stretched by
numbers that are not negative."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.turned import turned

attention = ad.attention(mask_mod=ad.masks.causal, name="coca")


def inputs(size: Size, draw: Draw) -> Inputs:
    return draw.qkv(size)


def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(q.shape[2], device=q.device)
    stretch = sum(k.chunk(2, -1)).div(2).relu().repeat(1, 1, 1, 2)
    return attention(q * rotate(q, places), rotate(stretch, places), v)


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """s_ij = sum_c |q_ic|^2 t_jc cos((i - j) theta_c) / sqrt(d), q_ic the pair c as a complex number, t = relu(k)."""
    length, dim = q.shape[2:]
    places = torch.arange(length, device=q.device)
    first, second = k.chunk(2, -1)
    stretch = ((first + second) / 2).clamp(min=0)
    # The product of a pair with its own turned self: the query and the turn of its position, column by column.
    one, other = q.chunk(2, -1)
    queries = turned(q, places)
    products = torch.complex(one * queries.real, other * queries.imag)
    keys = turned(torch.cat((stretch, stretch), -1), places)
    live = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    scores = (products @ keys.mH).real / dim**0.5
    return scores.masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("CoCA",),
    paper="Cure the headache of Transformers via Collinear Constrained Attention",
    year=2023,
    conventions="Causal. A stretch is the mean of the two halves of a key, negative ones 0, and the same for both "
    "columns of a pair; the sum over columns of query, turned query and turned stretch folds into one product.",
    pitfall="The query enters twice, turned and as it is: rotate a copy, and take the product of the two before the "
    "call.",
    inputs=inputs,
    run=run,
    formula=formula,
)

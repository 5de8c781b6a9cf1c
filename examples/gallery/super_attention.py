"""Attention with projections left out: of the values, of the keys too, or with one over positions in their place."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.causal, name="super_attention")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = size.heads * size.head_dim
    return {
        "x": draw.normal(size.batch, size.length, width),
        "w_q": draw.normal(width, width) / width**0.5,
        "w_k": draw.normal(width, width) / width**0.5,
        "w_a": draw.normal(size.length + 3, size.length + 3) / size.length**0.5,
        "heads": size.heads,
    }


def run(x: Tensor, w_q: Tensor, w_k: Tensor, w_a: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slices of the input itself are values and, from the second on, keys."""
    length = x.shape[1]
    ad.require(min(w_a.shape) >= length, "`w_a` is for shorter sequences")
    ad.require(heads >= 1 and x.shape[-1] % max(heads, 1) == 0, "`heads` divides the width of the model")
    mixed = w_a[:length, :length].tril() @ x
    q, k, own, values = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (x @ w_q, x @ w_k, x, mixed))
    return attention(q, k, own), attention(q, own, own), attention(q, own, values)


def formula(x: Tensor, w_q: Tensor, w_k: Tensor, w_a: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Optimised: V_h = X_h. Efficient: K_h = X_h as well. Super: V = W_A X, W_A lower triangular."""
    length = x.shape[1]
    ones = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    values = torch.where(ones, w_a[:length, :length], 0.0) @ x
    results: list[list[Tensor]] = [[], [], []]
    for head in range(heads):
        part = slice(head * x.shape[-1] // heads, (head + 1) * x.shape[-1] // heads)
        query, own = x @ w_q[:, part], x[..., part]
        for result, key, value in zip(
            results, (x @ w_k[:, part], own, own), (own, own, values[..., part]), strict=True
        ):
            scores = query @ key.mT / own.shape[-1] ** 0.5
            result.append(scores.masked_fill(~ones, -torch.inf).softmax(-1) @ value)
    optimised, efficient, superior = (torch.stack(result, 1) for result in results)
    return optimised, efficient, superior


ENTRY = Entry(
    systems=("Optimised / Efficient / Super Attention",),
    paper="You Need to Pay Better Attention: Rethinking the Mathematics of Attention Mechanism",
    year=2024,
    conventions="Causal, so the learned matrix over positions is lower triangular. Results in the order of the name, "
    "before the output projection.",
    pitfall="Keys and values are views of one tensor, whose gradient adds up over both and the input. The matrix over "
    "positions fixes the longest sequence.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="a third-party one-head `SuperAttention`: the matrix over positions multiplies the bare input",
    refuses={"w_a": torch.zeros(200, 5), "heads": 3},
)

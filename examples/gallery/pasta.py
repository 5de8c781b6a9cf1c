"""Points chosen heads at the part of a prompt that a user marks, by shrinking what they give to the rest."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

PROGRAM = ad.parse("""
attention pasta(marked: bool tensor[B, N], steered: bool tensor[H], alpha: float = 0.01) {
    require  alpha > 0.0, "`alpha` is the share an unmarked token keeps, above 0"
    mask     kv_idx <= q_idx
    score    score + log(alpha) if steered[h] and not marked[b, kv_idx] else score
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    marked = draw.uniform(0, 1, size.batch, size.length) < 0.2
    return {**draw.qkv(size), "marked": marked, "steered": torch.arange(size.heads) % 2 == 0, "alpha": 0.01}


def run(q: Tensor, k: Tensor, v: Tensor, marked: Tensor, steered: Tensor, alpha: float) -> Tensor:
    return PROGRAM.pasta(marked=marked, steered=steered, alpha=alpha)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, marked: Tensor, steered: Tensor, alpha: float) -> Tensor:
    """A_ij / C_i where j is marked, alpha A_ij / C_i where not, C_i such that the row sums to 1."""
    future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1)
    share = torch.where(marked[:, None, None], 1.0, alpha).to(weights)
    scaled = weights * share
    return torch.where(steered[:, None, None], scaled / scaled.sum(-1, keepdim=True), weights) @ v


ENTRY = Entry(
    systems=("PASTA (post-hoc steering)",),
    paper="Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs",
    year=2023,
    conventions="Causal. The user marks tokens of each prompt; which heads are steered is profiled once for a model.",
    pitfall="Shrinking before the division is adding log(alpha) to scores, and only because the row is normalized "
    "again; a row that sees no marked token is as it was.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "alpha": 0.0,
        "marked": torch.zeros(2, 5, dtype=torch.bool),
        "steered": torch.zeros(3, dtype=torch.bool),
    },
    trained=False,
    usual=Size(1, 8, 4096, 128),
)

"""Attention among the elements of a set by way of a few learned points, and pooling of the set by learned seeds."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(mask_mod=ad.masks.padding(lengths=ad.IntTensor["B"]), name="set_transformer")


def inputs(size: Size, draw: Draw) -> Inputs:
    width = size.heads * size.head_dim
    return {
        "x": draw.normal(size.batch, size.length, width),
        "points": draw.normal(16, width),
        "seeds": draw.normal(4, width),
        "weights": draw.normal(3, 4, width, width) / width**0.5,
        "lengths": draw.integers(1, size.length + 1, size.batch),
        "heads": size.heads,
    }


def run(
    x: Tensor, points: Tensor, seeds: Tensor, weights: Tensor, lengths: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """The induced set and its pooled form; `weights` are those of query, key, value and output of three blocks."""
    ad.require(((lengths >= 1) & (lengths <= x.shape[1])).all(), "`lengths` count elements, at least 1 of each set")
    ad.require(heads >= 1 and x.shape[-1] % max(heads, 1) == 0, "`heads` divides the width of the elements")
    every = torch.full_like(lengths, len(points))

    def block(asked: Tensor, given: Tensor, own: Tensor, lengths: Tensor) -> Tensor:
        q, k, v = asked @ own[0], given @ own[1], given @ own[2]
        split = [each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v)]
        out = q + attention.bind(lengths=lengths)(*split, scale=q.shape[-1] ** -0.5).transpose(1, 2).flatten(2)
        return out + torch.relu(out @ own[3])

    induced = block(points.expand(len(x), -1, -1), x, weights[0], lengths)
    spread = block(x, induced, weights[1], every)
    return spread, block(seeds.expand(len(x), -1, -1), spread, weights[2], lengths)


def formula(
    x: Tensor, points: Tensor, seeds: Tensor, weights: Tensor, lengths: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """ISAB = MAB(X, MAB(I, X)), PMA = MAB(S, X); MAB(X, Y) = H + relu(H W), H = Q + softmax(Q K^T / sqrt(C)) V."""
    dead = torch.arange(x.shape[1], device=x.device) >= lengths[:, None, None]

    def mab(x: Tensor, y: Tensor, own: Tensor, dead: Tensor | None) -> Tensor:
        parts = []
        for columns in torch.arange(x.shape[-1], device=x.device).chunk(heads):
            q, k, v = x @ own[0][:, columns], y @ own[1][:, columns], y @ own[2][:, columns]
            scores = q @ k.mT / x.shape[-1] ** 0.5
            scores = scores if dead is None else scores.masked_fill(dead, -torch.inf)
            parts.append(q + scores.softmax(-1) @ v)
        h = torch.cat(parts, -1)
        return h + (h @ own[3]).clamp(min=0)

    spread = mab(x, mab(points.repeat(len(x), 1, 1), x, weights[0], dead), weights[1], None)
    return spread, mab(seeds.repeat(len(x), 1, 1), spread, weights[2], dead)


ENTRY = Entry(
    systems=("Set Transformer (ISAB / PMA)",),
    paper="Set Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks",
    year=2018,
    conventions="Sets are padded to one length. Layer norms and biases are left out; the residual adds the projected "
    "queries.",
    pitfall="Scores are divided by the root of the whole width, not of a head's; the padding is masked where elements "
    "are keys, and the second block has none to mask.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="copies of the authors' `MAB` in public repositories: divided by the root of the whole width",
    refuses={"lengths": torch.zeros(2, dtype=torch.int64), "heads": 3},
    usual=Size(8, 4, 4096, 32),
)

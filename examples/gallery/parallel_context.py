"""Pieces of context encoded side by side behind a shared prefix; a question then reads all of them, or the best few."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.turned import turned

TEXT = """
attention parallel(piece: int tensor[N], last: int) {
    let there = piece[kv_idx]
    let here = piece[q_idx]
    mask  kv_idx <= q_idx and (there == here or there == 0 or here == last)
}
"""
attention = ad.parse(TEXT).parallel


def inputs(size: Size, draw: Draw) -> Inputs:
    """A prefix, seven pieces of unlike lengths, and a question."""
    edges = torch.tensor([0.04, 0.15, 0.3, 0.38, 0.5, 0.66, 0.75, 0.9])
    piece = (torch.arange(size.length)[:, None] / size.length >= edges).sum(1)
    return {**draw.qkv(size), "piece": piece, "top": 3}


def positions_of(piece: Tensor) -> Tensor:
    """Every piece starts where the prefix ends, the question where the longest piece does."""
    counts = piece.bincount()
    starts = counts.cumsum(0) - counts
    begin = torch.full_like(counts, int(counts[0]))
    begin[0], begin[-1] = 0, int(counts[0] + counts[1:-1].max())
    return torch.arange(len(piece)) - starts[piece] + begin[piece]


def router(piece: Tensor, top: int) -> ad.routers.Router:
    """For each token of the question the `top` pieces of most score mass, beside prefix and question."""
    last = int(piece.max())

    def mass(q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.mT / q.shape[-1] ** 0.5
        return torch.stack([scores[..., piece == number].logsumexp(-1) for number in range(last + 1)], -1)

    def best(scores: Tensor, kept: Tensor) -> Tensor:
        chosen = torch.ones_like(scores, dtype=torch.bool)
        chosen[..., 1:last] = False
        chosen.scatter_(-1, scores[..., 1:last].topk(top).indices + 1, True)
        return chosen | (piece < last)[:, None]

    return ad.router(block=(1, piece), score=mass, select=best, causal=False)


def run(q: Tensor, k: Tensor, v: Tensor, piece: Tensor, top: int) -> tuple[Tensor, Tensor]:
    last = int(piece.max())
    ad.require(1 <= top < last, f"`top` counts pieces, 1 to {last - 1}")
    steps = piece.diff()
    ordered = piece.shape == q.shape[2:3] and int(piece[0]) == 0 and bool(((steps == 0) | (steps == 1)).all())
    ad.require(ordered, "`piece` has the number of each token's piece: 0 for the prefix, then 1, 2, ... in order")
    places = positions_of(piece)
    q, k, encoded = rotate(q, places), rotate(k, places), attention(piece=piece, last=last)
    return encoded(q, k, v), encoded(q, k, v, blocks=router(piece, top))


def formula(q: Tensor, k: Tensor, v: Tensor, piece: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Each piece attends to prefix and itself; the question to everything, then to its best pieces alone."""
    last = int(piece.max())
    ids = piece.tolist()
    lengths = [ids.count(number) for number in range(last + 1)]
    places, seen = [], [0] * (last + 1)
    for number in ids:
        start = 0 if number == 0 else lengths[0] + (max(lengths[1:last]) if number == last else 0)
        places.append(start + seen[number])
        seen[number] += 1
    at = torch.tensor(places)
    scores = (turned(q, at) @ turned(k, at).mH).real / q.shape[-1] ** 0.5
    live = (piece[None, :] == piece[:, None]) | (piece == 0) | (piece[:, None] == last)
    scores = scores.masked_fill(~live.tril(), -torch.inf)
    selected = scores.clone()
    first = ids.index(last)
    mass = torch.stack([scores[..., first:, piece == number].exp().sum(-1) for number in range(1, last)])
    rank = (mass[None] > mass[:, None]).sum(1)
    for number in range(1, last):
        worse = (rank[number - 1] >= top)[..., None] & (piece == number)
        selected[..., first:, :] = selected[..., first:, :].masked_fill(worse, -torch.inf)
    return scores.softmax(-1) @ v, selected.softmax(-1) @ v


ENTRY = Entry(
    systems=("Parallel context encoding (shared sink + selection)",),
    paper="Attention Entropy is a Key Factor: An Analysis of Parallel Context Encoding with Full-attention-based "
    "Pre-trained Language Models",
    year=2024,
    conventions="Piece 0 is the prefix, the last the question. Mass of a piece: the sum of exp(score) over its keys.",
    pitfall="Positions repeat from piece to piece, and pieces are not of one length: neither follows from the index.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The paper's abstract and a published summary; what scores a piece is a reading of it",
    refuses={"top": 0, "piece": torch.arange(97) // 14 + 1},
    usual=Size(1, 8, 4096, 128),
)

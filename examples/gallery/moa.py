"""Compresses a language model by a window of its own for every head, which grows with the length by a rule found
offline, beside the first tokens."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.parse("""
attention moa(spans: int tensor[H], block: int = 64, sink: int = 1) {
    require block >= 1, "`block` counts tokens, at least 1"
    require sink >= 0, "`sink` counts blocks, 0 for none"
    let now = q_idx // block
    let then = kv_idx // block
    mask kv_idx <= q_idx and (then < sink or now - then < spans[h])
}
""").moa


def inputs(size: Size, draw: Draw) -> Inputs:
    alpha, beta = draw.integers(1, 30, size.heads), draw.uniform(0.0, 0.4, size.heads)
    rules = tuple((int(one), float(other)) for one, other in zip(alpha, beta, strict=True))
    return {**draw.qkv(size), "rules": rules, "block": 16, "sink": 1}


def run(q: Tensor, k: Tensor, v: Tensor, rules: tuple[tuple[int, float], ...], block: int, sink: int) -> Tensor:
    length = k.shape[2]
    ad.require(block >= 1, "`block` counts tokens, at least 1")
    ad.require(len(rules) == q.shape[1], "`rules` are pairs of a constant and a slope, one for each head")
    positive = all(alpha + beta * length > 0 for alpha, beta in rules)
    ad.require(positive, f"`rules` give a head no span at {length} tokens")
    spans = [-(-(alpha + beta * length) // block) for alpha, beta in rules]
    return attention(spans=torch.tensor(spans, dtype=torch.int32, device=q.device), block=block, sink=sink)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, rules: tuple[tuple[int, float], ...], block: int, sink: int) -> Tensor:
    """Causal within blocks of sink and of the span alpha_h + beta_h N, rounded up to blocks; head by head."""
    length = q.shape[2]
    places = torch.arange(length, device=q.device)
    blocks = places.div(block, rounding_mode="floor")
    outputs = []
    for head, (alpha, beta) in enumerate(rules):
        span = torch.tensor((alpha + beta * length) / block).ceil().item()
        near = blocks[:, None] - blocks < span
        live = (places <= places[:, None]) & (near | (blocks < sink))
        scores = q[:, head] @ k[:, head].mT / q.shape[-1] ** 0.5
        outputs.append(scores.masked_fill(~live, -torch.inf).softmax(-1) @ v[:, head])
    return torch.stack(outputs, 1)


ENTRY = Entry(
    systems=("MoA (mixture of sparse attention)",),
    paper="MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression",
    year=2024,
    conventions="Causal token by token; spans count blocks, the own block being one. Released models have blocks of "
    "64 and a sink of one block.",
    pitfall="Spans depend on the length and differ by head: as a tensor they are read at each call and compile "
    "nothing.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"block": 0, "sink": -1, "rules": ((4, 0.1),)},
    usual=Size(1, 8, 4096, 128),
)

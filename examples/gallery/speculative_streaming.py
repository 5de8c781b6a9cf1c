"""Speculation inside one model: streams that guess the tokens ahead, and a pass that checks a tree of guesses."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = """
attention streams(place: int tensor[N], stream: int tensor[N]) {
    let past = stream[kv_idx] == 0 and place[kv_idx] <= place[q_idx]
    let own = place[kv_idx] == place[q_idx] and stream[kv_idx] <= stream[q_idx]
    mask  past or own
}
attention tree(context: int, ancestors: int tensor[N]) {
    let node = kv_idx - context
    mask  node < 0 or ancestors[q_idx - context] >> node & 1 == 1
}
"""
speculation = ad.parse(TEXT)


def inputs(size: Size, draw: Draw) -> Inputs:
    """Tokens of a main stream and, after it, of three speculative ones; then a tree of 13 guesses behind them all."""
    main = size.length // 4
    place = torch.arange(main).repeat(4)
    given = draw.qkv(Size(size.batch, size.heads, 4 * main, size.head_dim))
    guesses = draw.qkv(Size(size.batch, size.heads, 13, size.head_dim), kv_length=main + 13)
    parents = [-1, *(int(draw.integers(0, node, 1)) for node in range(1, 13))]
    ancestors: list[int] = []
    for node, parent in enumerate(parents):
        ancestors.append((ancestors[parent] if parent >= 0 else 0) | 1 << node)
    return {
        **given,
        "place": place,
        "stream": torch.arange(4).repeat_interleave(main),
        **{f"tree_{name}": value for name, value in guesses.items()},
        "ancestors": torch.tensor(ancestors),
    }


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Tensor,
    stream: Tensor,
    tree_q: Tensor,
    tree_k: Tensor,
    tree_v: Tensor,
    ancestors: Tensor,
) -> tuple[Tensor, Tensor]:
    nodes = tree_q.shape[2]
    ad.require(len(ancestors) == nodes <= 63, f"`ancestors` has bits for each of {nodes} nodes, 63 at most")
    last = ancestors >> torch.arange(nodes, device=ancestors.device) == 1
    ad.require(last, "`ancestors` names each node itself and none after it")
    context = tree_k.shape[2] - nodes
    told = speculation.streams(place=place, stream=stream)(q, k, v)
    tree = speculation.tree(context=context, ancestors=ancestors)
    return told, tree(tree_q, tree_k, tree_v, q_offset=context)


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Tensor,
    stream: Tensor,
    tree_q: Tensor,
    tree_k: Tensor,
    tree_v: Tensor,
    ancestors: Tensor,
) -> tuple[Tensor, Tensor]:
    """Stream j at t sees the main stream up to t and streams 1 to j at t; a node sees the context and its ancestors."""
    late = place[None, :] > place[:, None]
    main = (stream == 0)[None, :] & ~late
    beside = (place[None, :] == place[:, None]) & (stream[None, :] <= stream[:, None])
    told = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~(main | beside), -torch.inf).softmax(-1) @ v
    nodes, keys = len(ancestors), tree_k.shape[2]
    live = torch.ones(nodes, keys, dtype=torch.bool, device=q.device)
    live[:, keys - nodes :] = torch.tensor([[bits >> node & 1 for node in range(nodes)] for bits in ancestors.tolist()])
    checked = (tree_q @ tree_k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ tree_v
    return told, checked


ENTRY = Entry(
    systems=("Speculative Streaming",),
    paper="Speculative Streaming: Fast LLM Inference without Auxiliary Models",
    year=2024,
    conventions="Stream 0 is the main one. A node's bits name its ancestors and itself, up to 63 nodes to an integer.",
    pitfall="Positions repeat across streams, so neither causality nor visibility follows from the place in storage.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "ancestors": torch.zeros(12, dtype=torch.int64),
        "place": torch.zeros(5, dtype=torch.int64),
        "stream": torch.zeros(5, dtype=torch.int64),
    },
)

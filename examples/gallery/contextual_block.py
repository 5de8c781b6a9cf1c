"""Blockwise encoder of streaming speech recognition: a frame sees the frames about its block and, of all that came
earlier, one vector of context that the block before hands on."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.parse("""
attention contextual_block(hop: int, past: int, ahead: int, blocks: int) {
    require hop >= 1, "`hop` counts the frames of a block, at least 1"
    require past >= 0 and ahead >= 0, "`past` and `ahead` count the frames about a block, at least 0"
    require blocks * hop >= q_len, "`blocks` contexts of `hop` frames do not cover the frames"
    let block = q_idx // hop
    let frame = kv_idx - blocks
    let near = frame >= block * hop - past and frame < (block + 1) * hop + ahead
    mask kv_idx == block if kv_idx < blocks else near
}
""").contextual_block
HOP, PAST, AHEAD = 16, 8, 16


def inputs(size: Size, draw: Draw) -> Inputs:
    blocks = -(-size.length // HOP)
    contexts = {name: draw.normal(size.batch, size.heads, blocks, size.head_dim) for name in ("context_k", "context_v")}
    return {**draw.qkv(size), **contexts, "hop": HOP, "past": PAST, "ahead": AHEAD}


def run(
    q: Tensor, k: Tensor, v: Tensor, context_k: Tensor, context_v: Tensor, hop: int, past: int, ahead: int
) -> Tensor:
    ad.require(hop >= 1, "`hop` counts the frames of a block, at least 1")
    for name, context in {"context_k": context_k, "context_v": context_v}.items():
        shaped(name, context, *q.shape[:2], -(-q.shape[2] // hop), context.shape[-1])
    attend = attention(hop=hop, past=past, ahead=ahead, blocks=context_k.shape[2])
    return attend(q, torch.cat((context_k, k), 2), torch.cat((context_v, v), 2))


def formula(
    q: Tensor, k: Tensor, v: Tensor, context_k: Tensor, context_v: Tensor, hop: int, past: int, ahead: int
) -> Tensor:
    """Block by block: softmax over the context handed to the block and the frames about it."""
    outputs = []
    for block in range(context_k.shape[2]):
        about = slice(max(block * hop - past, 0), (block + 1) * hop + ahead)
        keys = torch.cat((context_k[:, :, block : block + 1], k[:, :, about]), 2)
        values = torch.cat((context_v[:, :, block : block + 1], v[:, :, about]), 2)
        queries = q[:, :, block * hop : (block + 1) * hop]
        outputs.append((queries @ keys.mT / q.shape[-1] ** 0.5).softmax(-1) @ values)
    return torch.cat(outputs, 2)


ENTRY = Entry(
    systems=("Blockwise synchronous Transformer ASR",),
    paper="Streaming Transformer ASR with Blockwise Synchronous Beam Search",
    year=2020,
    conventions="The encoder; the decoder's queries see all frames encoded so far. Keys are the contexts, one for each "
    "block and made by the block before it, and then the frames. Frames of the neighbouring blocks are shared: the "
    "released encoder computes them anew in every block that sees them, which is the same in the first layer.",
    pitfall="The context of a block is a key of its own, outside of the frames: its index is that of the block.",
    source="the contextual block encoder of ESPnet: a block's rows see the context before it and the block's own "
    "frames",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "hop": 0,
        "past": -1,
        "ahead": -1,
        "context_k": torch.zeros(2, 4, 6, 32),
        "context_v": torch.zeros(2, 4, 8, 32),
    },
)

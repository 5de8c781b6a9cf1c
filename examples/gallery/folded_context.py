"""A long text is folded into short segments: a token sees those just before it in its segment and, of all that came
earlier, the states each segment was condensed to."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

attention = ad.parse("""
attention folded_context(segment: int, window: int, states: int, carried: int) {
    require window >= 1, "`window` counts tokens up to the query's own, at least 1"
    let own = q_idx // segment
    let token = kv_idx - carried
    let near = token <= q_idx and q_idx - token < window and token // segment == own
    mask kv_idx // states < own if kv_idx < carried else near
}
""").folded_context


def inputs(size: Size, draw: Draw) -> Inputs:
    """`state_k` and `state_v` (B, H, segments, states, D): what each segment was condensed to."""
    segment = 12 if size.length < 1024 else 128
    shape = (size.batch, size.heads, -(-size.length // segment), 3, size.head_dim)
    states = {"state_k": draw.normal(*shape), "state_v": draw.normal(*shape)}
    return {**draw.qkv(size), **states, "segment": segment, "window": 2 * segment // 3}


def run(q: Tensor, k: Tensor, v: Tensor, state_k: Tensor, state_v: Tensor, segment: int, window: int) -> Tensor:
    """Keys are the states of all segments and then the tokens."""
    ad.require(segment >= 1, "`segment` counts tokens, at least 1")
    states = state_k.shape[3]
    ad.require(states >= 1, "`state_k` holds at least one state of a segment")
    shaped("state_k", state_k, *k.shape[:2], -(-k.shape[2] // segment), states, k.shape[-1])
    shaped("state_v", state_v, *v.shape[:2], -(-v.shape[2] // segment), states, v.shape[-1])
    keys, values = (torch.cat((x.flatten(2, 3), y), 2) for x, y in ((state_k, k), (state_v, v)))
    carried = keys.shape[2] - k.shape[2]
    return attention(segment=segment, window=window, states=states, carried=carried)(q, keys, values)


def formula(q: Tensor, k: Tensor, v: Tensor, state_k: Tensor, state_v: Tensor, segment: int, window: int) -> Tensor:
    """Segment by segment: softmax over the states of the segments before it and the last `window` of its tokens."""
    outputs = []
    for number in range(state_k.shape[2]):
        own = slice(number * segment, (number + 1) * segment)
        keys = torch.cat((state_k[:, :, :number].flatten(2, 3), k[:, :, own]), 2)
        values = torch.cat((state_v[:, :, :number].flatten(2, 3), v[:, :, own]), 2)
        place = torch.arange(q[:, :, own].shape[2], device=q.device)
        behind = place[:, None] - place
        dead = torch.nn.functional.pad((behind < 0) | (behind >= window), (keys.shape[2] - len(place), 0))
        scores = (q[:, :, own] @ keys.mT / q.shape[-1] ** 0.5).masked_fill(dead, -torch.inf)
        outputs.append(scores.softmax(-1) @ values)
    return torch.cat(outputs, 2)


ENTRY = Entry(
    systems=("Folded context condensation (path integral)",),
    paper="Folded context condensation in Path Integral formalism for infinite context transformers",
    year=2024,
    conventions="Causal; the window includes the query's own token and ends where its segment begins. How a segment is "
    "condensed is not in what could be read, so states come with the call; in generation they are all that is carried.",
    pitfall="A state holds a whole segment: a token that saw the states of its own segment would see its future.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the abstracts of its versions, which carry condensed segments of memory from layer to layer and segment to "
    "segment",
    refuses={
        "segment": 0,
        "window": 0,
        "state_k": [torch.zeros(2, 4, 8, 3, 32), torch.zeros(2, 4, 9, 0, 32)],
        "state_v": torch.zeros(2, 4, 9, 2, 32),
    },
)

"""Streaming speech recognition in which every frame chooses how far it looks ahead: a gate on each future frame while
training, a number of frames when it runs."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped

PROGRAM = ad.parse("""
attention soft(gates: tensor[B, Q, L], reach: int = 8) {
    require reach >= 1, "`logits` hold gates of the next `reach` frames, at least 1"
    let ahead = kv_idx - q_idx
    mask   ahead <= reach
    score  score + (gates[b, q_idx, ahead - 1] if ahead > 0 else 0)
}
attention hard(look: int tensor[B, Q]) {
    mask kv_idx <= q_idx + look[b, q_idx]
}
""")


def inputs(size: Size, draw: Draw) -> Inputs:
    """An eighth of the gates is shut so tightly that its sigmoid is 0 in float32."""
    look = draw.integers(0, 6, size.batch, size.length)
    logits = draw.normal(size.batch, size.length, 8)
    closed = draw.integers(0, 8, size.batch, size.length, 8) == 0
    return {**draw.qkv(size), "logits": logits.masked_fill(closed, -200.0), "look": look}


def run(q: Tensor, k: Tensor, v: Tensor, logits: Tensor, look: Tensor) -> tuple[Tensor, Tensor]:
    shaped("logits", logits, len(q), q.shape[2], logits.shape[-1])
    shaped("look", look, len(q), q.shape[2])
    ad.require((look >= 0).all(), "`look` counts frames ahead, at least 0")
    soft = PROGRAM.soft(gates=logsigmoid(logits), reach=logits.shape[-1])
    return soft(q, k, v), PROGRAM.hard(look=look)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, logits: Tensor, look: Tensor) -> tuple[Tensor, Tensor]:
    """Weights exp(s_ij) g_ij, g the gate of a future frame and 1 for the past; then the frames up to i + look_i."""
    length, reach = q.shape[2], logits.shape[-1]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    places = torch.arange(length, device=q.device)
    ahead = places - places[:, None]
    gates = logits.sigmoid().gather(2, (ahead - 1).clamp(0, reach - 1).expand(q.shape[0], -1, -1))
    gates = torch.where(ahead > 0, gates, 1.0) * (ahead <= reach)
    soft = (scores - scores.amax(-1, keepdim=True)).exp() * gates[:, None]
    hard = scores.masked_fill(ahead > look[:, None, :, None], -torch.inf).softmax(-1)
    return soft / soft.sum(-1, keepdim=True) @ v, hard @ v


ENTRY = Entry(
    systems=("ANCAT",),
    paper="Lookahead When It Matters: Adaptive Non-causal Transformers for Streaming Neural Transducers",
    year=2023,
    conventions="The whole past is seen, and beyond `reach` future frames none. Gates are sigmoids; one in a frame's "
    "row counts for the frame that many later, all heads alike.",
    pitfall="A gate that reaches 0 has log -inf and a gradient that is not a number: take the logarithm of the "
    "sigmoid, not of its value.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "look": [torch.full((2, 97), -1), torch.zeros(2, 98).int()],
        "logits": [torch.zeros(2, 97, 0), torch.zeros(1, 97, 8)],
    },
)

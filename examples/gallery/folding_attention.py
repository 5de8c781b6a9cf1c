"""Every frame is folded into several narrower tokens, which share small projections and attend as one sequence."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped


@ad.mask_mod
def folded(q_idx, kv_idx, *, fold: int, left: int):
    ad.require(fold >= 1, "`fold` counts the tokens of a frame, at least 1")
    ad.require(left >= 0, "`left` counts frames before the query's own, 0 for none")
    frames = q_idx // fold - kv_idx // fold
    return (frames >= 0) & (frames <= left)


attention = ad.attention(mask_mod=folded, name="folding_attention")


def inputs(size: Size, draw: Draw) -> Inputs:
    fold, width = 4, size.heads * size.head_dim
    weights = draw.normal(4, width, width) / width**0.5
    frames = draw.normal(size.batch, size.length // fold, fold * width)
    return {"frames": frames, "weights": weights, "fold": fold, "left": 12, "heads": size.heads}


def run(frames: Tensor, weights: Tensor, fold: int, left: int, heads: int) -> Tensor:
    """The folds of a frame are neighbours in the sequence, and time is the frame's."""
    narrow = fold >= 1 and frames.shape[-1] == fold * weights.shape[-1]
    ad.require(narrow, "`fold` tokens as wide as the projections do not make a frame")
    ad.require(heads >= 1 and weights.shape[-1] % heads == 0, "`heads` divides the width of the projections")
    shaped("weights", weights, 4, weights.shape[-1], weights.shape[-1])
    x = frames.unflatten(-1, (fold, -1)).flatten(1, 2)
    q, k, v = ((x @ weight).unflatten(-1, (heads, -1)).transpose(1, 2) for weight in weights[:3])
    out = attention.bind(fold=fold, left=left)(q, k, v).transpose(1, 2).flatten(2)
    return (out @ weights[3]).unflatten(1, (-1, fold)).flatten(2)


def formula(frames: Tensor, weights: Tensor, fold: int, left: int, heads: int) -> Tensor:
    """Tokens (t, n): softmax over all n' of the frames t - left to t."""
    batch, time, _ = frames.shape
    x = frames.reshape(batch, time * fold, -1)
    q, k, v = ((x @ weights[i]).reshape(batch, time * fold, heads, -1).transpose(1, 2) for i in range(3))
    ago = torch.arange(time, device=frames.device)[:, None] - torch.arange(time, device=frames.device)
    live = ((ago >= 0) & (ago <= left)).repeat_interleave(fold, 0).repeat_interleave(fold, 1)
    out = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v
    return (out.transpose(1, 2).reshape(batch, time * fold, -1) @ weights[3]).reshape(frames.shape)


ENTRY = Entry(
    systems=("Folding Attention",),
    paper="Folding Attention: Memory and Power Optimization for On-Device Transformer-based Streaming Speech "
    "Recognition",
    year=2023,
    conventions="Token n of frame t stands at place t fold + n. Causal in frames, with a limited left context.",
    pitfall="Causality and context count frames: the tokens of one frame see each other, later ones included.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"fold": [0, 3], "left": -1, "heads": [0, 5], "weights": torch.zeros(3, 128, 128)},
    usual=Size(1, 4, 4096, 64),
)

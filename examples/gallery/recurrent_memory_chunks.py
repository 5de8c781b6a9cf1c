"""The same queries look at everything so far, at their own chunk and at a bank of remembered states, each alone."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

whole = ad.attention(mask_mod=ad.masks.causal, name="recurrent_memory_whole")
local = ad.attention(mask_mod=ad.masks.chunked, name="recurrent_memory_chunk")
remembered = ad.attention(name="recurrent_memory_bank")


def inputs(size: Size, draw: Draw) -> Inputs:
    bank = (size.batch, size.heads, 19, size.head_dim)
    return {
        **draw.qkv(size),
        "bank": draw.normal(*bank),
        "proposed": draw.normal(*bank),
        "gate": draw.normal(*bank),
        "chunk": 24 if size.length < 1024 else 128,
    }


def run(
    q: Tensor, k: Tensor, v: Tensor, bank: Tensor, proposed: Tensor, gate: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The sum of the three outputs, and the bank as the next segment finds it."""
    out = whole(q, k, v) + local.bind(chunk=chunk)(q, k, v) + remembered(q, bank, bank)
    return out, torch.lerp(bank, torch.tanh(proposed), torch.sigmoid(gate))


def formula(
    q: Tensor, k: Tensor, v: Tensor, bank: Tensor, proposed: Tensor, gate: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """sum over the branches of softmax(Q K^T / sqrt(d)) V, and M' = (1 - g) M + g tanh(m)."""
    place = torch.arange(q.shape[2], device=q.device)
    past, scale = place <= place[:, None], q.shape[-1] ** -0.5
    scores = q @ k.mT * scale
    here = past & (place // chunk == place[:, None] // chunk)
    out = sum(scores.masked_fill(~live, -torch.inf).softmax(-1) @ v for live in (past, here))
    share = torch.sigmoid(gate)
    return out + (q @ bank.mT * scale).softmax(-1) @ bank, (1 - share) * bank + share * torch.tanh(proposed)


ENTRY = Entry(
    systems=("Recurrent memory-augmented chunked attention",),
    paper="Recurrent Memory-Augmented Transformers with Chunked Attention for Long-Context Language Modeling",
    year=2025,
    conventions="Causal, queries and keys already rotated; the bank has no order. Outputs are added and projected "
    "afterwards. The oldest states leave the bank where new ones enter, outside.",
    pitfall="Three softmaxes, not one over three sets of keys: recent tokens count in two of them, and merging by `lse`"
    " would mean another thing.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"chunk": 0},
)

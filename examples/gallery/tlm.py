"""Token-level masking, a regulariser: at each step some tokens are hidden from the others, or from themselves."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = """
attention siblings(hidden: bool tensor[B, N]) { mask  kv_idx == q_idx or not hidden[b, kv_idx] }
attention self_masking(hidden: bool tensor[B, N]) { mask  kv_idx != q_idx or not hidden[b, kv_idx] }
"""
tlm = ad.parse(TEXT)


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(size), "hidden": draw.uniform(0, 1, size.batch, size.length) < 0.2}


def run(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    ad.require(hidden.shape == (q.shape[0], q.shape[2]), "`hidden` has a flag for each token of each sequence")
    return tlm.siblings(hidden=hidden)(q, k, v), tlm.self_masking(hidden=hidden)(q, k, v)


def formula(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Flagged tokens are no keys for others (siblings), or none for themselves (self); rows without a key are 0."""
    own = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
    flagged = hidden[:, None, None, :]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    siblings = scores.masked_fill(flagged & ~own, -torch.inf).softmax(-1)
    others = scores.masked_fill(flagged & own, -torch.inf).softmax(-1)
    return siblings @ v, others @ v


ENTRY = Entry(
    systems=("TLM (token-level masking)",),
    paper="TLM: Token-Level Masking for Transformers",
    year=2023,
    conventions="Flags are true for masked tokens, drawn anew at every step; encoder attention, both techniques.",
    pitfall="A mask of whole columns is neither: a flagged token sees itself under the one and misses nothing but "
    "itself under the other. Alone in its sequence it is then an empty row, 0 here and not NaN.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="The paper's description of both techniques, in its abstract and a published review of it",
    refuses={"hidden": torch.zeros(1, 1, dtype=torch.bool)},
)

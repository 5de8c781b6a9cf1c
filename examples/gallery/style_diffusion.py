"""An image is edited by learning what the words mean as values, while the words as keys decide where, as before."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

attention = ad.attention(name="style_diffusion")
WORDS = 77


def inputs(size: Size, draw: Draw) -> Inputs:
    shape = (size.batch, size.heads, size.length, size.head_dim)
    return {"source_q": draw.normal(*shape), **draw.qkv(size, kv_length=WORDS)}


def run(source_q: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the output with the source's map in its place, and how far the two maps are apart in each row.

    A map over few words is what the attention makes of the identity as further value columns.
    """
    words = torch.eye(k.shape[2], dtype=v.dtype, device=v.device).expand(*v.shape[:2], -1, -1)
    columns, sizes = torch.cat([v, words], -1), [v.shape[-1], k.shape[2]]
    out, own = attention(q, k, columns).split(sizes, -1)
    injected, source = attention(source_q.detach(), k.detach(), columns).split(sizes, -1)
    return out, injected, (own - source).square().sum(-1)


def formula(source_q: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(Q K(c)^T / sqrt(d)) V(c~), the same with the source's map P*, and |P - P*|^2 by rows."""
    scale = q.shape[-1] ** -0.5
    own = (q @ k.mT * scale).softmax(-1)
    source = (source_q @ k.mT * scale).softmax(-1).detach()
    return own @ v, source @ v, (own - source).square().sum(-1)


ENTRY = Entry(
    systems=("StyleDiffusion",),
    paper="StyleDiffusion: Prompt-Embedding Inversion for Text-Based Editing",
    year=2023,
    conventions="77 words; keys from the given text embedding, values from the learnt one. Nothing is learnt by the "
    "source branch.",
    pitfall="Keys and values come from two embeddings of the same words, and both the regulariser and the injection "
    "need the map of another pass.",
    inputs=inputs,
    run=run,
    formula=formula,
    source="the paper's abstract: the input of the value layers alone is optimised, and attention is regularised",
    usual=Size(1, 8, 4096, 40),
)

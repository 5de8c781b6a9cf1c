"""FlexAttention's own functions, taken as they are: packed documents, ALiBi with slopes of each head, a soft cap."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.shapes import shaped


def inputs(size: Size, draw: Draw) -> Inputs:
    cuts = draw.integers(0, size.length, 3).sort().values
    documents = torch.searchsorted(cuts, torch.arange(size.length), right=True)
    slopes = draw.uniform(0.01, 0.5, size.heads)
    return {**draw.qkv(size, kv_heads=size.heads // 2), "documents": documents, "slopes": slopes, "cap": 20.0}


def run(q: Tensor, k: Tensor, v: Tensor, documents: Tensor, slopes: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    ad.require(cap > 0, "`cap` bounds scores, above 0")
    shaped("documents", documents, q.shape[2])
    shaped("slopes", slopes, q.shape[1])

    def mask_mod(b, h, q_idx, kv_idx):
        return (q_idx >= kv_idx) & (documents[q_idx] == documents[kv_idx])

    def score_mod(score, b, h, q_idx, kv_idx):
        return cap * torch.tanh(score / cap) - slopes[h] * (q_idx - kv_idx)

    length = q.shape[2]
    block_mask = create_block_mask(mask_mod, None, None, length, length, device=str(q.device), BLOCK_SIZE=32)
    out, aux = ad.flex_attention(q, k, v, score_mod, block_mask, enable_gqa=True, return_aux=AuxRequest(lse=True))
    return out, aux.lse


def formula(q: Tensor, k: Tensor, v: Tensor, documents: Tensor, slopes: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """softmax(score_mod(Q K^T / sqrt(d))) V where mask_mod holds, and the logarithm of the divisor."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    places = torch.arange(q.shape[2], device=q.device)
    distance = places[:, None] - places[None, :]
    scores = cap * (q @ k.mT / q.shape[-1] ** 0.5 / cap).tanh() - slopes[:, None, None] * distance
    scores = scores.masked_fill((distance < 0) | (documents[:, None] != documents[None, :]), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


ENTRY = Entry(
    systems=("FlexAttention",),
    paper="Flex Attention: A Programming Model for Generating Optimized Attention Kernels",
    year=2024,
    conventions="`mask_mod(b, h, q_idx, kv_idx)` and `score_mod(score, b, h, q_idx, kv_idx)` by position; the score is "
    "scaled already. `b` and `h` count batches and heads of the query.",
    pitfall="A block mask's lists say where the mask is asked: those made for other documents skip what these need.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"cap": 0.0, "documents": torch.zeros(96).int(), "slopes": [torch.ones(3), torch.ones(5)]},
    source="torch's own documentation of the API",
)

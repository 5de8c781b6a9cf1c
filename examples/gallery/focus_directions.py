"""Steers chosen heads of a language model towards what is relevant: a learned direction is added to their queries and
keys before these are rotated."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.shapes import shaped
from examples.gallery.turned import turned

attention = ad.attention(mask_mod=ad.masks.causal, name="focus_directions")


def inputs(size: Size, draw: Draw) -> Inputs:
    kv_heads = size.heads // 2
    heads = {"q_direction": size.heads, "k_direction": kv_heads}
    directions = {name: draw.normal(count, size.head_dim) for name, count in heads.items()}
    return {**draw.qkv(size, kv_heads=kv_heads), **directions, "strength": 0.3}


def run(q: Tensor, k: Tensor, v: Tensor, q_direction: Tensor, k_direction: Tensor, strength: float) -> Tensor:
    shaped("q_direction", q_direction, q.shape[1], q.shape[-1])
    shaped("k_direction", k_direction, k.shape[1], k.shape[-1])
    places = torch.arange(q.shape[2], device=q.device)
    q, k = q + strength * q_direction[:, None], k + strength * k_direction[:, None]
    return attention(rotate(q, places), rotate(k, places), v, enable_gqa=True)


def formula(q: Tensor, k: Tensor, v: Tensor, q_direction: Tensor, k_direction: Tensor, strength: float) -> Tensor:
    """The causal softmax of Re <q_i + a d_q, (k_j + a d_k) exp(i (j - i) theta)> / sqrt(d)."""
    length, dim = q.shape[2:]
    group = q.shape[1] // k.shape[1]
    q = q + strength * q_direction[None, :, None, :]
    k = (k + strength * k_direction[None, :, None, :]).repeat_interleave(group, 1)
    q, k = (turned(each, torch.arange(length, device=q.device)) for each in (q, k))
    live = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    weights = ((q @ k.mH).real / dim**0.5).masked_fill(~live, -torch.inf).softmax(-1)
    return weights @ v.repeat_interleave(group, 1)


ENTRY = Entry(
    systems=("Focus Directions",),
    paper="Focus Directions Make Your Language Models Pay More Attention to Relevant Contexts",
    year=2025,
    conventions="Causal, grouped heads. A head that is not steered has direction 0; a strength below 0 steers away.",
    pitfall="After the rotation a vector added to all keys of a head adds the same to all scores of a row, which "
    "softmax does not see: it belongs before.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"q_direction": torch.zeros(1, 32), "k_direction": torch.zeros(4, 32)},
    usual=Size(1, 8, 4096, 128),
)

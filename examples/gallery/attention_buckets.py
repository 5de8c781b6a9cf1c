"""The same prompt in several copies, each rotated with another RoPE base, so that what one copy overlooks falls on a
crest of another."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size
from examples.gallery.rotary import rotate
from examples.gallery.turned import turned

attention = ad.attention(mask_mod=ad.masks.causal, name="attention_buckets")


def inputs(size: Size, draw: Draw) -> Inputs:
    return {**draw.qkv(Size(1, size.heads, size.length, size.head_dim)), "bases": (1e4, 1.8e4, 2.5e4)}


def run(q: Tensor, k: Tensor, v: Tensor, bases: tuple[float, ...]) -> Tensor:
    ad.require(len(q) == 1, "`q` is one prompt, of which each base makes a copy")
    ad.require(len(bases) > 0 and min(bases) > 1, "`bases` are the bases of the rotations of each copy, above 1")
    places = torch.arange(q.shape[2], device=q.device)
    q, k = (torch.cat([rotate(x, places, base) for base in bases]) for x in (q, k))
    return attention(q, k, v.expand(len(bases), -1, -1, -1))


def formula(q: Tensor, k: Tensor, v: Tensor, bases: tuple[float, ...]) -> Tensor:
    """Copy n: the causal softmax of Re <q_i, k_j exp(i (j - i) theta_n)> / sqrt(d), theta_n = base_n^(-2c / d)."""
    length, dim = q.shape[2:]
    places = torch.arange(length, device=q.device)
    q, k = (torch.cat([turned(each, places, base) for base in bases]) for each in (q, k))
    live = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    return ((q @ k.mH).real / dim**0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("Attention Buckets",),
    paper="Fortify the Shortest Stave in Attention: Enhancing Context Awareness of Large Language Models for "
    "Effective Tool Use",
    year=2023,
    conventions="One batch element for each base. The copies' next-token distributions are joined outside of "
    "attention.",
    pitfall="The base is a number of a batch element, not of the model: nothing may be compiled for one base.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={"bases": [(1e4, 0.0), ()], "q": torch.zeros(2, 4, 97, 32)},
    trained=False,
    usual=Size(1, 8, 4096, 128),
)

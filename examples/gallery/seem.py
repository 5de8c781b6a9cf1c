"""Segmentation from any prompt: queries look at the pixels of their last mask, and at each other by kinds."""

import torch
from torch import Tensor

import attndsl as ad
from examples.gallery.entry import Draw, Entry, Inputs, Size

TEXT = """
attention pixels(seen: bool tensor[B, N, M]) { mask seen[b, q_idx, kv_idx] }
attention kinds(kind: int tensor[N], allowed: bool tensor[G, G]) { mask allowed[kind[q_idx], kind[kv_idx]] }
"""
seem = ad.parse(TEXT)


def inputs(size: Size, draw: Draw) -> Inputs:
    """Objects, words, prompts in space and memories; masks in stretches, some of them empty."""
    queries = max(29, size.length // 32)
    pixels = draw.qkv(size)
    centre, width = draw.integers(0, size.length, size.batch, queries, 1), draw.integers(-9, 30, size.batch, queries, 1)
    return {
        **{name: value[:, :, :queries] for name, value in draw.qkv(size).items()},
        "pixel_k": pixels["k"],
        "pixel_v": pixels["v"],
        "mask": (torch.arange(size.length) - centre).abs() < width,
        "kind": torch.arange(queries) * 4 // queries,
        "allowed": torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]).bool(),
    }


def run(
    q: Tensor, k: Tensor, v: Tensor, pixel_k: Tensor, pixel_v: Tensor, mask: Tensor, kind: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    fits = mask.shape == (q.shape[0], q.shape[2], pixel_k.shape[2])
    ad.require(fits, "`mask` has a flag for each query and pixel of each image")
    ad.require(allowed.shape[0] == allowed.shape[1], "`allowed` has as many columns as rows, one to a kind")
    ad.require((kind >= 0) & (kind < len(allowed)), "`kind` has a row of `allowed` for each query")
    seen = mask | ~mask.any(-1, keepdim=True)
    return seem.pixels(seen=seen)(q, pixel_k, pixel_v), seem.kinds(kind=kind, allowed=allowed)(q, k, v)


def formula(
    q: Tensor, k: Tensor, v: Tensor, pixel_k: Tensor, pixel_v: Tensor, mask: Tensor, kind: Tensor, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-attention inside the mask, or everywhere if it is empty; self-attention between kinds that may."""
    hidden = torch.where(mask.sum(-1, keepdim=True) == 0, False, ~mask)
    cross = (q @ pixel_k.mT / q.shape[-1] ** 0.5).masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    apart = ~allowed[kind][:, kind]
    return cross @ pixel_v, (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(apart, -torch.inf).softmax(-1) @ v


ENTRY = Entry(
    systems=("SEEM",),
    paper="Segment Everything Everywhere All at Once",
    year=2023,
    conventions="`mask` is true where the layer before predicted the object; which kinds see which is a table.",
    pitfall="A mask may be empty, and then the query sees every pixel: the row is reset before attention, not zero.",
    inputs=inputs,
    run=run,
    formula=formula,
    refuses={
        "mask": torch.zeros(1, 1, 1, dtype=torch.bool),
        "kind": torch.full((29,), 4),
        "allowed": torch.ones(4, 3, dtype=torch.bool),
    },
)

"""Attention and plans under a mask given pair by pair, written out: what tests of routing hold everything against."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, live: Tensor) -> Tensor:
    """float64 softmax attention over the live pairs [B, H, Nq, Nk]; rows without any are 0."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~live, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v


def pairs(live: Tensor, block: tuple[int, int], lengths: tuple[int, int]) -> Tensor:
    """A map of blocks [B, H, query blocks, key blocks] pair by pair."""
    rows, columns = (torch.arange(length) // size for length, size in zip(lengths, block, strict=True))
    return live[:, :, rows][..., columns]


def tile_classes(live: Tensor, block: tuple[int, int]) -> Tensor:
    """0 empty, 1 partial, 2 full for each tile, by looking at its pairs."""
    rows, columns = (range(0, length, size) for length, size in zip(live.shape[-2:], block, strict=True))
    found = torch.zeros(*live.shape[:2], len(rows), len(columns), dtype=torch.int8)
    for row, start in enumerate(rows):
        for column, first in enumerate(columns):
            tile = live[:, :, start : start + block[0], first : first + block[1]].flatten(2)
            found[:, :, row, column] = torch.where(tile.all(-1), 2, tile.any(-1).to(torch.int8))
    return found


def causal(q_len: int, kv_len: int, offset: int = 0) -> Tensor:
    """[1, 1, Nq, Nk]: keys at or before the query's position."""
    return (torch.arange(kv_len) <= torch.arange(q_len)[:, None] + offset)[None, None]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

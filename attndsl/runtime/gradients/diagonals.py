"""Sums along the diagonals of tiles, and of those tiles, as sums by the distance of query and key.

In: a workspace `[B, H, diagonals of tiles, BLOCK, BLOCK]`, whose entry `(n, r, c)` is of pairs whose row, counted from
0, less key is `(n - (Tk - 1)) * BLOCK + r - c`, with `Tk` the tiles of keys. Out: one sum for every distance.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tile_diagonals(q_len: int, kv_len: int, block: int) -> int:
    """How many diagonals the square tiles of a call lie on."""
    return max(_tiles(q_len, block) + _tiles(kv_len, block) - 1, 0)


def by_distance(workspace: Tensor, q_len: int, kv_len: int) -> Tensor:
    """Sums `[B, H, q_len + kv_len - 1]` in float64, of the distances of row less key from `1 - kv_len` up."""
    *lead, count, block, _ = workspace.shape
    # Of a tile, entry (r, c) falls on slot c - r + block; rows are added one by one, each one slot further left.
    within = workspace.new_zeros(*lead, count, 2 * block, dtype=torch.float64)
    for row in range(block):
        within[..., block - row : 2 * block - row] += workspace[..., row, :]
    within = within.flip(-1)
    # Slots are now r - c + block - 1; the second half of a tile's is the first half of the next tile's.
    sums = within.new_zeros(*lead, count + 1, block)
    sums[..., :count, :] += within[..., :block]
    sums[..., 1:, :] += within[..., block:]
    start = _tiles(kv_len, block) * block - kv_len
    return sums.flatten(-2)[..., start : start + q_len + kv_len - 1]


def _tiles(length: int, block: int) -> int:
    return -(-length // block)

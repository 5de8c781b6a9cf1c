"""One vector for each block of tokens.

In: vectors `[B, H, N, D]` and the tokens of each block. Out: `[B, H, blocks, D]` in float32, whatever came in. A short
last block is pooled over the tokens it has.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Pool(StrEnum):
    MEAN = "mean"
    MAX = "max"
    MIN = "min"


def pooled(vectors: Tensor, tokens: Tensor, pool: Pool) -> Tensor:
    """The vectors of each block as one; `tokens` [blocks, largest] is -1 where a block has fewer. Empty blocks: 0."""
    if tokens.numel() == 0:
        return vectors.new_zeros((*vectors.shape[:2], len(tokens), vectors.shape[3]), dtype=torch.float32)
    present = (tokens >= 0)[..., None]
    gathered = vectors.float()[:, :, tokens.clamp(min=0)]
    match pool:
        case Pool.MEAN:
            return torch.where(present, gathered, 0.0).sum(3) / present.sum(1).clamp(min=1)
        case Pool.MAX:
            found = torch.where(present, gathered, -torch.inf).amax(3)
        case Pool.MIN:
            found = torch.where(present, gathered, torch.inf).amin(3)
    return torch.where(present.any(1), found, 0.0)

"""How much a block of keys matters to a block of queries: a float32 number for each pair of blocks.

In: pooled queries, keys and the tokens of each block. Out: scores `[B, Hq, query blocks, key blocks]`.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from attndsl.routing.pooling import Pool, pooled


class Score(StrEnum):
    DOT = "dot"
    BOUND = "bound"


def block_scores(score: Score, queries: Tensor, k: Tensor, tokens: Tensor, pool: Pool, scale: float) -> Tensor:
    """`dot`: scale * <query, pooled keys>. `bound`: the largest scale * <query, key> any key within the block's least
    and greatest coordinates could have."""
    group = queries.shape[1] // max(1, k.shape[1])

    def keys(how: Pool) -> Tensor:
        return pooled(k, tokens, how).repeat_interleave(group, 1).transpose(-1, -2)

    match score:
        case Score.DOT:
            return scale * (queries @ keys(pool))
        case Score.BOUND:
            # A negative scale turns the order of keys around, and so does a negative coordinate of the query.
            scaled = scale * queries
            return scaled.clamp(min=0) @ keys(Pool.MAX) + scaled.clamp(max=0) @ keys(Pool.MIN)


def order(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores along the last axis from best to worst, ties to the lowest index, and where each stood."""
    found = torch.sort(scores, dim=-1, descending=True, stable=True)
    return found.values, found.indices

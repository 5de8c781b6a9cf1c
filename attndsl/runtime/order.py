"""Tokens brought into the order a kernel keeps them in, and its rows brought back.

In: tensors with tokens along dimension 2, an order. Out: copies. Each is one strided copy, with no index to read.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from attndsl.ir.order import GridOrder
from attndsl.runtime.arguments import Call
from attndsl.runtime.launch import Rows

TOKENS = 2
"""The dimension of tokens, after batch and heads."""


def stored(call: Call, order: GridOrder) -> Call:
    """The call with its tokens tile by tile."""
    return replace(call, q=to_storage(call.q, order), k=to_storage(call.k, order), v=to_storage(call.v, order))


def restored(rows: Rows, order: GridOrder) -> Rows:
    """The rows of a permuted call in the order the call came in."""
    lse = None if rows.lse is None else from_storage(rows.lse, order)
    sums = {name: from_storage(tensor, order) for name, tensor in rows.sums.items()}
    return Rows(from_storage(rows.out, order), lse, from_storage(rows.max_score, order), sums)


def to_storage(tensor: Tensor, order: GridOrder) -> Tensor:
    """Row-major tokens to tile by tile."""
    pairs = [size for pair in zip(order.counts, order.tile, strict=True) for size in pair]
    rank = len(order.sizes)
    return _shuffled(tensor, pairs, [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])


def from_storage(tensor: Tensor, order: GridOrder) -> Tensor:
    """Tile by tile to row-major."""
    rank = len(order.sizes)
    return _shuffled(tensor, [*order.counts, *order.tile], [axis + half for axis in range(rank) for half in (0, rank)])


def _shuffled(tensor: Tensor, sizes: list[int], order: list[int]) -> Tensor:
    """The tokens taken apart into `sizes`, and put together with these axes in another order."""
    apart = tensor.reshape(*tensor.shape[:TOKENS], *sizes, *tensor.shape[TOKENS + 1 :])
    axes = [*range(TOKENS), *(TOKENS + axis for axis in order), *range(TOKENS + len(sizes), apart.dim())]
    return apart.permute(axes).flatten(TOKENS, TOKENS + len(sizes) - 1)

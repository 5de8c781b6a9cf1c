"""Sums of floats in an order that only sizes decide.

In: tensors. Out: their sums along a dimension, whole or by segments. torch's own sums split the work among threads,
and scatters add in the order threads arrive: here every step is elementwise, so bits do not depend on either. Halves
are added to halves, whose rounding errors grow with the logarithm of the length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def folded(values: Tensor, dim: int) -> Tensor:
    """The sum along a dimension, which stays with size 1."""
    if values.shape[dim] == 0:
        return values.sum(dim, keepdim=True)
    owned = False
    while (size := values.shape[dim]) > 1:
        half = (size + 1) // 2
        first = values.narrow(dim, 0, half)
        first = first if owned else first.clone()
        first.narrow(dim, 0, size - half).add_(values.narrow(dim, half, size - half))
        values, owned = first, True
    return values


def by_key(values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct of `keys [n]` in ascending order, and for each the sum of the values `[..., n]` that have it."""
    ordered, order = torch.sort(keys, stable=True)
    distinct, counts = torch.unique_consecutive(ordered, return_counts=True)
    values = values.index_select(-1, order)
    while counts.numel() and int(counts.max()) > 1:
        values, counts = _halved(values, counts)
    return distinct, values


def _halved(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours within each segment added in pairs; an odd one at the end stays alone."""
    halves = (counts + 1) // 2
    segments = torch.repeat_interleave(halves)
    begin, half_begin = counts.cumsum(0) - counts, halves.cumsum(0) - halves
    local = 2 * (torch.arange(segments.numel(), device=values.device) - half_begin[segments])
    left = begin[segments] + local
    has_right = local + 1 < counts[segments]
    right = values.index_select(-1, torch.where(has_right, left + 1, left))
    return values.index_select(-1, left) + torch.where(has_right, right, 0.0), halves

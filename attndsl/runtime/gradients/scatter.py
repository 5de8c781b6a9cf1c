"""Derivatives by the elements that pairs read, added up into the gradient of a tensor, with no atomics.

In: derivatives over a grid, and the element read at each place of it. Out: their sums, element by element.

Along dimensions of the grid that no index varies along, derivatives are summed first. A dimension of the tensor that a
coordinate indexes as it is, and that no other index goes along with, is a slice. Whatever else indexes is sorted, and
stretches of equal indices are summed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from attndsl.dense import evaluate_all
from attndsl.ir.nodes import Expr, Load
from attndsl.runtime.gradients.grid import DIMENSIONS, Grid
from attndsl.runtime.gradients.sums import by_key, folded


@dataclass(frozen=True, slots=True)
class Indexing:
    """How the dimensions of a tensor are read on a grid.

    `plain` are those that are slices, with the dimension of the grid each runs along; `opaque` the others, and `along`
    the dimensions of the grid that these vary along together.
    """

    plain: dict[int, int]
    opaque: tuple[int, ...]
    along: tuple[int, ...]


def indexing(load: Load, grid: Grid) -> Indexing:
    """Which indices are coordinates as they are."""
    varies = [grid.varies_along(index) for index in load.indices]
    plain = {
        dimension: DIMENSIONS[index]
        for dimension, index in enumerate(load.indices)
        if index in grid.starts and sum(DIMENSIONS[index] in other for other in varies) == 1
    }
    opaque = tuple(dimension for dimension in range(len(load.indices)) if dimension not in plain)
    along = frozenset[int]().union(*(varies[dimension] for dimension in opaque))
    return Indexing(plain, opaque, tuple(sorted(along)))


def add_elements(total: Tensor, load: Load, derivatives: Tensor, grid: Grid) -> None:
    """Add the derivatives by the elements of a load, one for each place of the grid, to `total`, shaped as the tensor.

    Only pairs that are not live read outside the tensor: their derivatives are 0 and are dropped.
    """
    how = indexing(load, grid)
    kept = (*how.plain.values(), *how.along)
    summed = [dimension for dimension in range(4) if dimension not in kept]
    for dimension in summed:
        derivatives = folded(derivatives, dimension)
    sizes = [grid.sizes[dimension] for dimension in kept]
    places = math.prod(sizes[len(how.plain) :])
    values = derivatives.permute(*kept, *summed).reshape(*sizes[: len(how.plain)], places)
    total = total.permute((*how.plain, *how.opaque))
    for position, dimension in enumerate(how.plain):
        total, values = _overlap(total, values, position, grid.starts[load.indices[dimension]])
    if not how.opaque:
        total += values[..., 0]
    elif total.numel() and values.numel():
        _add_opaque(total, values, [load.indices[dimension] for dimension in how.opaque], how.along, grid)


def _overlap(total: Tensor, values: Tensor, dimension: int, start: int) -> tuple[Tensor, Tensor]:
    """Both cut to the elements a coordinate that counts up from `start` has in the tensor."""
    low = max(start, 0)
    length = max(min(start + values.shape[dimension], total.shape[dimension]) - low, 0)
    if length == 0:
        return total.narrow(dimension, 0, 0), values.narrow(dimension, 0, 0)
    return total.narrow(dimension, low, length), values.narrow(dimension, low - start, length)


def _add_opaque(total: Tensor, values: Tensor, indices: list[Expr], along: tuple[int, ...], grid: Grid) -> None:
    """The last dimensions of `total`, one per index, are read at the places that the last one of `values` counts."""
    sizes = total.shape[-len(indices) :]
    shape = [size if dimension in along else 1 for dimension, size in enumerate(grid.sizes)]
    found = [index.expand(shape).flatten() for index in evaluate_all(indices, grid.env)]
    inside, keys = torch.ones_like(found[0], dtype=torch.bool), torch.zeros_like(found[0])
    for index, size in zip(found, sizes, strict=True):
        inside &= (index >= 0) & (index < size)
        keys = keys * size + index
    distinct, sums = by_key(values, torch.where(inside, keys, math.prod(sizes)))
    exists = distinct < math.prod(sizes)
    where: tuple[EllipsisType | Tensor, ...] = (..., *torch.unravel_index(distinct[exists], sizes))
    total[where] += sums[..., exists]

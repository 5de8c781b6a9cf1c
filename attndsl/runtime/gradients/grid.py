"""Where derivatives stand: the coordinates that indices are evaluated on.

In: a checked call, the rows and keys at hand. Out: a `Grid` of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.analysis.axes import axes_of
from attndsl.dense import Env
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Axis
from attndsl.runtime.arguments import Call

DIMENSIONS: dict[Expr, int] = {build.B: 0, build.H: 1, build.Q: 2, build.K: 3}
"""Of `[B, Hq, Nq, Nk]`, the dimension each coordinate counts."""

_AXES = {Axis.B: build.B, Axis.H: build.H, Axis.Q: build.Q, Axis.K: build.K}


@dataclass(frozen=True, slots=True)
class Grid:
    """Every batch, query head, row and key at hand, the rows and keys being stretches.

    `starts` are the first values of the coordinates that count up along their own dimension and are alike along others.
    """

    env: Env
    sizes: tuple[int, int, int, int]
    starts: Mapping[Expr, int]

    def varies_along(self, index: Expr) -> frozenset[int]:
        """The dimensions of the grid an index may vary along."""
        found: set[int] = set()
        for axis in axes_of(index):
            sizes = self.env.leaves[_AXES[axis]].shape
            found |= {DIMENSIONS[_AXES[axis]], *(dimension for dimension in range(4) if sizes[dimension] > 1)}
        return frozenset(found)


def grid_of(call: Call, rows: range, keys: range) -> Grid:
    """The pairs of these rows, counted from 0, and keys."""
    device = call.q.device
    counted = {build.B: range(call.batch), build.H: range(call.heads), build.Q: rows, build.K: keys}
    leaves: dict[Expr, Tensor] = {
        coordinate: _along(DIMENSIONS[coordinate], values, device) for coordinate, values in counted.items()
    }
    starts: dict[Expr, int] = {coordinate: values.start for coordinate, values in counted.items()}
    sizes = (call.batch, call.heads, len(rows), len(keys))
    if isinstance(call.q_offset, Tensor):
        leaves[build.Q] = leaves[build.Q] + call.q_offset.to(torch.int64).view(-1, 1, 1, 1)
        del starts[build.Q]
    else:
        leaves[build.Q] = leaves[build.Q] + call.q_offset
        starts[build.Q] += call.q_offset
    leaves[build.Q_LEN] = torch.tensor(call.q_len, device=device)
    leaves[build.KV_LEN] = torch.tensor(call.kv_len, device=device)
    return Grid(Env(leaves, call.values, torch.float32, device=device), sizes, starts)


def _along(dimension: int, values: range, device: torch.device) -> Tensor:
    counted = torch.arange(values.start, values.stop, device=device)
    return counted.view([-1 if dimension == other else 1 for other in range(4)])

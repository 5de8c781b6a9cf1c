"""Booleans evaluated pair by pair, a bounded number of pairs at a time.

In: a boolean expression and the tiles, or the queries and keys, to look at. Out: what is true there. This is how what
ranges leave open is settled; the value of a pair is what the dense evaluation says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attndsl.analysis.tiling import Tiling
from attndsl.dense import Env, evaluate
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.runtime.known import Value

PAIRS_AT_ONCE = 2**21


def pairs(
    expr: Expr,
    values: Mapping[str, Value],
    coordinates: tuple[Tensor, Tensor, Tensor, Tensor],
    lengths: tuple[int, int],
) -> Tensor:
    """The truth of a boolean at `(b, h, q_idx, kv_idx)`, tensors that broadcast together."""
    device = coordinates[0].device
    leaves: dict[Expr, Tensor] = dict(zip((build.B, build.H, build.Q, build.K), coordinates, strict=True))
    leaves[build.Q_LEN], leaves[build.KV_LEN] = (torch.tensor(length, device=device) for length in lengths)
    return evaluate(expr, Env(leaves, on_device(values, device), device=device))


def on_device(values: Mapping[str, Value], device: torch.device) -> dict[str, Value]:
    """The values with tensors on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}


def look_at_pairs(
    mask: Expr, values: Mapping[str, Value], tiling: Tiling, tiles: tuple[npt.NDArray[Any], ...]
) -> npt.NDArray[Any]:
    """The class of each of some tiles (b, h, row, column)."""
    return np.concatenate([_classes(*looked) for looked in _looks(mask, values, tiling, tiles)])


def live_in_tiles(mask: Expr, values: Mapping[str, Value], tiling: Tiling, tiles: tuple[npt.NDArray[Any], ...]) -> int:
    """How many live pairs some tiles (b, h, row, column) hold together."""
    return sum(int((live & inside).sum()) for live, inside in _looks(mask, values, tiling, tiles))


def _classes(live: Tensor, inside: Tensor) -> npt.NDArray[Any]:
    some = (live & inside).flatten(1).any(1)
    every = (live | ~inside).flatten(1).all(1)
    return np.asarray(torch.where(every, 2, some.long()).numpy())


def _looks(
    mask: Expr, values: Mapping[str, Value], tiling: Tiling, tiles: tuple[npt.NDArray[Any], ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For a bounded number of tiles at a time which pairs are live, and which are pairs of the call."""
    step = max(1, PAIRS_AT_ONCE // (tiling.block[0] * tiling.block[1]))
    for start in range(0, len(tiles[0]), step):
        yield _look(mask, values, tiling, tuple(place[start : start + step] for place in tiles))


def _look(
    mask: Expr, values: Mapping[str, Value], tiling: Tiling, tiles: tuple[npt.NDArray[Any], ...]
) -> tuple[Tensor, Tensor]:
    b, h, row, column = (torch.from_numpy(place.copy()).view(-1, 1, 1) for place in tiles)
    queries, keys = tiling.block
    q = row * queries + torch.arange(queries).view(1, -1, 1)
    k = column * keys + torch.arange(keys).view(1, 1, -1)
    offsets = torch.from_numpy(tiling.q_offset)
    offset = offsets[b] if len(offsets) > 1 else offsets
    inside = (q < tiling.q_len) & (k < tiling.kv_len)
    # Beyond the lengths nothing is a pair: the nearest one is evaluated, and not counted.
    position = q.clamp(max=tiling.q_len - 1) + offset
    live = pairs(mask, values, (b, h, position, k.clamp(max=tiling.kv_len - 1)), (tiling.q_len, tiling.kv_len))
    return live, inside

"""The obligations of a call that ranges left open, settled pair by pair on the host.

In: the undecided obligations of a `Verdict` and the call they belong to. Out: a diagnostic for each that some live pair
(or taken branch) breaks, naming the pair. Only stretches of keys that ranges cannot clear are evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from attndsl.analysis.axes import axes_of
from attndsl.analysis.intervals import Known, evaluate
from attndsl.analysis.obligations import Obligation, broken
from attndsl.analysis.reach import Guards
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Truth
from attndsl.diagnostics import Diagnostic
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Input, Reduce
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis
from attndsl.ir.variant import Variant
from attndsl.runtime.dense_tiles import PAIRS_AT_ONCE, on_device, pairs
from attndsl.runtime.known import Value, known_values

TILE = 128


def settle(
    variant: Variant,
    undecided: Iterable[Obligation],
    values: Mapping[str, Value],
    *,
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    q_offset: int | Tensor = 0,
    known: Known | None = None,
) -> tuple[Diagnostic, ...]:
    """The diagnostics of the obligations that do not hold."""
    host = on_device(values, torch.device("cpu"))
    known = known_values(variant, host) if known is None else known
    offsets = torch.as_tensor(q_offset).to("cpu", torch.int64).reshape(-1).numpy()
    tiling = Tiling(batch, heads, q_len, kv_len, (TILE, TILE), offsets)
    found = (_settled(variant, obligation, host, known, tiling) for obligation in undecided)
    return tuple(dict.fromkeys(diagnostic for diagnostic in found if diagnostic is not None))


def _settled(
    variant: Variant, obligation: Obligation, values: Mapping[str, Value], known: Known, tiling: Tiling
) -> Diagnostic | None:
    for guards in obligation.reached:
        bad = build.conjunction([*_checkable(guards), obligation.violation])
        where = _first_pair(bad, values, known, tiling)
        if where is not None:
            value = int(_operand_at(obligation.operand, where, values, tiling))
            names = ("b", "h", "q_idx", "kv_idx")
            place = ", ".join(f"{name} = {index}" for name, index in zip(names, where, strict=True))
            return broken(variant, obligation, (f"it is {value} at {place}",), value)
    return None


def _checkable(guards: Guards) -> list[Expr]:
    """The guards a host can evaluate; one that depends on scores may hold anywhere."""
    return [guard for guard in guards if not any(isinstance(node, Input | Reduce) for node in postorder(guard))]


def _first_pair(
    bad: Expr, values: Mapping[str, Value], known: Known, tiling: Tiling
) -> tuple[int, int, int, int] | None:
    """The first pair (b, h, q_idx, kv_idx) on which a boolean is true."""
    tiling = tiling.reduced(bad)
    lengths = (tiling.q_len, tiling.kv_len)
    for rows, keys in _open_stretches(bad, known, tiling):
        coordinates = _coordinates(tiling, rows, keys)
        hits = pairs(bad, values, coordinates, lengths)
        if hits.any():
            at = hits.expand(torch.broadcast_shapes(*(c.shape for c in coordinates))).nonzero()[0]
            b, h, q, k = (int(i) for i in at)
            position = int(coordinates[2].expand(tiling.batch, 1, -1, 1)[b, 0, q, 0])
            return b, h, position, keys.start + k
    return None


def _open_stretches(bad: Expr, known: Known, tiling: Tiling) -> Iterator[tuple[slice, slice]]:
    """Queries and keys that ranges do not clear, a bounded number of pairs each."""
    axes = axes_of(bad)
    for row in range(tiling.q_tiles if Axis.Q in axes else 1):
        truth = evaluate((bad,), tiling.tiles(slice(row, row + 1), slice(0, tiling.kv_tiles)), known)[bad]
        assert isinstance(truth, Truth)
        possible = np.broadcast_to(truth.can_be_true, (*truth.can_be_true.shape[:3], tiling.kv_tiles))
        open_ = np.flatnonzero(possible.any(axis=(0, 1, 2)))
        if open_.size:
            queries = slice(row * TILE, min((row + 1) * TILE, tiling.q_len) if Axis.Q in axes else 1)
            step = max(1, PAIRS_AT_ONCE // (TILE * tiling.batch * tiling.heads))
            last = min((int(open_[-1]) + 1) * TILE, tiling.kv_len) if Axis.K in axes else 1
            for start in range(int(open_[0]) * TILE, last, step):
                yield queries, slice(start, min(start + step, last))


def _coordinates(tiling: Tiling, rows: slice, keys: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    offset = torch.from_numpy(tiling.q_offset).view(-1, 1, 1, 1)
    return (
        torch.arange(tiling.batch).view(-1, 1, 1, 1),
        torch.arange(tiling.heads).view(1, -1, 1, 1),
        torch.arange(rows.start, rows.stop).view(1, 1, -1, 1) + offset,
        torch.arange(keys.start, keys.stop).view(1, 1, 1, -1),
    )


def _operand_at(operand: Expr, where: tuple[int, int, int, int], values: Mapping[str, Value], tiling: Tiling) -> Tensor:
    b, h, q, k = (torch.tensor(index) for index in where)
    return pairs(operand, values, (b, h, q, k), (tiling.q_len, tiling.kv_len))

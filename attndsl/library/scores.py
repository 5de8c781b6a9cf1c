"""Score mods: changes of the scaled dot product. Parameters are bound by keyword: `soft_cap(cap=50.0)`."""

from __future__ import annotations

from typing import Any

import torch

from attndsl.diagnostics import ProgramError, fail
from attndsl.frontend import math
from attndsl.frontend.decorators import score_mod
from attndsl.frontend.symbols import Symbol


@score_mod
def alibi(score: Symbol, h: Symbol, q_idx: Symbol, kv_idx: Symbol, *, slopes: Any) -> Any:
    """A penalty that grows with the distance to earlier keys, `slopes[h]` for each position; no mask."""
    return score - slopes[h] * (q_idx - kv_idx)


def alibi_slopes(heads: int) -> torch.Tensor:
    """The slopes ALiBi gives `heads` query heads, float32 `(heads,)`, for `alibi(slopes=...)`.

    For a power of two, head h of 1 to `heads` has 2^(-8 h / heads); for other numbers those of the next lower power of
    two, then every other one of twice as many. Press, Smith and Lewis, "Train short, test long", 2021.
    """
    if heads < 1:
        raise fail(ProgramError, "heads", f"`heads` is {heads}, expected at least 1")
    whole = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * head / whole) for head in range(1, whole + 1)]
    between = [2.0 ** (-4 * head / whole) for head in range(1, 2 * whole + 1, 2)]
    return torch.tensor([*slopes, *between[: heads - whole]])


@score_mod
def soft_cap(score: Symbol, *, cap: float) -> Any:
    """Scores squeezed smoothly into (-cap, cap)."""
    return cap * math.tanh(score / cap)


@score_mod
def temperature(score: Symbol, h: Symbol, *, factor: Any) -> Any:
    """Scores times `factor`: a float, or a float tensor of one per query head."""
    return score * (factor[h] if isinstance(factor, torch.Tensor) and factor.ndim > 0 else factor)


@score_mod
def bias(score: Symbol, b: Symbol, h: Symbol, q_idx: Symbol, kv_idx: Symbol, *, table: Any) -> Any:
    """Scores plus a table of shape (Nq, Nk), (H, Nq, Nk) or (B, H, Nq, Nk)."""
    index = (b, h, q_idx, kv_idx)
    return score + table[index[4 - table.ndim :]]


@score_mod
def relative_bias(score: Symbol, h: Symbol, q_idx: Symbol, kv_idx: Symbol, *, table: Any, max_distance: int) -> Any:
    """Scores plus a learned number for each head and signed distance.

    `table` has shape (H, 2 * max_distance + 1); its middle is the query's own position, larger columns are later keys,
    and distances beyond `max_distance` share the column at the end.
    """
    distance = math.clamp(kv_idx - q_idx, -max_distance, max_distance)
    return score + table[h, distance + max_distance]

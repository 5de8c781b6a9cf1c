"""Neighbourhoods of tokens kept along a Z-order curve, where runs of 4^n tokens are squares.

In: the side of a square canvas. Out: a mask; `ad.grid(..., tile=...)` keeps row-major tokens in squares instead, and
moves them itself.
"""

from __future__ import annotations

from typing import Any

from attndsl.diagnostics import ProgramError, fail
from attndsl.frontend.decorators import MaskMod, mask_mod
from attndsl.frontend.grids import require
from attndsl.frontend.math import clamp
from attndsl.frontend.symbols import Symbol


def morton_neighborhood(side: int, window: int) -> MaskMod:
    """`neighborhood` on a square canvas whose tokens are in Z-order: token i is at the even and at the odd bits of i.

    `side`, the canvas' height and width, is a power of two; there are side * side tokens. Along each axis a query sees
    exactly `window` keys, shifted inwards at borders. Runtime scalar: `window`.
    """
    if side < 1 or side & (side - 1):
        message = f"`side` is {side}, expected a power of two"
        raise fail(
            ProgramError, "side", message, help="or keep tokens row by row: `neighborhood(ad.grid(y=, x=), ...)`"
        )
    # Structure, not a run-time number: closures' numbers would become scalars.
    bits = tuple(range(side.bit_length() - 1))

    @mask_mod
    def near(q_idx: Symbol, kv_idx: Symbol, *, window: int = window) -> Any:
        require((window >= 1) & (window <= 1 << len(bits)), "`window` counts keys along an axis, 1 to `side`")
        sees: Any = True
        for axis in (0, 1):
            query, key = (_every_other_bit(index >> axis, bits) for index in (q_idx, kv_idx))
            start = clamp(query - window // 2, 0, (1 << len(bits)) - window)
            sees = sees & (key >= start) & (key < start + window)
        return sees

    return near


def _every_other_bit(index: Any, bits: tuple[int, ...]) -> Any:
    return sum((index >> bit & 1 << bit for bit in bits), 0 * index)

"""Tokens of a grid kept tile by tile: what a kernel reads where it stands for row-major positions.

In: sizes of a grid and of its tiles. Out: coordinates and original positions as arithmetic on a position in storage,
and what the order asks of a call. Tiles are row-major on the grid, tokens row-major in their tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.requirement import Requirement


@dataclass(frozen=True, slots=True)
class GridOrder:
    """Tile-major order: `sizes` of the axes, slowest first, and those of the tiles, which divide them."""

    sizes: tuple[int, ...]
    tile: tuple[int, ...]

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return math.prod(self.sizes)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tiles there are along each axis."""
        return tuple(size // side for size, side in zip(self.sizes, self.tile, strict=True))

    @property
    def moves(self) -> bool:
        """Whether any token changes its place: none does where tiles are stretches of the row-major order."""
        cut = [axis for axis, count in enumerate(self.counts) if count > 1]
        return bool(cut) and any(side > 1 for side in self.tile[: cut[-1]])

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """Queries and keys are the tokens of the grid, all of them, from the first one on."""
        length, zero = build.integer(self.length), build.integer(0)
        from_first = build.apply(Op.AND, build.apply(Op.GE, build.Q, zero), build.apply(Op.LT, build.Q, build.Q_LEN))
        said = f"tokens in {self} are all {self.length} of the grid"
        return (
            Requirement(build.apply(Op.EQ, build.Q_LEN, length), f"{said}, one for each query"),
            Requirement(build.apply(Op.EQ, build.KV_LEN, length), f"{said}, one for each key"),
            Requirement(from_first, f"{said}, so the first query is at position 0"),
        )

    def stored(self, position: Expr) -> dict[Expr, Expr]:
        """What stands, where `position` counts tokens in storage, for what is made of row-major positions.

        Coordinates as a grid writes them become single quotients and remainders; anything else is made of the position
        itself.
        """
        found: dict[Expr, Expr] = {}
        for axis, size in enumerate(self.sizes):
            stride = self._stride(axis)
            written = _quotient(position, stride) if axis == 0 else _digit(position, stride, size)
            found[written] = self._at(axis, position)
        terms = [_times(self._at(axis, position), self._stride(axis)) for axis in range(len(self.sizes))]
        found[position] = terms[0]
        for term in terms[1:]:
            found[position] = build.apply(Op.ADD, found[position], term)
        return found

    def _stride(self, axis: int) -> int:
        return math.prod(self.sizes[axis + 1 :])

    def _at(self, axis: int, stored: Expr) -> Expr:
        """The coordinate of the token at a position in storage: that of its tile, and that within the tile."""
        side, count = self.tile[axis], self.counts[axis]
        within = _digit(stored, math.prod(self.tile[axis + 1 :]), side)
        # Tiles after this one along the axis are a whole row of tiles away, and a tile is all of its tokens.
        apart = math.prod(self.tile) * math.prod(self.counts[axis + 1 :])
        tile = _quotient(stored, apart) if axis == 0 and count > 1 else _digit(stored, apart, count)
        return build.apply(Op.ADD, _times(tile, side), within)

    def __str__(self) -> str:
        return f"tiles of {' x '.join(map(str, self.tile))} on a grid of {' x '.join(map(str, self.sizes))}"


def _quotient(value: Expr, divisor: int) -> Expr:
    return value if divisor == 1 else build.apply(Op.FLOORDIV, value, build.integer(divisor))


def _digit(value: Expr, divisor: int, modulus: int) -> Expr:
    return build.apply(Op.MOD, _quotient(value, divisor), build.integer(modulus))


def _times(value: Expr, factor: int) -> Expr:
    return build.apply(Op.MUL, value, build.integer(factor))

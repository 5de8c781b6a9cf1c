"""Tile shapes by target, element type and head dimension: the defaults a launch and `compile_for` use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TileShape:
    """Query rows and keys of a tile, and how Triton schedules it."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


INTERPRETER = TileShape(32, 32, 4, 1)

# Rows: (largest padded head dimension, tile). Chosen for 0 spilled bytes and, on Hopper, warp-group products.
_HALF: dict[str, tuple[tuple[int, TileShape], ...]] = {
    "ampere": (
        (64, TileShape(128, 64, 8, 3)),
        (128, TileShape(128, 32, 8, 3)),
        (256, TileShape(64, 32, 8, 2)),
    ),
    "hopper": (
        (64, TileShape(128, 64, 8, 3)),
        (128, TileShape(128, 64, 8, 3)),
        (256, TileShape(64, 32, 4, 2)),
    ),
    "hip": (
        (64, TileShape(128, 64, 4, 1)),
        (128, TileShape(128, 64, 4, 1)),
        (256, TileShape(64, 32, 4, 1)),
    ),
}
_FULL = (
    (64, TileShape(64, 32, 4, 2)),
    (128, TileShape(32, 32, 4, 2)),
    (256, TileShape(16, 16, 4, 1)),
)


def default_tile(family: str, dtype: str, head_dim: int) -> TileShape:
    """The tile of a target family ("ampere", "hopper", "hip") for a padded head dimension (the larger of the two)."""
    rows = _FULL if dtype == "fp32" else _HALF[family]
    return next(tile for limit, tile in rows if head_dim <= limit)


def family_of(backend: str, capability: int) -> str:
    """The row of the table for a target: Triton's backend name and, on cuda, the compute capability (90 for 9.0)."""
    if backend == "hip":
        return "hip"
    return "hopper" if capability >= 90 else "ampere"

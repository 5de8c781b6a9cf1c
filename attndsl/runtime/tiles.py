"""Tile shapes by target, element type and head dimension: the defaults a launch and `compile_for` use."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.codegen.plan import KernelPlan, padded


@dataclass(frozen=True, slots=True)
class TileShape:
    """Query rows and keys of a tile, and how Triton schedules it."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


INTERPRETER = TileShape(32, 32, 4, 1)


@dataclass(frozen=True, slots=True)
class Row:
    """Tiles up to a padded head dimension: where bounds tell the keys a query tile sees, and where it has to look."""

    head_dim: int
    bounded: TileShape
    searching: TileShape


# Chosen for 0 spilled bytes at head dims 64 and 128 and, on Hopper, warp-group products.
_HALF: dict[str, tuple[Row, ...]] = {
    "ampere": (
        Row(64, TileShape(128, 64, 8, 3), TileShape(128, 32, 8, 3)),
        Row(128, TileShape(128, 32, 8, 3), TileShape(128, 32, 8, 3)),
        Row(256, TileShape(64, 32, 8, 2), TileShape(64, 32, 8, 2)),
    ),
    "hopper": (
        Row(64, TileShape(128, 64, 8, 3), TileShape(128, 64, 8, 2)),
        Row(128, TileShape(128, 64, 8, 3), TileShape(128, 64, 8, 2)),
        Row(256, TileShape(64, 32, 4, 2), TileShape(64, 32, 4, 2)),
    ),
    "blackwell": (
        Row(64, TileShape(128, 64, 8, 3), TileShape(64, 32, 4, 3)),
        Row(128, TileShape(128, 64, 8, 3), TileShape(128, 32, 8, 2)),
        Row(256, TileShape(64, 32, 4, 2), TileShape(64, 32, 4, 2)),
    ),
    "hip": (
        Row(64, TileShape(128, 64, 4, 1), TileShape(128, 64, 4, 1)),
        Row(128, TileShape(128, 64, 4, 1), TileShape(128, 64, 4, 1)),
        Row(256, TileShape(64, 32, 4, 1), TileShape(64, 32, 4, 1)),
    ),
}
_FULL = (
    Row(64, TileShape(64, 32, 8, 2), TileShape(64, 32, 8, 2)),
    Row(128, TileShape(32, 32, 4, 2), TileShape(32, 32, 4, 2)),
    Row(256, TileShape(16, 16, 4, 1), TileShape(16, 16, 4, 1)),
)


def default_tile(family: str, plan: KernelPlan) -> TileShape:
    """The tile of a plan on a target family: "ampere", "hopper", "blackwell" or "hip"."""
    spec = plan.spec
    head_dim = padded(max(spec.head_dim, spec.v_head_dim))
    row = next(row for row in (_FULL if spec.dtype == "fp32" else _HALF[family]) if head_dim <= row.head_dim)
    return row.bounded if plan.seen_are_bounded else row.searching


def family_of(backend: str, capability: int) -> str:
    """The row of the table for a target: Triton's backend name and, on cuda, the compute capability (90 for 9.0)."""
    if backend == "hip":
        return "hip"
    if capability >= 100:
        return "blackwell"
    return "hopper" if capability >= 90 else "ampere"

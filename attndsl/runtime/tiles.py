"""Tile shapes by kernel, target, element type and head dimension: the defaults a launch and `compile_for` use."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from attndsl.codegen.placement import Side
from attndsl.codegen.plan import Gather, KernelPlan, padded


@dataclass(frozen=True, slots=True)
class TileShape:
    """How many queries (`block_m`) and keys (`block_n`) a tile has, and how Triton schedules it: the warps of a
    program, and how many tiles of a walk are in flight.

    A program keeps the one side and walks the other: the forward and the gradient of q keep `block_m` queries, the
    gradients of k and v keep `block_n` keys. What is kept sets how often the other side is read again; what is walked
    sets the registers a step needs beside the accumulators.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


INTERPRETER = TileShape(32, 32, 4, 1)


class Shape(Enum):
    """What a kernel holds in registers decides its tiles."""

    FORWARD = "one product after the other: statistics, the output"
    KEYS = "two products for every pair, along the keys: sums of rows and the gradient of q"
    QUERIES = "two products for every pair and two accumulators, along the queries: the gradients of k and v"
    DIAGONAL = "accumulators of the size of a tile, which is square"


@dataclass(frozen=True, slots=True)
class Row:
    """Tiles up to a padded head dimension: where bounds tell what of a tile takes part, and where it has to look, which
    takes registers.

    `crowded` is that of gradients, with two products for every pair, whose scores may hide keys or have thresholds
    beside; by default that of those that have to look.
    """

    head_dim: int
    bounded: TileShape
    searching: TileShape
    crowded: TileShape | None = None


# Chosen for 0 spilled bytes at head dims 64 and 128 and, on Hopper, warp-group products: `benchmarks/compile.py`.
_HALF: dict[str, dict[Shape, tuple[Row, ...]]] = {
    "ampere": {
        Shape.FORWARD: (
            Row(64, TileShape(128, 64, 8, 3), TileShape(128, 32, 8, 3)),
            Row(128, TileShape(128, 32, 8, 3), TileShape(128, 32, 8, 3)),
            Row(256, TileShape(64, 32, 8, 2), TileShape(64, 32, 8, 2)),
        ),
        Shape.KEYS: (
            Row(64, TileShape(128, 64, 8, 2), TileShape(128, 32, 8, 2)),
            Row(128, TileShape(64, 32, 4, 2), TileShape(64, 32, 4, 2)),
            Row(256, TileShape(32, 32, 4, 1), TileShape(32, 32, 4, 1)),
        ),
        Shape.QUERIES: (
            Row(64, TileShape(32, 128, 8, 2), TileShape(32, 128, 8, 2), TileShape(16, 128, 8, 2)),
            Row(128, TileShape(16, 128, 8, 2), TileShape(32, 64, 8, 2), TileShape(16, 64, 8, 2)),
            Row(256, TileShape(16, 32, 8, 1), TileShape(16, 32, 8, 1)),
        ),
        Shape.DIAGONAL: (
            Row(64, TileShape(32, 32, 4, 1), TileShape(32, 32, 4, 1)),
            Row(256, TileShape(32, 32, 8, 1), TileShape(32, 32, 8, 1)),
        ),
    },
    "hopper": {
        Shape.FORWARD: (
            Row(64, TileShape(128, 64, 8, 3), TileShape(128, 64, 8, 2)),
            Row(128, TileShape(128, 64, 8, 3), TileShape(128, 64, 8, 2)),
            Row(256, TileShape(64, 32, 4, 2), TileShape(64, 32, 4, 2)),
        ),
        Shape.KEYS: (
            Row(64, TileShape(128, 64, 8, 2), TileShape(128, 64, 8, 2)),
            Row(128, TileShape(128, 64, 8, 2), TileShape(128, 32, 8, 2)),
            Row(256, TileShape(64, 32, 4, 1), TileShape(64, 32, 4, 1)),
        ),
        Shape.QUERIES: (
            Row(64, TileShape(64, 128, 8, 2), TileShape(32, 128, 8, 2)),
            Row(128, TileShape(32, 128, 8, 2), TileShape(16, 128, 8, 2), TileShape(16, 64, 8, 2)),
            Row(256, TileShape(16, 64, 8, 1), TileShape(16, 64, 8, 1)),
        ),
        Shape.DIAGONAL: (Row(256, TileShape(64, 64, 4, 1), TileShape(64, 64, 4, 1)),),
    },
    "blackwell": {
        Shape.FORWARD: (
            Row(64, TileShape(128, 64, 8, 3), TileShape(64, 32, 4, 3)),
            Row(128, TileShape(128, 64, 8, 3), TileShape(128, 32, 8, 2)),
            Row(256, TileShape(64, 32, 4, 2), TileShape(64, 32, 4, 2)),
        ),
        Shape.KEYS: (
            Row(64, TileShape(128, 32, 8, 2), TileShape(128, 32, 8, 2), TileShape(64, 32, 4, 2)),
            Row(128, TileShape(128, 64, 8, 2), TileShape(128, 32, 8, 2)),
            Row(256, TileShape(64, 32, 4, 1), TileShape(64, 32, 4, 1)),
        ),
        Shape.QUERIES: (
            Row(64, TileShape(64, 128, 8, 2), TileShape(32, 128, 8, 2)),
            Row(128, TileShape(32, 128, 8, 2), TileShape(32, 128, 8, 1), TileShape(32, 64, 8, 2)),
            Row(256, TileShape(16, 64, 8, 1), TileShape(16, 64, 8, 1)),
        ),
        Shape.DIAGONAL: (Row(256, TileShape(64, 64, 4, 1), TileShape(64, 64, 4, 1)),),
    },
    "hip": {
        Shape.FORWARD: (
            Row(64, TileShape(128, 64, 4, 1), TileShape(128, 64, 4, 1)),
            Row(128, TileShape(128, 64, 4, 1), TileShape(128, 64, 4, 1)),
            Row(256, TileShape(64, 32, 4, 1), TileShape(64, 32, 4, 1)),
        ),
        Shape.KEYS: (
            Row(128, TileShape(64, 32, 4, 1), TileShape(64, 32, 4, 1)),
            Row(256, TileShape(32, 32, 4, 1), TileShape(32, 32, 4, 1)),
        ),
        Shape.QUERIES: (
            Row(128, TileShape(32, 64, 4, 1), TileShape(32, 64, 4, 1)),
            Row(256, TileShape(32, 32, 4, 1), TileShape(32, 32, 4, 1)),
        ),
        Shape.DIAGONAL: (Row(256, TileShape(32, 32, 4, 1), TileShape(32, 32, 4, 1)),),
    },
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
    rows = _FULL if spec.dtype == "fp32" else _HALF[family][_shape(plan)]
    row = next(row for row in rows if head_dim <= row.head_dim)
    if _shape(plan) in (Shape.KEYS, Shape.QUERIES) and (plan.hides_keys or plan.has_thresholds):
        return row.searching if row.crowded is None else row.crowded
    return row.bounded if plan.seen_are_bounded else row.searching


def _shape(plan: KernelPlan) -> Shape:
    if plan.gather is Gather.DIAGONAL:
        return Shape.DIAGONAL
    if plan.side is Side.KEYS:
        return Shape.QUERIES
    return Shape.KEYS if plan.reads_gradient else Shape.FORWARD


def family_of(backend: str, capability: int) -> str:
    """The row of the table for a target: Triton's backend name and, on cuda, the compute capability (90 for 9.0)."""
    if backend == "hip":
        return "hip"
    if capability >= 100:
        return "blackwell"
    return "hopper" if capability >= 90 else "ampere"

"""Tile shapes by kernel, target, element type and head dimension: the defaults a launch and `compile_for` use, and what
tuning may try instead.

In: a plan and a family of targets. Out: `TileShape`s. `runtime.tuning` has those measured for a variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from attndsl.codegen.burden import pair_operations, pair_reads
from attndsl.codegen.cpp_tiles import block_of
from attndsl.codegen.head_dims import computed
from attndsl.codegen.placement import Side
from attndsl.codegen.plan import Gather, KernelPlan


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
    num_warps: int = 1
    num_stages: int = 1

    def __str__(self) -> str:
        block = f"{self.block_m} x {self.block_n}"
        return block if self.num_warps == 1 else f"{block}, {self.num_warps} warps, {self.num_stages} stages"


class Shape(Enum):
    """What a kernel holds in registers decides its tiles."""

    FORWARD = "one product after the other: statistics, the output"
    KEYS = "two products for every pair, along the keys: sums of rows and the gradient of q"
    QUERIES = "two products for every pair and two accumulators, along the queries: the gradients of k and v"
    DIAGONAL = "accumulators of the size of a tile, which is square"


@dataclass(frozen=True, slots=True)
class Row:
    """Tiles up to a head dimension: where bounds tell what of a tile takes part, and where it has to look, which takes
    registers; by default the same.

    `crowded` is that of gradients, with two products for every pair, whose scores may hide keys or have thresholds
    beside; `laden` that of kernels whose pairs hold more than a score. By default both are that of those that have to
    look.
    """

    head_dim: int
    bounded: TileShape
    searching: TileShape | None = None
    crowded: TileShape | None = None
    laden: TileShape | None = None


# Chosen for 0 spilled bytes at head dims 64 and 128, with `wgmma` in every kernel on Hopper: `benchmarks/compile.py`.
# What is kept decides how often the other side is read, so a row gives up first some of what it walks.
_HALF: dict[str, dict[Shape, tuple[Row, ...]]] = {
    # Operands of products lie in registers, 255 a thread: eight warps share an accumulator of 128 rows.
    "ampere": {
        Shape.FORWARD: (
            # Three tiles of keys and values in flight: 48 KiB. Looking for what takes part costs half of the keys.
            Row(64, TileShape(128, 64, 8, 3), TileShape(128, 32, 8, 3)),
            # The accumulator alone is 64 registers: keys come 32 at a time.
            Row(128, TileShape(128, 32, 8, 3)),
            # Pieces of 128 and 64 keep q in registers, which leaves room for 16 keys.
            Row(192, TileShape(64, 16, 8, 2)),
            # Half the queries, for an accumulator as large as that of 128.
            Row(256, TileShape(64, 32, 8, 2)),
        ),
        Shape.KEYS: (
            # q and the output's gradient stay beside the accumulator.
            Row(64, TileShape(128, 64, 8, 2), TileShape(128, 32, 8, 2)),
            # Half the queries with half the warps: as many registers for each.
            Row(128, TileShape(64, 32, 4, 2)),
            Row(256, TileShape(32, 32, 4, 1)),
        ),
        Shape.QUERIES: (
            # Two accumulators of 128 keys. Values that hide keys are held for 16 queries at a time at most.
            Row(64, TileShape(32, 128, 8, 2), None, TileShape(16, 128, 8, 2)),
            # The addresses of two pieces beside a mask.
            Row(96, TileShape(16, 128, 8, 2), TileShape(16, 64, 8, 2)),
            # Where the mask must be looked at, half of the keys.
            Row(128, TileShape(16, 128, 8, 2), TileShape(32, 64, 8, 2), TileShape(16, 64, 8, 2)),
            Row(256, TileShape(16, 32, 8, 1)),
        ),
        Shape.DIAGONAL: (
            # The accumulator has a number for each pair, and is all that is kept.
            Row(64, TileShape(32, 32, 4, 1)),
            # Both products of a pair are long: twice the warps hold them.
            Row(256, TileShape(32, 32, 8, 1)),
        ),
    },
    # Warp groups read operands from shared memory: accumulators and scores are all that registers hold.
    "hopper": {
        Shape.FORWARD: (
            # Two warp groups of 64 rows. What looks at its tiles has one less in flight; where pairs have numbers of
            # their own it has half of the keys, and three tiles again.
            Row(64, TileShape(128, 64, 8, 3), TileShape(128, 64, 8, 2), laden=TileShape(128, 32, 8, 3)),
            Row(128, TileShape(128, 64, 8, 3), TileShape(128, 64, 8, 2), laden=TileShape(128, 32, 8, 3)),
            # 144 KiB of shared memory. A mask leaves registers for half of the keys.
            Row(192, TileShape(128, 64, 8, 2), TileShape(128, 32, 8, 2)),
            # One warp group, whose accumulator takes half of all registers; with a mask two, half of the columns each.
            Row(256, TileShape(64, 32, 4, 2), TileShape(64, 32, 8, 2)),
        ),
        Shape.KEYS: (
            # Long arithmetic hides the time of reads: half of the keys, one tile in flight.
            Row(64, TileShape(128, 64, 8, 2), laden=TileShape(128, 32, 8, 1)),
            # Two products for every pair: a mask leaves room for half of them.
            Row(128, TileShape(128, 64, 8, 2), TileShape(128, 32, 8, 2)),
            # 96 registers of accumulators, and keys as few as that: rather than half the queries in one warp group.
            Row(192, TileShape(128, 32, 8, 1), TileShape(128, 16, 8, 1)),
            # Two warp groups for half of the columns each. A second tile in flight takes fewer registers than none: it
            # goes to shared memory without them.
            Row(256, TileShape(64, 32, 8, 2)),
        ),
        Shape.QUERIES: (
            Row(64, TileShape(64, 128, 8, 2), TileShape(32, 128, 8, 2), laden=TileShape(16, 128, 8, 2)),
            # Two accumulators of 128 by 128 are 128 registers: queries come in as few as the rest allows.
            Row(128, TileShape(32, 128, 8, 2), TileShape(16, 128, 8, 2), TileShape(16, 64, 8, 2)),
            Row(192, TileShape(32, 64, 8, 1), TileShape(16, 64, 8, 1)),
            Row(256, TileShape(16, 64, 8, 1)),
        ),
        # One warp group, 64 by 64: its accumulator is 32 registers whatever the head dim.
        Shape.DIAGONAL: (Row(256, TileShape(64, 64, 4, 1)),),
    },
    # Accumulators lie in tensor memory, and pass through registers when they are rescaled.
    "blackwell": {
        Shape.FORWARD: (
            # What looks at its tiles holds scores and mask at once: a quarter of a tile, with half of the warps.
            Row(64, TileShape(128, 64, 8, 3), TileShape(64, 32, 4, 3)),
            Row(128, TileShape(128, 64, 8, 3), TileShape(128, 32, 8, 2)),
            Row(192, TileShape(128, 32, 8, 2), TileShape(64, 32, 8, 2)),
            Row(256, TileShape(64, 32, 4, 2)),
        ),
        Shape.KEYS: (
            # Both scores of a pair come back to registers: 32 keys at a time.
            Row(64, TileShape(128, 32, 8, 2), None, TileShape(64, 32, 4, 2)),
            Row(128, TileShape(128, 64, 8, 2), TileShape(128, 32, 8, 2)),
            # Accumulators of 192 columns fit in tensor memory for twice the queries of 256.
            Row(192, TileShape(128, 32, 8, 1)),
            Row(256, TileShape(64, 32, 4, 1)),
        ),
        Shape.QUERIES: (
            Row(64, TileShape(64, 128, 8, 2), TileShape(32, 128, 8, 2)),
            # What looks at its tiles has one in flight, what hides keys half of the keys.
            Row(128, TileShape(32, 128, 8, 2), TileShape(32, 128, 8, 1), TileShape(32, 64, 8, 2)),
            Row(192, TileShape(32, 64, 8, 1)),
            Row(256, TileShape(16, 64, 8, 1)),
        ),
        Shape.DIAGONAL: (Row(256, TileShape(64, 64, 4, 1)),),
    },
    # Warps of 64 lanes and 64 KiB of shared memory: four warps, and one tile in flight.
    "hip": {
        Shape.FORWARD: (Row(128, TileShape(128, 64, 4, 1)), Row(256, TileShape(64, 32, 4, 1))),
        Shape.KEYS: (Row(128, TileShape(64, 32, 4, 1)), Row(256, TileShape(32, 32, 4, 1))),
        Shape.QUERIES: (Row(128, TileShape(32, 64, 4, 1)), Row(256, TileShape(32, 32, 4, 1))),
        Shape.DIAGONAL: (Row(256, TileShape(32, 32, 4, 1)),),
    },
}
# Elements twice as large, and products on plain arithmetic units, whose operands are registers: small tiles everywhere.
_FULL = (
    Row(64, TileShape(64, 32, 8, 2)),
    Row(128, TileShape(32, 32, 4, 2)),
    Row(256, TileShape(16, 16, 4, 1)),
)

INTERPRETER = TileShape(32, 32, 4, 1)
"""The interpreter runs a tile as a few calls of numpy: small, so that tests meet tile edges; warps mean nothing."""

LONG = 20
"""Operations of a pair beyond which what is known halfway takes the registers of another product."""

FAMILIES = tuple(_HALF)
"""The targets a table has rows for. On "cpu" and in the "interpreter" one tile serves all."""


def default_tile(family: str, plan: KernelPlan) -> TileShape:
    """The tile of a plan on a target family: one of `FAMILIES`, "cpu" or "interpreter"."""
    match family:
        case "cpu":
            return TileShape(*block_of(plan))
        case "interpreter":
            return INTERPRETER
    rows = _FULL if plan.spec.dtype == "fp32" else _HALF[family][_shape(plan)]
    head_dim = computed(max(plan.spec.head_dim, plan.spec.v_head_dim))
    row = next(row for row in rows if head_dim <= row.head_dim)
    searching = row.bounded if row.searching is None else row.searching
    if row.laden is not None and _is_laden(plan):
        return row.laden
    if _shape(plan) in (Shape.KEYS, Shape.QUERIES) and (plan.hides_keys or plan.has_thresholds):
        return searching if row.crowded is None else row.crowded
    # Two accumulators and numbers of every pair: as much as a mask.
    is_bounded = plan.seen_are_bounded and not (_shape(plan) is Shape.QUERIES and pair_reads(plan))
    return row.bounded if is_bounded else searching


def _shape(plan: KernelPlan) -> Shape:
    if plan.gather is Gather.DIAGONAL:
        return Shape.DIAGONAL
    if plan.side is Side.KEYS:
        return Shape.QUERIES
    return Shape.KEYS if plan.reads_gradient else Shape.FORWARD


def _is_laden(plan: KernelPlan) -> bool:
    """Whether what pairs hold beside their scores takes the registers of half a tile: by counts that tell the kernels
    that spill from those that do not."""
    if plan.seen_are_bounded:
        return False
    if _shape(plan) is Shape.FORWARD:
        return pair_reads(plan) > (0 if computed(plan.spec.v_head_dim) > 64 else 1)
    return pair_operations(plan) > LONG


def family_of(backend: str, capability: int) -> str:
    """The row of the table for a target: Triton's backend name and, on cuda, the compute capability (90 for 9.0)."""
    if backend == "hip":
        return "hip"
    if capability >= 100:
        return "blackwell"
    return "hopper" if capability >= 90 else "ampere"


@dataclass(frozen=True, slots=True)
class Limits:
    """What tuning may try on a target: from the least to the most of each."""

    block: tuple[int, int]
    warps: tuple[int, int]
    stages: tuple[int, int]


# A matrix product takes 16 rows at least. More than eight warps have fewer registers each than any kernel needs.
_GPU = Limits((16, 256), (4, 8), (1, 4))
_LIMITS = {
    # Vectors and matrix registers take 32 queries; tiles beyond 128 leave the first cache.
    "cpu": Limits((32, 128), (1, 1), (1, 1)),
    "interpreter": Limits((16, 64), (4, 4), (1, 1)),
    # A stage more is a tile more in 64 KiB.
    "hip": Limits((16, 256), (2, 8), (1, 2)),
}


def limits_of(family: str) -> Limits:
    """What tuning may try on a family."""
    return _LIMITS.get(family, _GPU)


def neighbours(family: str, tile: TileShape, *, is_square: bool) -> Iterator[TileShape]:
    """The tiles one step away: half or twice of one side, of both in turn, or of the warps; a stage more or less."""
    m, n, warps, stages = tile.block_m, tile.block_n, tile.num_warps, tile.num_stages
    sides = ((m // 2, n), (2 * m, n), (m, n // 2), (m, 2 * n), (m // 2, 2 * n), (2 * m, n // 2))
    blocks = ((m // 2, m // 2), (2 * m, 2 * m)) if is_square else sides
    tried = [replace(tile, block_m=rows, block_n=keys) for rows, keys in blocks]
    tried += [replace(tile, num_warps=count) for count in (warps // 2, 2 * warps)]
    tried += [replace(tile, num_stages=count) for count in (stages - 1, stages + 1)]
    yield from (found for found in tried if is_within(family, found))


def is_within(family: str, tile: TileShape) -> bool:
    """Whether kernels of a family can have a tile."""
    limits = limits_of(family)
    sizes = ((tile.block_m, limits.block), (tile.block_n, limits.block))
    counts = ((tile.num_warps, limits.warps), (tile.num_stages, limits.stages))
    powers = (*sizes, counts[0])
    are_powers = all(size > 0 and size & (size - 1) == 0 for size, _ in powers)
    return are_powers and all(least <= size <= most for size, (least, most) in (*sizes, *counts))

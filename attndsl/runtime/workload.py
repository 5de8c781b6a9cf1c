"""How much of what a kernel computes is of use: live pairs against the pairs of the tiles it visits.

In: a `BlockPlan`. Out: a `Workload`, counted exactly where the bounds of the mask say every pair or where few tiles are
left open, else between what full tiles hold and what visited tiles do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from attndsl.analysis import runs
from attndsl.analysis.classes import classify
from attndsl.analysis.runs import Runs
from attndsl.analysis.tiling import Tiling
from attndsl.analysis.values import Array
from attndsl.runtime.dense_tiles import live_in_tiles, on_device
from attndsl.runtime.known import known_values
from attndsl.runtime.planner import BlockPlan

MAX_QUERIES = 2**20
"""Queries, over batches and heads, up to which the keys of each are counted."""
MAX_PAIRS = 2**24
"""Pairs of partial tiles up to which they are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Pairs of queries and keys over all batches and heads of a call.

    `useful` is at least and at most how many are live; `visited` how many the tiles hold that are computed, what
    overhangs the lengths included; `dense` how many there are.
    """

    useful: tuple[int, int]
    visited: int
    dense: int

    @property
    def is_exact(self) -> bool:
        """Whether the live pairs are counted, and not bounded."""
        return self.useful[0] == self.useful[1]

    @property
    def density(self) -> tuple[float, float]:
        """The share of visited pairs that are live, at least and at most; 1 where nothing is visited."""
        least, most = (count / self.visited if self.visited else 1.0 for count in self.useful)
        return least, most


def workload_of(plan: BlockPlan, batch: int, heads: int) -> Workload:
    """The workload of a call with that many batches and heads, of which the plan may show one for all."""
    tiling = plan.tiling
    alike = batch * heads // max(1, tiling.batch * tiling.heads)
    least, most = _useful(plan)
    counts = plan.counts
    visited = (counts["full"] + counts["partial"]) * tiling.block[0] * tiling.block[1]
    return Workload((alike * least, alike * most), alike * visited, batch * heads * tiling.q_len * tiling.kv_len)


def _useful(plan: BlockPlan) -> tuple[int, int]:
    """At least and at most how many pairs of the plan are live."""
    tiling, known = plan.tiling, known_values(plan.variant, plan.values)
    few = tiling.batch * tiling.heads * tiling.q_len <= MAX_QUERIES
    if few and plan.tiles.exact and plan.tiles.by_bounds:
        live = classify(plan.variant.mask, replace(tiling, block=(1, 1)), known).full
        return live, live
    full = sum(_pairs(part.covered, tiling) for part in plan.tiles.parts())
    most = sum(_pairs(part.needed, tiling) for part in plan.tiles.parts())
    if most - full > MAX_PAIRS:
        return full, most
    partial = (runs.difference(part.needed, part.covered, tiling.kv_tiles) for part in plan.tiles.parts())
    host = on_device(plan.values, torch.device("cpu"))
    live = full + sum(live_in_tiles(plan.variant.mask, host, tiling, _places(part, tiling)) for part in partial)
    return live, live


def _pairs(some: Runs, tiling: Tiling) -> int:
    """The pairs within the lengths that some tiles hold."""
    queries = np.minimum(tiling.block[0], tiling.q_len - some.row % tiling.q_tiles * tiling.block[0])
    keys = np.minimum((some.last + 1) * tiling.block[1], tiling.kv_len) - some.first * tiling.block[1]
    return int((queries * keys).sum())


def _places(some: Runs, tiling: Tiling) -> tuple[Array, ...]:
    """(b, h, row, column) of some tiles."""
    row, column = some.places()
    pair = row // tiling.q_tiles
    return pair // tiling.heads, pair % tiling.heads, row % tiling.q_tiles, column

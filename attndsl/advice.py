"""What would make a call cheaper: other numbers, other tiles, another order of the tokens, other words for a mask.

In: a `BlockPlan` and its `Workload`. Out: sentences, each with what it would save, found by planning the call again as
advised. What saves little is not said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from attndsl.analysis.axes import axes_of
from attndsl.analysis.bounds import key_ranges
from attndsl.analysis.classes import classify
from attndsl.analysis.periods import periods_of
from attndsl.analysis.values import Array
from attndsl.ir.nodes import Expr, Load, Scalar
from attndsl.ir.printer import print_expr
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis, Coordinate
from attndsl.runtime.dense_tiles import on_device, pairs
from attndsl.runtime.known import Value, known_values
from attndsl.runtime.planner import BlockPlan
from attndsl.runtime.workload import Workload

SMALL_SAVING = 0.05
"""Of the pairs computed: less is not worth a word."""
LARGE_SAVING = 0.2
"""What another order of tokens must save."""
SMALLER_TILES_SAVING = 0.3
FEW_TILES = 16
"""Smaller tiles run at a lower rate: what they must save, and tiles of a call below which this is no matter."""
MAX_TILES = 2**18
MAX_UNBOUNDED = 2**15
"""Tiles up to which a call is planned again to see: by bounds of the mask, and where these do not describe it."""
SMALLER_TILES = ((128, 64), (64, 128), (64, 64), (64, 32), (32, 32))
SAMPLED_PAIRS = 2**22
"""Pairs looked at one by one to estimate what another order of the tokens would save."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan that can be made again with something changed."""

    plan: BlockPlan

    def is_affordable(self, block: tuple[int, int]) -> bool:
        """Whether planning it again with these tiles takes no time to speak of."""
        tiles = prod(replace(self.plan.tiling, block=block).shape)
        return tiles <= (MAX_TILES if self.plan.tiles.by_bounds else MAX_UNBOUNDED)

    @property
    def now(self) -> int:
        """The pairs that are computed as it is."""
        counts = self.plan.counts
        return (counts["full"] + counts["partial"]) * prod(self.plan.tiling.block)

    def visited(self, values: Mapping[str, Value] | None = None, block: tuple[int, int] | None = None) -> int:
        """The pairs that are computed with other values or other tiles."""
        values = self.plan.values if values is None else values
        tiling = self.plan.tiling if block is None else replace(self.plan.tiling, block=block)
        found = classify(self.plan.variant.mask, tiling, known_values(self.plan.variant, values))
        return found.needed * prod(tiling.block)


def advice_for(plan: BlockPlan, workload: Workload, *, is_permuted: bool = False) -> tuple[str, ...]:
    """What would make the call of a plan cheaper; `is_permuted`: its tokens are kept in tiles already."""
    if 0 in plan.tiling.shape or workload.visited == 0:
        return ()
    return tuple(_found(Trial(plan), workload, is_permuted))


def _found(trial: Trial, workload: Workload, is_permuted: bool) -> Iterator[str]:
    plan = trial.plan
    yield from _pair_tables(plan)
    yield from _known_patterns(plan)
    if trial.is_affordable(plan.tiling.block):
        yield from _rounded(trial)
        yield from _sorted(trial)
        yield from _smaller_tiles(trial)
    if not is_permuted:
        yield from _tile_major(plan, workload)


def _rounded(trial: Trial) -> Iterator[str]:
    """Numbers that bound the keys, such as windows: where the next tile begins."""
    plan, now = trial.plan, trial.now
    if not plan.tiles.by_bounds:
        return
    ends = (end for keys in key_ranges(plan.variant.mask) for end in (*keys.lower, *keys.upper))
    names = dict.fromkeys(n.name for n in postorder(*ends) if isinstance(n, Scalar) and n.dtype.is_int)
    for name in names:
        value = int(plan.values[name])
        counts = {at: trial.visited({**plan.values, name: at}) for at in _near(value, plan.tiling.block[1])}
        less = max((at for at, count in counts.items() if at < value and count < now), default=None)
        free = max((at for at, count in counts.items() if at > value and count <= now), default=None)
        if less is not None and 1 - counts[less] / now >= SMALL_SAVING:
            more = "" if free is None else f"; up to {free} costs no more than {value}"
            yield f"`{name}` = {less} instead of {value} would compute {_percent(1 - counts[less] / now)} less{more}"


def _near(value: int, size: int) -> list[int]:
    """Where a number may begin another tile: at multiples of its size and next to them, on both sides."""
    multiples = {value // size * size + step * size for step in (-1, 0, 1)}
    return sorted({at + step for at in multiples for step in (-1, 0, 1) if 2 * (at + step) > value} - {value})


def _smaller_tiles(trial: Trial) -> Iterator[str]:
    """Tiles that hold fewer dead pairs, the largest of them that save much."""
    block, now = trial.plan.tiling.block, trial.now
    if prod(trial.plan.tiling.shape) < FEW_TILES:
        return
    smaller = [b for b in SMALLER_TILES if b != block and b[0] <= block[0] and b[1] <= block[1]]
    for tried in smaller:
        saved = 1 - trial.visited(block=tried) / now if trial.is_affordable(tried) else 0.0
        if saved >= SMALLER_TILES_SAVING:
            yield f"tiles of {tried[0]} x {tried[1]} would compute {_percent(saved)} less, at a lower rate"
            return


def _sorted(trial: Trial) -> Iterator[str]:
    """Labels of tokens that are not grouped."""
    plan, now = trial.plan, trial.now
    for name in _labels(plan):
        values = plan.values[name]
        assert isinstance(values, Tensor)
        grouped = values.sort(dim=-1).values
        if torch.equal(grouped, values):
            continue
        saved = 1 - trial.visited({**plan.values, name: grouped}) / now
        if saved >= LARGE_SAVING:
            yield f"`{name}` is not sorted: tokens in its order would compute {_percent(saved)} less"


def _known_patterns(plan: BlockPlan) -> Iterator[str]:
    """Labels that are a formula of the position: written as one, nothing is read and nothing prepared."""
    for name in _labels(plan):
        values = plan.values[name]
        assert isinstance(values, Tensor)
        row = values.reshape(-1, values.shape[-1])[0].cpu()
        size = int((row == row[0]).long().cumprod(0).sum())
        positions = torch.arange(len(row))
        if 1 < size < len(row) and bool((values.cpu() == positions // size + row[0]).all()):
            yield f"`{name}` holds `position // {size}`: as a formula it is neither read nor made a table of"


def _labels(plan: BlockPlan) -> list[str]:
    """Integer tensors read at the query and at the key alike: documents, segments."""
    loads = [node for node in postorder(plan.variant.mask) if isinstance(node, Load) and node.dtype.is_int]
    axes: dict[str, set[Axis]] = {}
    for load in loads:
        axes.setdefault(load.tensor, set()).update(axes_of(load.indices[-1]) if load.indices else ())
    found = (name for name, both in axes.items() if {Axis.Q, Axis.K} <= both)
    return [name for name in found if isinstance(value := plan.values[name], Tensor) and value.numel()]


def _pair_tables(plan: BlockPlan) -> Iterator[str]:
    """A tensor with an element for every pair, of which nothing is known but its elements."""
    for node in postorder(plan.variant.mask):
        if isinstance(node, Load) and _is_pair_table(node):
            said = f"`{print_expr(node)}` is read for every pair"
            yield f"{said}: a condition on `q_idx` and `kv_idx` in its place is decided tile by tile without reading"


def _is_pair_table(load: Load) -> bool:
    """Whether one index is the query and another the key, as they are."""
    coordinates = {axis for index in load.indices if not _is_computed(index) for axis in axes_of(index)}
    return {Axis.Q, Axis.K} <= coordinates


def _is_computed(index: Expr) -> bool:
    return len(list(postorder(index))) > 1


def _tile_major(plan: BlockPlan, workload: Workload) -> Iterator[str]:
    """Tokens of a grid, so ordered that a tile of tokens is a patch of the grid; estimated from some query tiles."""
    sizes = _grid_of(plan)
    if sizes is None or workload.density[0] > 1 - LARGE_SAVING:
        return
    patch = _patch(sizes, plan.tiling.block[0])
    now = Trial(plan).now / (plan.tiling.batch * plan.tiling.heads * plan.tiling.q_tiles)
    saved = 1 - _visited_in_order(plan, _order(sizes, patch)) / now
    if saved >= LARGE_SAVING:
        shape, grid = (" x ".join(map(str, each)) for each in (patch, sizes))
        said = f"tokens of the {grid} grid in patches of {shape} would compute about {_percent(saved)} less"
        yield f"{said}; a `stride` of a neighbourhood saves too"


def _grid_of(plan: BlockPlan) -> tuple[int, ...] | None:
    """The sizes of the grid both coordinates of a mask are on, slowest first."""
    tiling, found = plan.tiling, periods_of(plan.variant.mask)
    if tiling.q_len != tiling.kv_len or tiling.q_offset.any():
        return None
    lengths = [{period.length for period in found.get(c, ())} for c in (Coordinate.Q_IDX, Coordinate.KV_IDX)]
    steps = [1, *sorted(length for length in lengths[0] & lengths[1] if length < tiling.q_len), tiling.q_len]
    if len(steps) < 3 or any(large % small for small, large in pairwise(steps)):
        return None
    return tuple(large // small for small, large in reversed(list(pairwise(steps))))


def _patch(sizes: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """About `tokens` places, as nearly a cube as powers of two and the sizes allow."""
    patch = [1] * len(sizes)
    while prod(patch) * 2 <= tokens:
        open_ = [axis for axis, size in enumerate(sizes) if patch[axis] * 2 <= size]
        if not open_:
            break
        # Of equal sides the fastest axis grows first: its tokens are neighbours in memory.
        patch[min(open_, key=lambda axis: (patch[axis], -axis))] *= 2
    return tuple(patch)


def _order(sizes: tuple[int, ...], patch: tuple[int, ...]) -> Array:
    """The tokens patch by patch."""
    places = np.unravel_index(np.arange(prod(sizes)), sizes)
    inner = [place % side for place, side in zip(places, patch, strict=True)]
    outer = [place // side for place, side in zip(places, patch, strict=True)]
    return np.asarray(np.lexsort([*reversed(inner), *reversed(outer)]))


def _visited_in_order(plan: BlockPlan, order: Array) -> float:
    """The pairs computed for a query tile on average, of some evenly spread, when tokens are put in this order."""
    (queries, keys), length = plan.tiling.block, len(order)
    tiles = -(-length // queries)
    count = min(tiles, max(1, SAMPLED_PAIRS // (queries * length)))
    host = on_device(plan.values, torch.device("cpu"))
    zero, position = torch.zeros(1, 1, dtype=torch.int64), torch.from_numpy(order)
    needed = 0
    for tile in np.linspace(0, tiles - 1, count + 2).astype(int)[1:-1].tolist():
        rows = position[tile * queries : (tile + 1) * queries].view(-1, 1)
        live = pairs(plan.variant.mask, host, (zero, zero, rows, position.view(1, -1)), (length, length))
        needed += len((live.any(0).nonzero()[:, 0] // keys).unique())
    return needed * queries * keys / count


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

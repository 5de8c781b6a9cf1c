"""Running the kernel a call allows: which specialisation, which tile shape, which table.

In: a compilation, what is known of the call, the call. Out: its `Rows`.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from attndsl.analysis.bounds import Strategy
from attndsl.codegen.plan import Specialisation
from attndsl.compiler import Compilation
from attndsl.runtime import launch, order
from attndsl.runtime.arguments import Call
from attndsl.runtime.facts import FactBook, Facts
from attndsl.runtime.tiles import TileShape


def run_forward(
    compilation: Compilation,
    book: FactBook,
    call: Call,
    facts: Facts,
    *,
    fast: bool | None = None,
    strategy: Strategy | None = None,
    tile: TileShape | None = None,
) -> launch.Rows:
    """Launch the forward kernel; `fast`, `strategy` and `tile` override what the call and its device suggest."""
    spec = Specialisation(
        dtype=launch.DTYPES[call.q.dtype],
        head_dim=call.head_dim,
        v_head_dim=max(call.v_head_dim, 1),
        fast=facts.fast if fast is None else fast,
        offset_per_batch=isinstance(call.q_offset, Tensor),
        strategy=strategy,
    )
    kernel = compilation.kernel("forward", spec)
    tile = launch.tile_for(call, kernel.plan) if tile is None else tile
    table = None
    if kernel.plan.walk.strategy is Strategy.TABLE:
        table = book.table(compilation.program, call, facts, (tile.block_m, tile.block_n))
        if table is None:
            kernel = compilation.kernel("forward", replace(spec, strategy=Strategy.DENSE))
    tokens = compilation.source.order
    if tokens is None:
        return launch.forward(call, kernel, tile, table)
    return order.restored(launch.forward(order.stored(call, tokens), kernel, tile, table), tokens)

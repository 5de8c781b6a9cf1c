"""Running the kernel a call allows: which specialisation, which tile shape, which table.

In: a compilation, what is known of the call, the call. Out: its `Rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from attndsl.analysis.bounds import Strategy
from attndsl.codegen.plan import Emitted, KernelPlan, Specialisation, Target
from attndsl.compiler import Compilation
from attndsl.ir.variant import Variant
from attndsl.runtime import launch, order
from attndsl.runtime.arguments import Call
from attndsl.runtime.facts import FactBook, Facts
from attndsl.runtime.native import launch as native
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import TileShape


class Launcher(Protocol):
    """What a target's module of launches has."""

    @property
    def DTYPES(self) -> Mapping[torch.dtype, str]: ...

    def storages(self, variant: Variant, call: Call) -> tuple[str, ...]: ...

    def tile_for(self, call: Call, plan: KernelPlan) -> TileShape: ...

    def forward(self, call: Call, emitted: Emitted, tile: TileShape, table: TileTable | None) -> launch.Rows: ...


LAUNCHERS: dict[Target, Launcher] = {Target.TRITON: launch, Target.CPP: native}


def run_forward(
    compilation: Compilation,
    book: FactBook,
    call: Call,
    facts: Facts,
    target: Target,
    *,
    fast: bool | None = None,
    strategy: Strategy | None = None,
) -> launch.Rows:
    """Launch the forward kernel; `fast` and `strategy` override what the call and its device suggest."""
    launcher = LAUNCHERS[target]
    spec = Specialisation(
        dtype=launcher.DTYPES[call.q.dtype],
        head_dim=call.head_dim,
        v_head_dim=max(call.v_head_dim, 1),
        fast=facts.fast if fast is None else fast,
        offset_per_batch=isinstance(call.q_offset, Tensor),
        strategy=strategy,
        storages=launcher.storages(compilation.program, call),
        target=target,
    )
    kernel = compilation.kernel("forward", spec)
    tile = launcher.tile_for(call, kernel.plan)
    table = None
    if kernel.plan.walk.strategy is Strategy.TABLE:
        table = book.table(compilation.program, call, facts, (tile.block_m, tile.block_n))
        if table is None:
            kernel = compilation.kernel("forward", replace(spec, strategy=Strategy.DENSE))
    tokens = compilation.source.order
    if tokens is None:
        return launcher.forward(call, kernel, tile, table)
    return order.restored(launcher.forward(order.stored(call, tokens), kernel, tile, table), tokens)

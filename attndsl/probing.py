"""Kernels of which one runs with a tile of choice and is timed: what tuning runs, and otherwise those of any call.

In: as `execution`, and a `Probe`. Out: the rows and gradients of the call; the probe knows how long its kernel took.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from attndsl.codegen.plan import Emitted, KernelPlan, Specialisation
from attndsl.execution import Kernels, NativeKernels
from attndsl.runtime.arguments import Call
from attndsl.runtime.launch import Launch, Rows
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import TileShape
from attndsl.runtime.timing import milliseconds


class Unfit(Exception):
    """A tile that a kernel should not have, and why."""


@dataclass(frozen=True, slots=True)
class Met:
    """A kernel that was launched: its plan, the tile it had, and what its tile is asked by."""

    plan: KernelPlan
    tile: TileShape
    spec: Specialisation


@dataclass(slots=True)
class Probe:
    """`kernel` runs with `tile`, or with its default, and takes `ms`; `met` are all kernels of the call by name."""

    kernel: str = ""
    tile: TileShape | None = None
    ms: float = 0.0
    met: dict[str, Met] = field(default_factory=dict)
    specs: dict[str, Specialisation] = field(default_factory=dict)

    def tile_of(self, name: str, spec: Specialisation) -> TileShape | None:
        """The tile a kernel asks for."""
        self.specs.setdefault(name, spec)
        return self.tile if name == self.kernel else None

    def run(self, plan: KernelPlan, tile: TileShape, device: torch.device, launch: Callable[[], Any]) -> Any:
        """Launch a kernel, and again and again if it is the one."""
        found = launch()
        if plan.kernel in self.specs:
            self.met.setdefault(plan.kernel, Met(plan, tile, self.specs[plan.kernel]))
        if plan.kernel == self.kernel:
            spilled = getattr(found, "n_spills", None)
            if spilled and self.tile is not None:
                raise Unfit(f"{4 * spilled} bytes a thread do not fit in registers")
            self.ms += milliseconds(launch, device)
        return found


@dataclass(frozen=True)
class ProbedKernels(Kernels):
    """Triton's."""

    probe: Probe = field(default_factory=Probe)

    def _tuned(self, call: Call, name: str, spec: Specialisation) -> TileShape | None:
        return self.probe.tile_of(name, spec)

    def _launch(self, call: Call, task: Launch) -> Any:
        launch = partial(super()._launch, call, task)
        return self.probe.run(task.kernel.plan, task.tile, call.q.device, launch)


@dataclass(frozen=True)
class ProbedNativeKernels(ProbedKernels, NativeKernels):
    """Those in C++."""

    def _forward(self, call: Call, kernel: Emitted, tile: TileShape, table: TileTable | None) -> Rows:
        launch = partial(super()._forward, call, kernel, tile, table)
        rows: Rows = self.probe.run(kernel.plan, tile, call.q.device, launch)
        return rows

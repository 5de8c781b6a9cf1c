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
from attndsl.engines.kernels import Kernels
from attndsl.engines.native import NativeKernels
from attndsl.runtime.arguments import Call
from attndsl.runtime.launch import Launch, Rows
from attndsl.runtime.native.forward import Forward
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import TileShape
from attndsl.runtime.timing import milliseconds


class Unfit(Exception):
    """A tile that a kernel should not have, and why."""


@dataclass(frozen=True, slots=True)
class Met:
    """A kernel of the call: its plan, the tile it has, and the specialisation tiles are kept for."""

    plan: KernelPlan
    tile: TileShape
    spec: Specialisation


@dataclass(slots=True)
class Probe:
    """`kernel`, as it is for `spec`, runs with `tile`, or with its default, and takes `ms`.

    `met` are all kernels of the call by name, `asked` what their tiles were asked for with.
    """

    kernel: str = ""
    spec: Specialisation | None = None
    tile: TileShape | None = None
    ms: float = 0.0
    met: dict[str, Met] = field(default_factory=dict)
    asked: dict[str, Specialisation] = field(default_factory=dict)

    def tile_of(self, name: str, spec: Specialisation) -> TileShape | None:
        """The tile a kernel has instead of its default."""
        self.asked[name] = spec
        return self.tile if name == self.kernel and spec == self.spec else None

    def meet(self, plan: KernelPlan, tile: TileShape) -> None:
        """Note a kernel, if its tile is anybody's to choose."""
        if plan.kernel in self.asked:
            self.met.setdefault(plan.kernel, Met(plan, tile, self.asked[plan.kernel]))

    def run(self, name: str, device: torch.device, launch: Callable[[], Any]) -> Any:
        """Launch a kernel, and if it is the one, again and again."""
        found = launch()
        if name == self.kernel:
            spilled = getattr(found, "n_spills", None)
            if spilled and self.tile is not None:
                raise Unfit(f"{4 * spilled} bytes a thread do not fit in registers")
            self.time(device, launch)
        return found

    def time(self, device: torch.device, launch: Callable[[], Any]) -> None:
        """Add what a launch takes."""
        self.ms += milliseconds(launch, device)


@dataclass(frozen=True)
class ProbedKernels(Kernels):
    """Triton's."""

    probe: Probe = field(default_factory=Probe)

    def _tuned(self, call: Call, name: str, spec: Specialisation) -> TileShape | None:
        return self.probe.tile_of(name, spec)

    def _planned(self, call: Call, name: str, spec: Specialisation) -> tuple[Emitted, TileShape, TileTable | None]:
        kernel, tile, table = super()._planned(call, name, spec)
        self.probe.meet(kernel.plan, tile)
        return kernel, tile, table

    def _launch(self, call: Call, task: Launch) -> Any:
        return self.probe.run(task.kernel.plan.kernel, call.q.device, partial(super()._launch, call, task))


@dataclass(frozen=True)
class ProbedNativeKernels(ProbedKernels, NativeKernels):
    """Those in C++."""

    def _forward(self, call: Call) -> Forward:
        self._forwards.clear()  # the tile is another one each time
        return super()._forward(call)

    def forward(self, call: Call) -> Rows:
        rows: Rows = self.probe.run("forward", call.q.device, partial(super().forward, call))
        return rows

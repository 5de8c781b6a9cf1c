"""The forward of a native kernel: what is known of a kind of calls, and one call after another.

In: an emitted kernel and a call. Out: a `Forward`, which makes the outputs of every call of that kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.analysis.streaming import LSE
from attndsl.codegen.cpp_signature import MAX_SCORE, cpp_row_pointer, stored_rows
from attndsl.codegen.plan import Emitted, KernelPlan
from attndsl.runtime.arguments import Call
from attndsl.runtime.launch import Launch, Rows
from attndsl.runtime.native.launch import Ready, captured_by, exact, others, prepared
from attndsl.runtime.tables import TileTable
from attndsl.runtime.tiles import TileShape


@dataclass(frozen=True, slots=True)
class Layout:
    """What the kernel writes of a call: `shape` of the output, `stored` row values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    stored: tuple[str, ...]

    def out(self) -> Tensor:
        """Memory for the output."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def row(self) -> Tensor:
        """Memory for one value of every row."""
        return torch.empty(self.shape[:3], dtype=exact(self.dtype), device=self.device)


@dataclass(frozen=True, slots=True)
class Forward:
    """The forward kernel for calls of one kind; `ready` unless they have no query.

    `captured` are the tensors it takes beside q, k and v. `is_plain`: these and those lie in memory as kernels read
    them.
    """

    plan: KernelPlan
    ready: Ready | None
    layout: Layout
    captured: tuple[str, ...]
    is_plain: bool

    @staticmethod
    def of(call: Call, emitted: Emitted, tile: TileShape, table: TileTable | None) -> Forward:
        """The forward for calls like this one; `table` for a plan that walks one."""
        plan, made = emitted.plan, prepared(emitted.plan.variant, call)
        layout = Layout((*made.q.shape[:3], made.v_head_dim), made.q.dtype, made.q.device, stored_rows(plan))
        ready = None
        if 0 not in layout.shape:
            rows = {cpp_row_pointer(name): layout.row() for name in layout.stored}
            ready = Ready.of(made, Launch(emitted, {"Out": layout.out()}, rows, tile, table))
        return Forward(plan, ready, layout, captured_by(plan), made is call)

    def output(self, call: Call) -> Tensor:
        """The output alone."""
        # Nobody reads the values of rows: all of them go to one place.
        return self._run(call, [self.layout.row()] * len(self.layout.stored))

    def rows(self, call: Call) -> Rows:
        """The output and what is known of its rows."""
        # Each with memory of its own: what is returned may be written to.
        rows = {name: self.layout.row() for name in self.layout.stored}
        out = self._run(call, [*rows.values()])
        kept = {name: rows[name] if name in rows else rows[MAX_SCORE] for name in self.plan.streaming.kept}
        return Rows(out, rows.get(LSE.name), rows[MAX_SCORE], kept=kept)

    def _run(self, call: Call, rows: list[Tensor]) -> Tensor:
        out = self.layout.out()
        if self.ready is not None:
            made = call if self.is_plain else prepared(self.plan.variant, call)
            self.ready.run([made.q, made.k, made.v, out, *rows, *others(made, self.captured)])
        return out if call.v_head_dim else out[..., :0]

"""Kernels that add up square tiles along their diagonals, as Triton: gradients of what is read by distance.

In: a `KernelPlan`. Out: a `DiagonalsModule` for the template `diagonals.py.jinja`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import KernelPlan, padded
from attndsl.codegen.triton_signature import TENSORS, arguments, runtime_arguments
from attndsl.codegen.triton_text import ModuleText, SumText, TileText, docstring, load_text
from attndsl.codegen.triton_walk import WalkText
from attndsl.ir import build

INDENT = 8


@dataclass(frozen=True, slots=True)
class DiagonalSum(SumText):
    """A sum of tiles, and where it is written."""

    pointer: str


@dataclass(frozen=True, slots=True)
class DiagonalsModule(ModuleText):
    """What the template of these kernels sees beside."""

    q_load: str
    k_load: str
    v_load: str
    do_load: str
    score_lines: tuple[str, ...]
    value_lines: tuple[str, ...]


class DiagonalsText(TileText):
    """Prints one plan. Every tile is taken for a partial one."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(plan, (plan.mask, plan.score, *plan.pair_values))

    def module(self) -> DiagonalsModule:
        plan, spec = self.plan, self.plan.spec
        row_lines = tuple(self.own_lines())
        live = "(offs_m < q_len)[:, None] & (keys < kv_len)[None, :]"
        score_lines = [*self._key_lines(), *self.score_lines(full=False, past_end=live, indent=INDENT)]
        value_lines = tuple(self.value_lines(full=False, indent=INDENT))
        d_mask, dv_mask = (
            self.d_mask("offs_d[None, :]", spec.head_dim),
            self.d_mask(f"{self.offs_dv}[None, :]", spec.v_head_dim),
        )
        return DiagonalsModule(
            name=plan.kernel,
            docstring=docstring(plan),
            runtime_args=tuple(runtime_arguments(plan)),
            args=tuple(arguments(plan)),
            helpers=frozenset(self.printer.helpers),
            heaviest_last=False,
            walk=WalkText(()),
            pad="",
            edge="",
            base_lines=tuple(self._base_lines()),
            row_lines=row_lines,
            regions=(),
            end_lines=(),
            kept=tuple((name, row_pointer(name)) for name in plan.kept),
            sums=tuple(self._sums()),
            products=(),
            block_d=padded(spec.head_dim),
            block_dv=padded(spec.v_head_dim) if plan.reads_gradient else padded(spec.head_dim),
            offs_dv=self.offs_dv,
            skip="",
            inner="",
            product=self.product,
            precision=self.precision,
            scale_product=" * sm_scale",
            widen=self.base,
            q_load=load_text("q_tile", *d_mask),
            k_load=load_text("k_tile", "(keys < kv_len)[None, :]", *self.d_mask("offs_d[:, None]", spec.head_dim)),
            v_load=load_text("v_tile", "(keys < kv_len)[:, None]", *dv_mask),
            do_load=load_text("do_tile", *dv_mask) if plan.reads_gradient else "",
            score_lines=tuple(score_lines),
            value_lines=value_lines,
        )

    def own_position(self) -> Iterator[str]:
        if self.reads(build.Q, full=False):
            yield "q_idx = q_offset + rows[:, None]"

    def _key_lines(self) -> Iterator[str]:
        if self.reads(build.K, full=False):
            yield "kv_idx = tl.minimum(keys, kv_len - 1)[None, :]"

    def _base_lines(self) -> Iterator[str]:
        """Pointers moved to the batch and head, and integers widened where nothing proves that they fit."""
        for tensor in self.plan.tensors:
            name, rows = TENSORS[tensor]
            head = "h" if rows == "m" else "kv_h"
            yield f"{tensor} += b.to(tl.int64) * stride_{name}b + {head}.to(tl.int64) * stride_{name}h"
        yield "row_base = pid.to(tl.int64) // diagonals * q_len"
        if self.plan.spec.offset_per_batch:
            yield f"q_offset = tl.load(Q_offset + b){'.to(tl.int32)' if self.plan.spec.fast else ''}"
        yield from self.wide_integers("b", "h", "diagonal")

    def _sums(self) -> Iterator[DiagonalSum]:
        names = self.value_names()
        for part in self.plan.sums:
            yield DiagonalSum(part.name, part.name, names[part.integrand], row_pointer(part.name))

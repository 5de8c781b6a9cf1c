"""Kernels that add up square tiles along their diagonals, as Triton: gradients of what is read by distance.

In: a `KernelPlan`. Out: a `DiagonalsModule` for the template `diagonals.py.jinja`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import KernelPlan
from attndsl.codegen.triton_module import ModuleText, SumText
from attndsl.codegen.triton_text import Part, TileText, d_columns, dv_columns, parts

INDENT = 8


@dataclass(frozen=True, slots=True)
class DiagonalSum(SumText):
    """A sum of tiles, and where it is written."""

    pointer: str


@dataclass(frozen=True, slots=True)
class DiagonalsModule(ModuleText):
    """What the template of these kernels sees beside."""

    q: tuple[Part, ...]
    k: tuple[Part, ...]
    v: tuple[Part, ...]
    do: tuple[Part, ...]
    score_lines: tuple[str, ...]
    value_lines: tuple[str, ...]


class DiagonalsText(TileText):
    """Prints one plan. Every tile is taken for a partial one."""

    def __init__(self, plan: KernelPlan) -> None:
        super().__init__(plan, (plan.mask, plan.score, *plan.pair_values))

    def module(self) -> DiagonalsModule:
        plan = self.plan
        row_lines = tuple(self.own_lines())
        live = "(offs_m < q_len)[:, None] & (keys < kv_len)[None, :]"
        score_lines = (*self.walked_position(full=False), *self.score_lines(full=False, past_end=live, indent=INDENT))
        value_lines = tuple(self.value_lines(full=False, indent=INDENT))
        of_keys, of_values = d_columns(plan), dv_columns(plan)
        return DiagonalsModule(
            plan,
            helpers=frozenset(self.printer.helpers),
            base_lines=tuple(self.base_lines()),
            row_lines=row_lines,
            sums=tuple(self._sums()),
            product=self.product,
            q=parts("q", of_keys, "[None, :]"),
            k=parts("k", of_keys, "[:, None]", "(keys < kv_len)[None, :]"),
            v=parts("v", of_values, "[None, :]", "(keys < kv_len)[:, None]"),
            do=parts("do", of_values, "[None, :]") if plan.reads_gradient else (),
            score_lines=score_lines,
            value_lines=value_lines,
        )

    def _sums(self) -> Iterator[DiagonalSum]:
        names = self.value_names()
        for part in self.plan.sums:
            yield DiagonalSum(part.name, part.name, names[part.integrand], row_pointer(part.name))

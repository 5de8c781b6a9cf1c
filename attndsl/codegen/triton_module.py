"""What templates see of a kernel: finished lines and facts of its plan, nothing to decide."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.codegen.heads import head
from attndsl.codegen.names import row_pointer
from attndsl.codegen.placement import Side
from attndsl.codegen.plan import KernelPlan, padded
from attndsl.codegen.triton_signature import arguments, runtime_arguments
from attndsl.codegen.triton_text import offs_dv


@dataclass(frozen=True, slots=True)
class SumText:
    """A sum along the walk: its name, what it is before a tile is added, and what is added."""

    name: str
    before: str
    value: str


@dataclass(frozen=True, slots=True)
class ModuleText:
    """What every template sees; `product` is the name of the scaled product."""

    plan: KernelPlan
    helpers: frozenset[str]
    base_lines: tuple[str, ...]
    row_lines: tuple[str, ...]
    sums: tuple[SumText, ...]
    product: str

    @property
    def name(self) -> str:
        return self.plan.kernel

    @property

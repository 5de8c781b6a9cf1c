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
    def docstring(self) -> str:
        return '"""' + head(self.plan).replace("\\", "\\\\").replace('"""', "'''") + '\n"""'

    @property
    def runtime_args(self) -> tuple[str, ...]:
        return tuple(runtime_arguments(self.plan))

    @property
    def args(self) -> tuple[str, ...]:
        return tuple(arguments(self.plan))

    @property
    def kept(self) -> tuple[tuple[str, str], ...]:
        """The row values a kernel reads, and the pointers to them."""
        return tuple((name, row_pointer(name)) for name in self.plan.kept)

    @property
    def block_d(self) -> int:
        return padded(self.plan.spec.head_dim)

    @property
    def block_dv(self) -> int:
        reads_values = self.plan.reads_values or self.plan.side is Side.KEYS
        return padded(self.plan.spec.v_head_dim) if reads_values else self.block_d

    @property
    def offs_dv(self) -> str:
        return offs_dv(self.plan)

    @property
    def precision(self) -> str:
        return ', input_precision="ieee"' if self.plan.spec.dtype == "fp32" else ""

    @property
    def scale_product(self) -> str:
        return "" if self.plan.scales_late else " * sm_scale"

    @property
    def widen(self) -> str:
        """The dtype positions are widened to where nothing proves that 32 bits do."""
        return "" if self.plan.spec.fast else ".to(tl.int64)"

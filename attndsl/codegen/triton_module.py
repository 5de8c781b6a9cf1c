"""What templates see of a kernel: finished lines and facts of its plan, nothing to decide."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.codegen.heads import head
from attndsl.codegen.names import row_pointer
from attndsl.codegen.placement import Side
from attndsl.codegen.plan import KernelPlan
from attndsl.codegen.triton_signature import arguments, runtime_arguments
from attndsl.codegen.triton_text import d_columns, dots, dv_columns


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
    def columns(self) -> dict[str, str]:
        """The offsets of columns by their names."""
        reads_values = self.plan.reads_values or self.plan.side is Side.KEYS
        found = d_columns(self.plan) | (dv_columns(self.plan) if reads_values else {})
        return {offs: columns.arange for offs, columns in found.items()}

    @property
    def key_offs(self) -> dict[str, str]:
        """The offsets of the columns of queries and keys, by what the names of their tiles end in."""
        return {columns.suffix: offs for offs, columns in d_columns(self.plan).items()}

    @property
    def value_offs(self) -> dict[str, str]:
        """Those of values and of the gradient of the output."""
        return {columns.suffix: offs for offs, columns in dv_columns(self.plan).items()}

    @property
    def scores(self) -> tuple[str, ...]:
        """The scaled product, tiles of queries being rows."""
        return self._scores(*((f"q{suffix}", f"k{suffix}") for suffix in self.key_offs))

    def _scores(self, *factors: tuple[str, str], whole: str = "{}") -> tuple[str, ...]:
        return tuple(dots(self.product, factors, self.precision, whole + self.scale_product))

    @property
    def weights(self) -> tuple[str, ...]:
        """The derivative by weights, in the same orientation."""
        factors = ((f"do{suffix}", f"tl.trans(v{suffix})") for suffix in self.value_offs)
        return tuple(dots("dw", factors, self.precision))

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

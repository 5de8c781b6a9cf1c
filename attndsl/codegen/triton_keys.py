"""Kernels in which a program keeps a tile of queries and walks keys, as Triton.

In: a `KernelPlan`. Out: a `KeysModule` for the template `keys.py.jinja`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import Gather, Operand
from attndsl.codegen.triton_module import SumText
from attndsl.codegen.triton_regions import WalkModule
from attndsl.codegen.triton_rows import RowsText
from attndsl.codegen.triton_text import Part, d_columns, dv_columns, parts


@dataclass(frozen=True, slots=True)
class PeakText:
    """A running maximum, and its name after the tile at hand."""

    name: str
    grown: str


@dataclass(frozen=True, slots=True)
class KeysModule(WalkModule):
    """What the template of these kernels sees beside."""

    q: tuple[Part, ...]
    do: tuple[Part, ...]
    reads_values: bool
    loads_late: bool
    maxima: tuple[PeakText, ...]
    scale_maximum: str
    shift_lines: tuple[str, ...]
    rescale_lines: tuple[str, ...]
    bracket_lines: tuple[str, ...]
    root: str
    pair_lines: tuple[str, ...]

    @property
    def page_lines(self) -> tuple[str, ...]:
        """Which page the keys of a tile lie in, and where in it; beyond the last key it is that of the last one."""
        return PAGE_LINES if self.plan.spec.paged else ()

    @property
    def k_start(self) -> str:
        """Where the keys of a tile begin, or each of them."""
        return _start("k", "[None, :]", self.plan.spec.paged)

    @property
    def v_start(self) -> str:
        return _start("v", "[:, None]", self.plan.spec.paged)

    @property
    def k_offs(self) -> dict[str, str]:
        """Where a key of a tile is from there, and its elements, by what the names of their tiles end in."""
        keys = "" if self.plan.spec.paged else "offs_n[None, :] * stride_kn + "
        return {suffix: f"{keys}{offs}[:, None] * stride_kd" for suffix, offs in self.key_offs.items()}

    @property
    def v_offs(self) -> dict[str, str]:
        keys = "" if self.plan.spec.paged else "offs_n[:, None] * stride_vn + "
        return {suffix: f"{keys}{offs}[None, :] * stride_vd" for suffix, offs in self.value_offs.items()}


PAGE_LINES = (
    "slot = tl.maximum(tl.minimum(keys, stored - 1), 0)",
    "page = tl.load(Pages + slot // page_size, mask=slot < stored, other=0).to(tl.int64)",
    "slot = slot % page_size",
)


def _start(name: str, across: str, paged: bool) -> str:
    if paged:
        return f"(page * stride_{name}b + slot * stride_{name}n){across}"
    return f"tl.cast(start_n, tl.int64) * stride_{name}n"


class KeysText(RowsText):
    """Prints one plan."""

    def module(self) -> KeysModule:
        plan = self.plan
        row_lines, regions = tuple(self.own_lines()), tuple(self.regions())
        bracket_lines = tuple(self.bracket_lines())
        rescale_lines, end_lines = tuple(self.rescale_lines()), tuple(self.end_lines())
        return KeysModule(
            plan,
            helpers=frozenset(self.printer.helpers | (set() if plan.solve is None else {"_ordered", "_number"})),
            base_lines=tuple(self.base_lines()),
            row_lines=row_lines,
            sums=tuple(self._sums()),
            product=self.product,
            walk=self.walk,
            edge=self.edge,
            pad=self.pad,
            inner=self.inner,
            skip=self.skip,
            regions=regions,
            products=tuple(self.product_texts({Operand.VALUE: "{}", Operand.KEY: "tl.trans({})"}, self.alphas)),
            end_lines=end_lines,
            q=parts("q", d_columns(plan), "[None, :]"),
            do=parts("do", dv_columns(plan), "[None, :]") if plan.reads_gradient else (),
            reads_values=plan.reads_values,
            loads_late=bool(self.skip) and not plan.reads_gradient and plan.reads_values,
            maxima=tuple(PeakText(part.name, part.grown.name) for part in plan.maxima),
            scale_maximum=" * sm_scale" if plan.scales_late else "",
            shift_lines=tuple(self.shift_lines()),
            rescale_lines=rescale_lines,
            bracket_lines=bracket_lines,
            root="" if plan.solve is None else plan.solve.name,
            pair_lines=tuple(self._pair_lines()),
        )

    def _pair_lines(self) -> Iterator[str]:
        if self.plan.gather is Gather.PAIRS:
            names = self.value_names()
            yield "place = (row_base + offs_m[:, None]) * (chunk_hi - chunk_lo) + (keys - chunk_lo)[None, :]"
            yield "inside = (offs_m < q_len)[:, None] & (keys < chunk_hi)[None, :]"
            for part in self.plan.sums:
                yield f"tl.store({row_pointer(part.name)} + place, {names[part.integrand]}, mask=inside)"

    def _sums(self) -> Iterator[SumText]:
        if self.plan.gather is Gather.PAIRS:
            return
        names = self.value_names()
        for part in self.plan.sums:
            alpha = "" if part.rescale is None else f" * {self.alphas[part.rescale]}"
            yield SumText(part.name, f"{part.name}{alpha}", names[part.integrand])
        if self.plan.solve is not None:
            yield SumText("sum_i", "sum_i", names[self.plan.solve.integrand])

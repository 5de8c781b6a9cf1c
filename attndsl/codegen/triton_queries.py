"""Kernels in which a program keeps a tile of keys and walks the queries that see them, as Triton.

In: a `KernelPlan`. Out: a `QueriesModule` for the template `queries.py.jinja`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attndsl.codegen.head_dims import Columns
from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import OUTPUTS, KernelPlan, Operand
from attndsl.codegen.triton_module import SumText
from attndsl.codegen.triton_regions import RegionsText, WalkModule
from attndsl.codegen.triton_signature import stride_names
from attndsl.codegen.triton_text import Part, d_columns, d_mask, dots, dv_columns, operand_columns, parts
from attndsl.codegen.triton_walk import INDENT


@dataclass(frozen=True, slots=True)
class QueriesModule(WalkModule):
    """What the template of these kernels sees beside."""

    k: tuple[Part, ...]
    v: tuple[Part, ...]
    column_lines: tuple[str, ...]

    @property
    def scores(self) -> tuple[str, ...]:
        """The scaled product, tiles of keys being rows; turned where its bits must be those of the forward."""
        if self.plan.mirrors:
            factors = ((f"tl.trans(q{suffix})", f"tl.trans(k{suffix})") for suffix in self.key_offs)
            return self._scores(*factors, whole="tl.trans({})")
        return self._scores(*((f"k{suffix}", f"q{suffix}") for suffix in self.key_offs))

    @property
    def weights(self) -> tuple[str, ...]:
        factors = ((f"v{suffix}", f"tl.trans(do{suffix})") for suffix in self.value_offs)
        return tuple(dots("dw", factors, self.precision))


class QueriesText(RegionsText):
    """Prints one plan."""

    def __init__(self, plan: KernelPlan) -> None:
        roots = (plan.mask, plan.score, *plan.pair_values)
        super().__init__(plan, roots, guards_ranges=True, edge=INDENT * 2)

    def module(self) -> QueriesModule:
        plan = self.plan
        row_lines, regions = tuple(self.own_lines()), tuple(self.regions())
        return QueriesModule(
            plan,
            helpers=frozenset(self.printer.helpers),
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
            products=tuple(self.product_texts({Operand.GRADIENT: "{}", Operand.QUERY: "tl.trans({})"}, {})),
            end_lines=tuple(self._end_lines()),
            k=parts("k", d_columns(plan), "[None, :]"),
            v=parts("v", dv_columns(plan), "[None, :]") if plan.reads_gradient else (),
            column_lines=tuple(self._column_lines()),
        )

    def _sums(self) -> Iterator[SumText]:
        names = self.value_names()
        return (SumText(part.name, part.name, names[part.integrand]) for part in self.plan.sums)

    def _column_lines(self) -> Iterator[str]:
        """What is summed for each key and query head."""
        if self.plan.sums:
            yield "column_base = (b.to(tl.int64) * heads + h) * kv_len"
        for part in self.plan.sums:
            yield f"tl.store({row_pointer(part.name)} + column_base + offs_n, {part.name}, mask=key_ok)"

    def _end_lines(self) -> Iterator[str]:
        yield "# Told anew: the places that k and v were read from would stay in registers through the loops."
        yield "places = tl.arange(0, BLOCK_N)"
        yield "inside = (places < kv_len - tile * BLOCK_N)[:, None]"
        for product in self.plan.products:
            pointer, columns = OUTPUTS[product.name], operand_columns(self.plan, product.operand)
            _, _, row, column = stride_names(pointer)
            if product.operand is Operand.QUERY:
                yield from (f"{name} = {name} * sm_scale" for name in _names(product.name, columns))
            yield f"{pointer} += tl.cast(tile * BLOCK_N, tl.int64) * {row}"
            for (offs, one), name in zip(columns.items(), _names(product.name, columns), strict=True):
                place = f"{pointer} + places[:, None].to(tl.int64) * {row} + {offs}[None, :] * {column}"
                pointers = f"{product.name}_tile{one.suffix}"
                yield f"{pointers} = {place}"
                store = " & ".join(("inside", *d_mask(f"{offs}[None, :]", one)))
                yield f"tl.store({pointers}, {name}.to({pointer}.dtype.element_ty), mask={store})"


def _names(name: str, columns: Mapping[str, Columns]) -> Iterator[str]:
    return (f"{name}{one.suffix}" for one in columns.values())

"""Kernels in which a program keeps a tile of keys and walks the queries that see them, as Triton.

In: a `KernelPlan`. Out: a `QueriesModule` for the template `queries.py.jinja`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import OUTPUTS, KernelPlan, Operand, padded
from attndsl.codegen.triton_module import SumText
from attndsl.codegen.triton_regions import ProductText, RegionsText, WalkModule
from attndsl.codegen.triton_signature import stride_names
from attndsl.codegen.triton_text import d_mask, load_text, offs_dv
from attndsl.codegen.triton_walk import INDENT


@dataclass(frozen=True, slots=True)
class QueriesModule(WalkModule):
    """What the template of these kernels sees beside."""

    k_load: str
    v_load: str
    mirrors: bool
    column_lines: tuple[str, ...]


class QueriesText(RegionsText):
    """Prints one plan."""

    def __init__(self, plan: KernelPlan) -> None:
        roots = (plan.mask, plan.score, *plan.pair_values)
        super().__init__(plan, roots, guards_ranges=True, edge=INDENT * 2)

    def module(self) -> QueriesModule:
        plan, spec = self.plan, self.plan.spec
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
            products=tuple(self._products()),
            end_lines=tuple(self._end_lines()),
            k_load=load_text("k_tile", *d_mask("offs_d[None, :]", spec.head_dim)),
            v_load=load_text("v_tile", *d_mask(f"{offs_dv(plan)}[None, :]", spec.v_head_dim))
            if plan.reads_gradient
            else "",
            mirrors=plan.mirrors,
            column_lines=tuple(self._column_lines()),
        )

    def _sums(self) -> Iterator[SumText]:
        names = self.value_names()
        return (SumText(part.name, part.name, names[part.integrand]) for part in self.plan.sums)

    def _products(self) -> Iterator[ProductText]:
        names = self.value_names()
        for product in self.plan.products:
            is_dv = product.operand is Operand.GRADIENT
            yield ProductText(
                name=product.name,
                width=padded(self.plan.spec.v_head_dim if is_dv else self.plan.spec.head_dim),
                value=names[product.value],
                operand=product.operand.value,
                factor="do" if is_dv else "tl.trans(q)",
                before=product.name,
            )

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
            is_dv = product.operand is Operand.GRADIENT
            pointer = OUTPUTS[product.name]
            columns, (_, _, row, column) = offs_dv(self.plan) if is_dv else "offs_d", stride_names(pointer)
            head_dim = self.plan.spec.v_head_dim if is_dv else self.plan.spec.head_dim
            if not is_dv:
                yield f"{product.name} = {product.name} * sm_scale"
            yield f"{pointer} += tl.cast(tile * BLOCK_N, tl.int64) * {row}"
            tile = f"{pointer} + places[:, None].to(tl.int64) * {row} + {columns}[None, :] * {column}"
            yield f"{product.name}_tile = {tile}"
            store = " & ".join(("inside", *d_mask(f"{columns}[None, :]", head_dim)))
            yield f"tl.store({product.name}_tile, {product.name}.to({pointer}.dtype.element_ty), mask={store})"

"""What a program that keeps queries computes of its rows, as Triton: in the walk, one value a row, and after it.

In: a `KernelPlan`. Out: lines, for the printer of these kernels (`triton_keys`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attndsl.analysis.axes import axes_of
from attndsl.codegen.head_dims import Columns
from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import OUTPUTS, Gather, KernelPlan, Operand
from attndsl.codegen.triton_regions import RegionsText
from attndsl.codegen.triton_signature import stride_names
from attndsl.codegen.triton_text import d_columns, d_mask, dv_columns, operand_columns, suffix_of
from attndsl.codegen.triton_walk import INDENT
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, RowValue, postorder
from attndsl.ir.ops import Op
from attndsl.ir.types import Axis


class RowsText(RegionsText):
    """Prints rows of one plan."""

    def __init__(self, plan: KernelPlan) -> None:
        moves = [*(part.rescale for part in plan.statistics), *(part.rescale for part in plan.products)]
        rescales = tuple(dict.fromkeys(move for move in moves if move is not None))
        sink = () if plan.streaming.sink is None or not plan.at_end else (plan.streaming.sink,)
        peaks = (part.integrand for part in plan.maxima)
        roots = (plan.mask, plan.score, *peaks, *plan.pair_values, *rescales, *plan.at_end, *plan.bracket, *sink)
        super().__init__(
            plan,
            roots,
            # Rows that are live by one range or another say nothing of each.
            guards_ranges=plan.guards_rows or len(plan.walk.ranges) > 1,
            edge=INDENT if plan.solve is None else INDENT * 2,
        )
        self.alphas = {move: f"alpha_{place}" if place else "alpha" for place, move in enumerate(rescales)}

    def shift_lines(self) -> Iterator[str]:
        """What is measured from a maximum is measured from 0 while no key was live."""
        for part in self.plan.maxima:
            if self.guards(part):
                new = part.grown.name
                yield f"shift{suffix_of(part)} = tl.where({new} == -INF, 0.0, {new})"

    def _row_text(self, expr: Expr, rows: dict[str, str]) -> str:
        """A value of a row, one element a row."""
        names: dict[Expr, str] = {
            node: rows.get(node.name, node.name) for node in postorder(expr) if isinstance(node, RowValue)
        }
        own = [line for part in (self.plan.placement, self.plan.peaks, self.plan.rest) for line in part.own]
        varies = any(node is build.Q or any(node is line.value for line in own) for node in postorder(expr))
        if varies:
            names = {node: f"{name}[:, None]" for node, name in names.items()}
            return f"tl.reshape({self.printer.named(expr, {**self.own_names, **names}, self.hoisted)}, [BLOCK_M])"
        return self.printer.named(expr, {**self.program_names, **names}, self.hoisted)

    def rescale_lines(self) -> Iterator[str]:
        """What there is of sums and products, measured from the maximum as it has grown."""
        for move, name in self.alphas.items():
            yield f"{name} = {self._row_text(move, self.shifts)}"

    def end_lines(self) -> Iterator[str]:
        """What is stored of the rows."""
        plan = self.plan
        for part in plan.maxima:
            yield f"tl.store({row_pointer(part.name)} + row_base + offs_m, {part.name}, mask=row_ok)"
        if plan.at_end:
            yield from self._last_lines()
        if any(product.name == "acc" for product in plan.products):
            yield from self._out_lines()
        if any(product.name == "dq" for product in plan.products):
            yield from self._store_tile("dq", ("dq{} * sm_scale",), d_columns(plan))
        if "lse" in plan.stored:
            assert plan.streaming.lse is not None
            yield f"tl.store(Lse + row_base + offs_m, {self._last_text(plan.streaming.lse)}, mask=row_ok)"
        for part in (*plan.sums, *(() if plan.solve is None else (plan.solve,))):
            if part.name in plan.stored and plan.gather is Gather.WALK:
                yield f"tl.store({row_pointer(part.name)} + row_base + offs_m, {part.name}, mask=row_ok)"

    def _last_lines(self) -> Iterator[str]:
        """Values of the rows after the walk, one element a row; a sink joins the maximum first."""
        plan, sink = self.plan, self.plan.streaming.sink
        if not (plan.at_end or plan.bracket):
            return
        early = [line for line in plan.last.own if not _reads_rows(line.value)]
        late = [line for line in plan.last.own if _reads_rows(line.value)]
        yield from self.statements(plan.last.program, {})
        if any(node is build.Q for node in postorder(*plan.at_end, *plan.bracket, *(() if sink is None else (sink,)))):
            yield "q_idx = q_offset + rows"
        yield from self.statements(early, self.last_names)
        if sink is not None and plan.at_end:
            yield from self._sink_lines(sink)
        yield from self.statements(late, self.last_names)

    def bracket_lines(self) -> Iterator[str]:
        """What the sum must come down to, and between which ends the root is looked for."""
        if not self.plan.bracket:
            return
        yield from self._last_lines()
        for name, value in zip(("total_i", "lower_i", "upper_i"), self.plan.bracket, strict=True):
            yield f"{name} = tl.full([BLOCK_M], 0.0, tl.float32) + {self._last_text(value)}"

    @property
    def last_names(self) -> dict[Expr, str]:
        """The names of values after the walk."""
        values = postorder(*self.plan.at_end, *self.plan.bracket)
        rows: dict[Expr, str] = {node: node.name for node in values if isinstance(node, RowValue)}
        return {**rows, **{line.value: line.name for line in self.plan.last.statements}}

    def _last_text(self, value: Expr) -> str:
        return self.printer.named(value, self.last_names, self.hoisted)

    def _sink_lines(self, sink: Expr) -> Iterator[str]:
        """The sink joins the maximum after the keys, so that m_i stays the largest score until then."""
        guarded = self.plan.guards_rows
        yield f"sink_i = {self._last_text(sink)}"
        yield "m_new = tl.maximum(m_i, sink_i)"
        if guarded:
            yield "shift = tl.where(m_new == -INF, 0.0, m_new)"
        new = "shift" if guarded else "m_new"
        for move, name in self.alphas.items():
            yield f"{name} = {self._row_text(move, {'m_new': new})}"
        for part in self.plan.sums:
            if part.rescale is not None:
                yield f"{part.name} = {part.name} * {self.alphas[part.rescale]}"
        for product in self.plan.products:
            if product.rescale is not None:
                for columns in operand_columns(self.plan, product.operand).values():
                    name = f"{product.name}{columns.suffix}"
                    yield f"{name} = {name} * {self.alphas[product.rescale]}[:, None]"
        yield f"m_i = {new}"

    def _out_lines(self) -> Iterator[str]:
        factors = self.plan.at_end if self.plan.streaming.terms else (build.real(1.0),)
        products = [product for product in self.plan.products if product.operand is Operand.VALUE]
        if self.plan.guards_rows and self.plan.at_end:
            yield "# A row without a live key has nothing to divide by: output 0."
        terms = []
        for number, (product, factor) in enumerate(zip(products, factors, strict=False)):
            lines, scaled = self._scale(factor, f"scale_{number}" if number else "scale_i")
            yield from lines
            terms.append(f"{product.name}{{}}{scaled}")
        yield from self._store_tile("out", terms, dv_columns(self.plan))

    def _scale(self, factor: Expr, scale: str) -> tuple[tuple[str, ...], str]:
        """What scales an accumulator, to 0 where that would divide by 0: lines before, and what follows its name."""
        if factor is build.real(1.0):
            return (), ""
        across = "[:, None]" if Axis.Q in axes_of(factor) else ""
        guarded = self.plan.guards_rows
        match factor:
            case Apply(op=Op.DIV, args=(Const(value=1.0), divisor)) if self.plan.streaming.lse is not None:
                text = self._last_text(divisor)
                divided = f"tl.where({text} == 0.0, 1.0, {text})" if guarded else text
                return (), f" / {divided}{across}"
            case _:
                text = self._last_text(factor)
                empty = " | ".join(self._empty(factor))
                value = f"tl.where({empty}, 0.0, {text})" if empty else text
                return (f"{scale} = {value}",), f" * {scale}{across}"

    def _empty(self, factor: Expr) -> Iterator[str]:
        """What tells that a factor has no value: a divisor of 0, a maximum of nothing."""
        for node in postorder(factor):
            match node:
                case Apply(op=Op.DIV, args=(_, divisor)) if _reads_rows(divisor):
                    yield f"({self._last_text(divisor)} == 0.0)"
                case RowValue(name=name) if name.startswith("m_i"):
                    yield f"({name} == -INF)"
                case _:
                    pass

    def _store_tile(self, name: str, terms: Iterable[str], columns: Mapping[str, Columns]) -> Iterator[str]:
        """What is stored of a tile, the sum of `terms` of its accumulators, with `{}` for the suffixes of columns."""
        pointer = OUTPUTS["acc"] if name == "out" else OUTPUTS[name]
        _, _, row, column = stride_names(pointer)
        for offs, one in columns.items():
            value, tile = f"{name}{one.suffix}", f"{name}_tile{one.suffix}"
            yield f"{value} = {' + '.join(term.format(one.suffix) for term in terms)}"
            yield f"{tile} = {pointer} + offs_m[:, None].to(tl.int64) * {row} + {offs}[None, :] * {column}"
            store = " & ".join(("row_ok[:, None]", *d_mask(f"{offs}[None, :]", one)))
            yield f"tl.store({tile}, {value}.to({pointer}.dtype.element_ty), mask={store})"


def _reads_rows(value: Expr) -> bool:
    return any(isinstance(node, RowValue) for node in postorder(value))

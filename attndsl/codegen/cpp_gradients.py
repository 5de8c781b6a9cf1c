"""A plan whose row statistics are known as C++ text: gradients and sums of rows, in one walk over the keys.

In: a `KernelPlan` of a backward. Out: a module whose function has the name of the kernel. A walk sums for its queries
and for its keys alike, so that one of them can leave the gradients of q, k, v and of captures together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from attndsl.analysis.streaming import LSE
from attndsl.analysis.structure import Structure
from attndsl.codegen.cpp_expr import CppPrinter, Text
from attndsl.codegen.cpp_lines import CppLines, names_of
from attndsl.codegen.cpp_text import GRADIENTS, SUMS
from attndsl.codegen.drawn import Drawn
from attndsl.codegen.names import row_pointer
from attndsl.codegen.plan import OUTPUTS, Gather, KernelPlan, Operand, is_maximum
from attndsl.codegen.triton_expr import LoadStyle
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, RowValue
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder


@dataclass(frozen=True, slots=True)
class ProductText:
    """A sum of products: `value` of a pair times the rows of `operand`; `width` elements each."""

    name: str
    value: str
    operand: str
    width: str
    pointer: str
    scaled: bool


@dataclass(frozen=True, slots=True)
class OwnText:
    """Rows of a query tile that products for keys are made of."""

    name: str
    width: str
    pointer: str
    stride: str
    stride_d: str


@dataclass(frozen=True, slots=True)
class SumText:
    """A sum of `value`, and where it is stored."""

    name: str
    value: str
    pointer: str


@dataclass(frozen=True, slots=True)
class GradientsText:
    """What the template sees: finished lines, nothing to decide."""

    name: str
    kept: tuple[tuple[str, str], ...]
    first: str
    last: str
    product: str
    score_lines: tuple[str, ...]
    value_lines: tuple[str, ...]
    reads_key: bool
    reads_gradient: bool
    takes_gradient: bool
    values_lie_along: str
    skips: bool
    own: tuple[OwnText, ...]
    row_products: tuple[ProductText, ...]
    column_products: tuple[ProductText, ...]
    of_keys: tuple[str, ...]
    row_sums: tuple[SumText, ...]
    column_sums: tuple[SumText, ...]
    diagonal_sums: tuple[SumText, ...]
    pair_sums: tuple[SumText, ...]
    has_area: bool


OWN = {
    Operand.QUERY: OwnText("queries", "HEAD_DIM", "Q", "stride_qm", "stride_qd"),
    Operand.GRADIENT: OwnText("gradients", "V_HEAD_DIM", "DOut", "stride_dom", "stride_dod"),
}
"""The rows of a query tile, by what they are multiplied as."""


def emit_gradients(plan: KernelPlan) -> Drawn:
    """The module text of a kernel; the same plan gives the same bytes."""
    kernel = _Gradients(plan)
    return Drawn(GRADIENTS, (("lines", kernel.module(sums=(SUMS,))), ("kernel", kernel.text())))


@dataclass(frozen=True)
class _Printer(CppPrinter):
    """Prints expressions of gradients: how much a score is below one of the `tops` of its row, exponentiated, as powers
    of two that are never subnormal, which products would take their time for.

    Tops are the lse and the largest score, beside which what is that small is nothing; other maxima may be far above.
    """

    tops: frozenset[str] = frozenset()

    def _printed(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle, at_root: bool = False) -> Text:
        match node:
            case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(_, RowValue(name=row))) as below,)) if (
                at_root or node not in names
            ) and row in self.tops:
                return Text(f"exp2_flushing({super()._printed(below, names, loads, at_root=True).inside('*')} * LOG2E)")
            case _:
                return super()._printed(node, names, loads, at_root)


class _Gradients(CppLines):
    """Prints one plan. Names are those of the field: `p`, `ds`, `dw`."""

    PRINTER = _Printer

    def __init__(self, plan: KernelPlan) -> None:
        values = plan.pair_values
        leaves: dict[Expr, str] = {build.DWEIGHT: "dw", **{build.row_value(name): name for name in plan.kept}}
        stages = (plan.placement, plan.rest)
        super().__init__(plan, (plan.mask, plan.score, *values), stages, leaves, fixed=values, given=plan.kept)
        largest = (statistic.name for statistic in plan.streaming.statistics if is_maximum(statistic))
        assert isinstance(self.printer, _Printer)
        self.printer = replace(self.printer, tops=frozenset((LSE.name, *largest)))
        self.is_plain = plan.score is build.SCORE
        product = "s" if self.is_plain else "qk"
        self.raw: dict[Expr, str] = {build.SCORE: product}
        self.final: dict[Expr, str] = {build.SCORE: "s" if plan.final is build.SCORE else product, plan.final: "s"}
        self.values = self.renamed(plan.rest.tile)
        self.names = self._value_names()

    def text(self) -> GradientsText:
        plan = self.plan
        sums = {which: tuple(self._sums(which)) for which in Structure}
        row_products = tuple(self._products(are_own=False))
        column_products = tuple(self._products(are_own=True))
        own = dict.fromkeys(part.operand for part in plan.products if part.operand in OWN)
        has_chunk = plan.gather is Gather.PAIRS
        return GradientsText(
            name=plan.kernel,
            kept=tuple((name, row_pointer(name)) for name in plan.kept),
            first="max(lo, integer(chunk_lo / BLOCK_N * BLOCK_N))" if has_chunk else "lo",
            last="min(hi, chunk_hi)" if has_chunk else "hi",
            product="s" if self.is_plain else "qk",
            score_lines=tuple(self._score_lines()),
            value_lines=tuple(self._value_lines()),
            reads_key=any(node is build.K for node in postorder(plan.score, *plan.pair_values)),
            reads_gradient=plan.reads_gradient,
            takes_gradient="DOut" in plan.tensors,
            values_lie_along="args.stride_vd == 1" if "V" in plan.tensors else "true",
            skips=self._skips,
            own=tuple(OWN[operand] for operand in own),
            row_products=row_products,
            column_products=column_products,
            of_keys=tuple(dict.fromkeys(part.value for part in column_products)),
            row_sums=sums[Structure.ROW],
            column_sums=sums[Structure.COLUMN],
            diagonal_sums=sums[Structure.DIAGONAL],
            pair_sums=sums[Structure.PAIRS],
            has_area=bool(column_products or sums[Structure.COLUMN] or sums[Structure.DIAGONAL]),
        )

    def _value_names(self) -> dict[Expr, str]:
        """The name of every value that is summed."""
        found: dict[Expr, str] = {}
        placed = names_of(self.values)
        for value in self.plan.pair_values:
            name, number = placed.get(value, "p"), 0
            while name in found.values():
                number += 1
                name = f"p_{number}"
            found[value] = name
        return found

    def _score_lines(self) -> Iterator[str]:
        """The final score of a pair, -inf where it is not live."""
        names = self.key_names | self.raw
        if not self.is_plain:
            yield from self.statements(self.full_tile, names)
            if self.plan.score_origin is not None:
                yield f"// {self.plan.score_origin}"
            text = self.printer.named(self.plan.score, names | names_of(self.full_tile), self.loads)
            yield f"vreal s = vreal({text});"
        yield "if constexpr (PARTIAL) s = select(lanes_of(w.live[j][i]), s, vreal(-INF));"
        if self.plan.hides_keys:
            yield "const LaneBits shown = bits_of(s != vreal(-INF)) & w.inside[i];"
            yield "met[i] |= shown;"
            yield "seen[j] |= shown != 0;"

    def _value_lines(self) -> Iterator[str]:
        """The values of a pair that are summed, 0 where it is not live."""
        summed = set(self.plan.pair_values)
        known = self.key_names | names_of(self.full_tile) | self.final
        for line in self.values:
            if line.value not in summed:
                yield from self.statements((line,), known)
                known[line.value] = line.name
                continue
            yield from self._value(line.value, self.printer.text(line.value, known, self.loads), line.origin)
            known[line.value] = self.names[line.value]
        placed = names_of(self.values)
        for value in self.plan.pair_values:
            if value not in placed:
                yield from self._value(value, self.printer.named(value, known, self.loads), None)
        if self._skips:
            used = " | ".join(f"bits_of({self.names[part.value]} != vreal(0))" for part in self.plan.products)
            yield f"used |= {used};"

    def _value(self, value: Expr, text: str, origin: str | None) -> Iterator[str]:
        name, comment = self.names[value], "" if origin is None else f"  // {origin}"
        yield f"vreal {name} = vreal({text});{comment}"
        if self.plan.hides_keys:
            yield f"{name} = select(s != vreal(-INF), {name}, vreal(0));"
        else:
            yield f"if constexpr (PARTIAL) {name} = select(lanes_of(w.live[j][i]), {name}, vreal(0));"

    @property
    def _skips(self) -> bool:
        """Whether tiles may have no weight though pairs are live."""
        return self.plan.has_thresholds and bool(self.plan.products)

    def _sums(self, structure: Structure) -> Iterator[SumText]:
        for part in self.plan.sums:
            if self.plan.structures.get(part.name, Structure.ROW) is structure:
                yield SumText(part.name, self.names[part.integrand], row_pointer(part.name))

    def _products(self, *, are_own: bool) -> Iterator[ProductText]:
        """Those of the rows of queries, which are summed for keys, or those of keys."""
        for part in self.plan.products:
            if (part.operand in OWN) is are_own:
                width = "V_HEAD_DIM" if part.operand is Operand.GRADIENT else "HEAD_DIM"
                operand = OWN[part.operand].name if are_own else "keys"
                scaled = part.operand is not Operand.GRADIENT
                yield ProductText(part.name, self.names[part.value], operand, width, OUTPUTS[part.name], scaled)

"""A forward plan as C++ text: prints what the plan holds into the lines its template arranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from attndsl.analysis.axes import axes_of
from attndsl.analysis.streaming import LSE, Kind, Statistic, Term
from attndsl.codegen.cpp_expr import CppPrinter
from attndsl.codegen.cpp_gradients import emit_gradients
from attndsl.codegen.cpp_names import cpp_name
from attndsl.codegen.cpp_signature import (
    ELEMENTS,
    MAX_SCORE,
    arguments,
    cpp_row_pointer,
    integer_type,
    real_type,
    stored_rows,
)
from attndsl.codegen.cpp_signature import symbols as symbols_of
from attndsl.codegen.cpp_text import HEADERS, PRODUCTS, TEMPLATE, environment, template_text
from attndsl.codegen.cpp_walk import CppWalk
from attndsl.codegen.placement import Statement
from attndsl.codegen.plan import KernelPlan
from attndsl.codegen.proofs import header_lines
from attndsl.codegen.triton_expr import LoadStyle
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, RowValue, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_variant
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the keys: what the template repeats for each."""

    comment: str
    scale: str
    plain: bool
    stores: bool
    open_lines: tuple[str, ...]
    score_lines: tuple[str, ...]
    largest_lines: tuple[str, ...]
    grow_lines: tuple[str, ...]
    weight_lines: tuple[str, ...]
    close_lines: tuple[str, ...]
    weights_read_columns: bool
    terms: bool


@dataclass(frozen=True, slots=True)
class ForwardText:
    """What the forward template sees: finished lines, nothing to decide."""

    header: str
    defines: tuple[str, ...]
    before: str
    products: str
    element: str
    head_dim: int
    v_head_dim: int
    terms: tuple[Term, ...]
    members: tuple[str, ...]
    locals: tuple[str, ...]
    row_members: tuple[str, ...]
    row_names: tuple[str, ...]
    row_lines: tuple[str, ...]
    column_members: tuple[str, ...]
    column_names: tuple[str, ...]
    column_lines: tuple[str, ...]
    kept: tuple[str, ...]
    program_lines: tuple[str, ...]
    start_lines: tuple[str, ...]
    walk: tuple[str, ...]
    passes: tuple[Pass, ...]
    live_lines: tuple[str, ...]
    live: str
    merge_lines: tuple[str, ...]
    reads_key: bool
    hides_keys: bool
    heaviest_last: bool
    end_program_lines: tuple[str, ...]
    end_lines: tuple[str, ...]
    out: str
    stored: tuple[tuple[str, str], ...]


def emit(plan: KernelPlan) -> str:
    """The module text of a kernel; the same plan gives the same bytes."""
    return emit_forward(plan) if plan.kernel == "forward" else emit_gradients(plan)


def emit_forward(plan: KernelPlan) -> str:
    """The module text of a forward kernel."""
    return environment().get_template(TEMPLATE).render(kernel=_Forward(plan).text())


class _Forward:
    """Prints one plan. Names are those of the field: `m_i`, `l_i`, `acc`."""

    def __init__(self, plan: KernelPlan) -> None:
        symbols = symbols_of(plan)
        self.plan = replace(plan, symbols=symbols)
        self.streaming = plan.streaming
        placement = plan.placement
        leaves: dict[Expr, str] = {build.B: "b", build.H: "h", build.Q: "q_idx", build.K: "kv_idx", build.SCORE: "s"}
        leaves |= {build.Q_LEN: "q_len", build.KV_LEN: "kv_len"}
        roots = (plan.mask, plan.score, *self._expressions())
        leaves |= {node: symbols[node.name] for node in postorder(*roots) if isinstance(node, Scalar)}
        self.printer = CppPrinter(real_type(plan), leaves, symbols, plan.cheap_division)
        self.loads = LoadStyle(clamped=not plan.spec.fast)
        self.program = self._renamed(placement.program)
        self.row = self._renamed(placement.own)
        self.column = self._renamed(placement.walked)
        self.tile = self._renamed(placement.tile)
        self.full_tile = tuple(line for line in self.tile if line.value in {full.value for full in placement.full_tile})
        self.program_names = _names(self.program)
        self.row_names = self.program_names | _names(self.row)
        self.key_names = self.row_names | _names(self.column)
        self.bindings = ("q_idx", *(line.name for line in self.row))
        self.late = plan.scales_late and all(map(self._is_exponential, self._integrands()))

    @property
    def has_maximum(self) -> bool:
        """Whether a statistic is the largest score, which every kernel leaves."""
        parts = self.streaming.statistics
        return any(part.kind is Kind.MAX and part.integrand is build.SCORE for part in parts)

    def text(self) -> ForwardText:
        plan = self.plan
        guards_ranges = plan.guards_rows or len(plan.walk.ranges) > 1
        row = f"const auto [{', '.join(self.bindings)}] = row; "
        walk = CppWalk(self.printer, self.program_names, self.row_names, row, self.loads, guards_ranges)
        sink = plan.last
        return ForwardText(
            header=self._header(),
            defines=(f"#define ATTNDSL_REAL {real_type(plan)}", f"#define ATTNDSL_INTEGER {integer_type(plan)}"),
            before="\n".join(map(template_text, HEADERS)),
            products="\n".join(map(template_text, PRODUCTS if self.plan.spec.dtype == "bf16" else PRODUCTS[:1])),
            element=ELEMENTS[plan.spec.dtype],
            head_dim=plan.spec.head_dim,
            v_head_dim=plan.spec.v_head_dim,
            terms=self.streaming.terms or (None,),  # type: ignore[arg-type]
            members=tuple(f"{argument.type} {argument.name};" for argument in arguments(plan)),
            locals=tuple(self._locals()),
            row_members=("vint q_idx;", *(f"{self.printer.type_of(line.value)} {line.name};" for line in self.row)),
            row_names=self.bindings,
            row_lines=tuple(self._statements(self.row, self.program_names)),
            column_members=tuple(f"{self.printer.type_of(line.value)} {line.name};" for line in self.column),
            column_names=tuple(line.name for line in self.column),
            column_lines=tuple(self._statements(self.column, self.program_names)),
            kept=(*(part.name for part in self.streaming.statistics), *(() if self.has_maximum else (MAX_SCORE,))),
            program_lines=tuple(self._statements(self.program, {})),
            start_lines=tuple(self._start_lines()),
            walk=() if plan.never else tuple(walk.lines(plan.walk)),
            passes=tuple(self._passes()),
            live_lines=tuple(self._live_lines()),
            live=self._live(),
            merge_lines=tuple(self._merge_lines()),
            reads_key=any(node is build.K for node in postorder(plan.score)),
            hides_keys=plan.hides_keys,
            heaviest_last=plan.walk.ascending,
            end_program_lines=tuple(self._statements(self._renamed(sink.program), {})),
            end_lines=tuple(self._end_lines()),
            out=self._out(),
            stored=tuple((cpp_row_pointer(name), name) for name in stored_rows(plan)),
        )

    def _expressions(self) -> Iterator[Expr]:
        """Everything the normalizer and the weight mods are made of."""
        streaming = self.streaming
        yield from self._integrands()
        yield from (term.factor for term in streaming.terms)
        yield from self._rescales()
        yield streaming.weight
        yield from (extra for extra in (streaming.lse, streaming.sink) if extra is not None)

    def _integrands(self) -> Iterator[Expr]:
        """What is summed over the keys."""
        yield from (part.integrand for part in self.streaming.statistics if part.kind is Kind.SUM)
        yield from (term.value for term in self.streaming.terms)
        if not self.streaming.terms:
            yield self.streaming.weight

    def _header(self) -> str:
        spec = self.plan.spec
        program = print_variant(self.plan.variant).replace("*/", "* /").rstrip()
        shape = f"{spec.dtype}, head dim {spec.head_dim}" + (
            "" if spec.v_head_dim == spec.head_dim else f" (values {spec.v_head_dim})"
        )
        parts = [f"Attention forward, {shape}, generated by attndsl.", program]
        if not spec.fast:
            parts.append("Relies on no facts: 64-bit integers, floor division for any sign, captured reads clamped.")
        proven = "\n".join(header_lines(self.plan))
        if proven:
            given = ", on facts checked before the launch" if spec.fast else ""
            parts.append(f"Proven{given}:\n{proven}".replace("*/", "* /"))
        return "/* " + "\n\n".join(parts) + "\n*/"

    def _locals(self) -> Iterator[str]:
        """The arguments the text reads by name."""
        own = {
            "Q",
            "K",
            "V",
            "Out",
            *map(cpp_row_pointer, stored_rows(self.plan)),
            "batch",
            "heads",
            "group",
            "Q_offset",
        }
        own |= {f"stride_{tensor}{axis}" for tensor in "qkvo" for axis in "bhmnd"}
        for argument in arguments(self.plan):
            if argument.name == "Q_offset":
                yield "const integer q_offset = args.Q_offset[b];"
            elif argument.name not in own:
                yield f"const {argument.local} {argument.name} = args.{argument.name};".replace("const const", "const")
        if self.late:
            yield "const real qk_scale = sm_scale * LOG2E;"

    def _renamed(self, statements: Iterable[Statement]) -> tuple[Statement, ...]:
        return tuple(replace(line, name=cpp_name(line.name, self.plan.symbols)) for line in statements)

    def _statements(self, statements: Iterable[Statement], names: Mapping[Expr, str]) -> Iterator[str]:
        known = dict(names)
        for line in statements:
            comment = "" if line.origin is None else f"  // {line.origin}"
            value = self.printer.text(line.value, known, self.loads)
            yield f"const {self.printer.type_of(line.value)} {line.name} = {value};{comment}"
            known[line.value] = line.name

    def _start_lines(self) -> Iterator[str]:
        for statistic in self.streaming.statistics:
            yield f"w.{statistic.name}[i] = vreal({'-INF' if statistic.kind is Kind.MAX else '0'});"
        if not self.has_maximum:
            yield f"w.{MAX_SCORE}[i] = vreal(-INF);"

    def _live_lines(self) -> Iterator[str]:
        needed = set(postorder(self.plan.mask))
        yield from self._statements((line for line in self.tile if line.value in needed), self.key_names)
        if self.plan.mask is not build.TRUE and self.plan.mask_origin is not None:
            yield f"// {self.plan.mask_origin}"

    def _live(self) -> str:
        if self.plan.mask is build.TRUE:
            return "ALL_LANES"
        names = self.key_names | _names(self.tile)
        return f"bits_of(vbool({self.printer.named(self.plan.mask, names, self.loads)}))"

    def _score_lines(self) -> Iterator[str]:
        if self.plan.score is build.SCORE:
            return
        yield from self._statements(self.full_tile, self.key_names)
        if self.plan.score_origin is not None:
            yield f"// {self.plan.score_origin}"
        names = self.key_names | _names(self.full_tile)
        yield f"s = vreal({self.printer.named(self.plan.score, names, self.loads)});"

    def _passes(self) -> Iterator[Pass]:
        streaming = self.streaming
        passes = streaming.passes if streaming.terms and streaming.passes else (*streaming.passes, ())
        for number, statistics in enumerate(passes):
            is_last = number == len(passes) - 1
            yield self._pass(statistics, streaming.terms if is_last else (), is_last)

    def _pass(self, statistics: tuple[Statistic, ...], terms: tuple[Term, ...], is_last: bool) -> Pass:
        maxima = [part for part in statistics if part.kind is Kind.MAX]
        sums = [part for part in statistics if part.kind is Kind.SUM]
        values = [term.value for term in terms] if terms or not is_last else [self.streaming.weight]
        weights = _Weights(self, maxima, sums, values)
        return Pass(
            comment="// Row statistics and the output." if is_last else "// Row statistics.",
            scale="" if self.late else " * sm_scale",
            plain=self.late,
            stores=not self.late,
            open_lines=(*self._open_lines(maxima, {part.name for part in sums}), *self._weight_lines(terms, is_last)),
            score_lines=tuple(self._score_lines()),
            largest_lines=tuple(self._largest_lines(maxima, is_last)),
            grow_lines=tuple(self._grow_lines(maxima, sums, terms)),
            weight_lines=tuple(weights.lines()),
            close_lines=(
                *(f"w.{part.name}[i] = {part.name} + {part.name}_tile;" for part in sums),
                *(() if self.has_maximum or not is_last else (f"w.{MAX_SCORE}[i] = {MAX_SCORE};",)),
            ),
            weights_read_columns=any(
                Axis.K in axes_of(node) for node in postorder(*(part.integrand for part in sums), *values)
            ),
            terms=is_last,
        )

    def _open_lines(self, maxima: list[Statistic], later: set[str]) -> Iterator[str]:
        """The statistics so far; sums of this pass wait for their rescale."""
        for part in self.streaming.statistics:
            if part.name not in later:
                yield f"const vreal {part.name} = w.{part.name}[i];"
        yield from (f"vreal {_largest(part)}(-INF);" for part in maxima)

    def _weight_lines(self, terms: tuple[Term, ...], is_last: bool) -> Iterator[str]:
        """What the last pass needs besides the statistics."""
        if is_last and not self.has_maximum:
            yield f"vreal {MAX_SCORE} = w.{MAX_SCORE}[i];"
        if is_last and not terms and LSE in postorder(self.streaming.weight):
            yield self._lse_line()

    def _lse_line(self) -> str:
        names: dict[Expr, str] = {part.value: part.name for part in self.streaming.statistics}
        assert self.streaming.lse is not None
        return f"const vreal lse = vreal({self.printer.named(self.streaming.lse, names, self.loads)});"

    def _largest_lines(self, maxima: list[Statistic], is_last: bool) -> Iterator[str]:
        if is_last and not self.has_maximum:
            yield f"{MAX_SCORE} = larger({MAX_SCORE}, s);"
        for part in maxima:
            value = "s"
            if part.integrand is not build.SCORE:
                text = self.printer.named(part.integrand, self.row_names, self.loads)
                value = f"select(s == vreal(-INF), vreal(-INF), vreal({text}))"
            yield f"{_largest(part)} = larger({_largest(part)}, {value});"

    def _grow_lines(self, maxima: list[Statistic], sums: list[Statistic], terms: tuple[Term, ...]) -> Iterator[str]:
        """Maxima take in the tile; what was summed so far is rescaled to them."""
        for part in maxima:
            new, scale = part.grown.name, " * sm_scale" if self.late else ""
            yield f"const vreal {new} = larger({part.name}, {_largest(part)}{scale});"
            yield f"const vreal {_shift(part)} = select({new} == vreal(-INF), vreal(0), {new});"
            if self.late:
                yield f"const vreal {_shift(part)}_2 = {_shift(part)} * LOG2E;"
            yield f"w.{part.name}[i] = {new};"
        factors: dict[Expr, str] = {}
        for rescale in (*(part.rescale for part in sums), *(term.rescale for term in terms)):
            if rescale is not None and rescale not in factors:
                factors[rescale] = f"alpha_{len(factors)}" if factors else "alpha"
                yield f"const vreal {factors[rescale]} = {self._rescale(rescale, maxima)};"
        for part in sums:
            factor = "" if part.rescale is None else f" * {factors[part.rescale]}"
            yield f"const vreal {part.name} = w.{part.name}[i]{factor};"
            yield f"vreal {part.name}_tile(0);"
        for place, term in enumerate(terms):
            if term.rescale is not None:
                factor = factors[term.rescale]
                yield f"if (any({factor} != vreal(1))) w.products.rescale({place}, i, {factor});"

    def _rescale(self, rescale: Expr, maxima: list[Statistic]) -> str:
        match rescale:
            case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(RowValue(name=old), RowValue(name=new))),)) if any(
                part.name == old and part.grown.name == new for part in maxima
            ):
                shift = next(_shift(part) for part in maxima if part.name == old)
                return f"exp2_flushing(({old} - {shift}) * LOG2E)"
            case _:
                names: dict[Expr, str] = {part.value: part.name for part in maxima}
                names |= {part.grown: _shift(part) for part in maxima} | self.row_names
                return f"vreal({self.printer.named(rescale, names, self.loads)})"

    def _merge_lines(self) -> Iterator[str]:
        """Two parts of a row brought to the maxima of both; none where later passes need what earlier ones found."""
        statistics, terms = self.streaming.statistics, self.streaming.terms
        if len(self.streaming.passes) > 1 or not terms:
            return
        maxima = [part for part in statistics if part.kind is Kind.MAX]
        sums = [part for part in statistics if part.kind is Kind.SUM]
        for part in maxima:
            new, shift = part.grown.name, _shift(part)
            yield f"const vreal {new} = larger(w.{part.name}[i], part.{part.name}[i]);"
            yield f"const vreal {shift} = select({new} == vreal(-INF), vreal(0), {new});"
        factors: dict[Expr, str] = {}
        for rescale in (*(part.rescale for part in sums), *(term.rescale for term in terms)):
            if rescale is not None and rescale not in factors:
                factors[rescale] = f"_{len(factors)}" if factors else ""
                for side, where in (("alpha", "w"), ("beta", "part")):
                    olds = "".join(f"const vreal {part.name} = {where}.{part.name}[i]; " for part in maxima)
                    value = self._rescale(rescale, maxima)
                    yield f"vreal {side}{factors[rescale]};"
                    yield f"{{ {olds}{side}{factors[rescale]} = {value}; }}"
        for part in sums:
            left, right = _scaled(f"w.{part.name}[i]", f"part.{part.name}[i]", factors, part.rescale)
            yield f"w.{part.name}[i] = {left} + {right};"
        for place, term in enumerate(terms):
            left, right = _scaled("load(sum)", f"part.acc[{place}][i][d]", factors, term.rescale)
            yield "for (int d = 0; d < V_HEAD_DIM; d++) {"
            yield f"    real* sum = w.products.sum_at({place}, d, i);"
            yield f"    store(sum, {left} + {right});"
            yield "}"
        yield from (f"w.{part.name}[i] = {part.grown.name};" for part in maxima)
        if not self.has_maximum:
            yield f"w.{MAX_SCORE}[i] = larger(w.{MAX_SCORE}[i], part.{MAX_SCORE}[i]);"

    def exponential_of(self, value: Expr, maxima: list[Statistic]) -> str | None:
        """How much a score is below its row's maximum, exponentiated: what most normalizers sum."""
        shift = next((_shift(part) for part in maxima if part.value in postorder(value)), None)
        if shift is None or not self._is_exponential(value):
            return None
        return f"exp2_flushing(s * qk_scale - {shift}_2)" if self.late else f"exp2_flushing((s - {shift}) * LOG2E)"

    def _is_exponential(self, value: Expr) -> bool:
        match value:
            case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(score, RowValue(name=name))),)):
                return score is build.SCORE and any(
                    part.name == name and part.kind is Kind.MAX and part.integrand is build.SCORE
                    for part in self.streaming.statistics
                )
            case _:
                return False

    def _end_lines(self) -> Iterator[str]:
        streaming = self.streaming
        for part in streaming.statistics:
            yield f"vreal {part.name} = w.{part.name}[i];"
        scores = (p.name for p in streaming.statistics if p.kind is Kind.MAX and p.integrand is build.SCORE)
        yield f"const vreal max_score = {next(scores, f'w.{MAX_SCORE}[i]')};"
        names: dict[Expr, str] = {part.value: part.name for part in streaming.statistics}
        sunk: dict[Expr, str] = {}
        if streaming.sink is not None:
            sunk = self._rescales()
            yield from self._sink_lines(streaming.sink, sunk)
        if not streaming.terms:
            yield f"const vreal {_factor(0)} = {self._of_live_rows('vreal(1)')};"
        for place, term in enumerate(streaming.terms):
            factor = f"vreal({self.printer.named(term.factor, names, self.loads)})"
            if term.rescale in sunk:
                factor = f"{factor} * {sunk[term.rescale]}"
            yield f"const vreal {_factor(place)} = {self._of_live_rows(factor)};"
        if streaming.lse is not None:
            yield self._lse_line()

    def _of_live_rows(self, factor: str) -> str:
        """0 for a row without a live key, and where the divisor is 0."""
        text = f"unless_infinite({factor})"
        return f"select(lanes_of(w.alive[i]), {text}, vreal(0))" if self.plan.guards_rows else text

    def _rescales(self) -> dict[Expr, str]:
        """The names of what sums and accumulators are multiplied by when a maximum grows."""
        moves = [*(p.rescale for p in self.streaming.statistics), *(t.rescale for t in self.streaming.terms)]
        known = dict.fromkeys(move for move in moves if move is not None)
        return {move: f"alpha_{place}" if place else "alpha" for place, move in enumerate(known)}

    def _sink_lines(self, sink: Expr, alphas: Mapping[Expr, str]) -> Iterator[str]:
        """The sink joins the maximum after the keys, so that m_i stays that of the scores until then."""
        program = _names(self._renamed(self.plan.last.program))
        rows = self._renamed(self.plan.last.own)
        maximum = next(part for part in self.streaming.statistics if part.name == "m_i")
        shift = _shift(maximum)
        yield from self._statements(rows, program)
        yield f"const vreal sink_i = vreal({self.printer.named(sink, program | _names(rows), self.loads)});"
        yield "const vreal m_new = larger(m_i, sink_i);"
        yield f"const vreal {shift} = select(m_new == vreal(-INF), vreal(0), m_new);"
        for move, alpha in alphas.items():
            yield f"const vreal {alpha} = {self._rescale(move, [maximum])};"
        for part in self.streaming.statistics:
            if part.rescale is not None:
                yield f"{part.name} = {part.name} * {alphas[part.rescale]};"
        yield f"m_i = {shift};"

    def _out(self) -> str:
        count = max(1, len(self.streaming.terms))
        return " + ".join(f"{_factor(place)} * w.products.sum({place}, d, i)" for place in range(count))


@dataclass(frozen=True, slots=True)
class _Weights:
    """The loop over the keys that sums statistics and leaves the weights of a tile."""

    kernel: _Forward
    maxima: list[Statistic]
    sums: list[Statistic]
    values: list[Expr]

    def lines(self) -> Iterator[str]:
        names: dict[Expr, str] = {}
        for value in (*(part.integrand for part in self.sums), *self.values):
            if value not in names:
                names[value] = f"p_{len(names)}" if names else "p"
                yield f"const vreal {names[value]} = {self._value(value)};"
        for part in self.sums:
            yield f"{part.name}_tile = {part.name}_tile + {names[part.integrand]};"
        for place, value in enumerate(self.values):
            yield f"weights[{place}][e] = {names[value]};"

    def _value(self, value: Expr) -> str:
        kernel = self.kernel
        exponential = kernel.exponential_of(value, self.maxima)
        if exponential is not None:
            return exponential
        names: dict[Expr, str] = {part.value: part.name for part in kernel.streaming.statistics}
        names[LSE] = "lse"
        names |= {part.value: _shift(part) for part in self.maxima} | kernel.row_names
        text = kernel.printer.named(value, names, kernel.loads)
        return f"select(s == vreal(-INF), vreal(0), vreal({text}))"


def _names(statements: Iterable[Statement]) -> dict[Expr, str]:
    return {line.value: line.name for line in statements}


def _scaled(left: str, right: str, factors: Mapping[Expr, str], rescale: Expr | None) -> tuple[str, str]:
    """Two sums brought to the same maxima."""
    if rescale is None:
        return left, right
    return f"{left} * alpha{factors[rescale]}", f"{right} * beta{factors[rescale]}"


def _largest(part: Statistic) -> str:
    return part.name.replace("m_i", "largest")


def _shift(part: Statistic) -> str:
    return part.name.replace("m_i", "shift")


def _factor(place: int) -> str:
    return f"factor_{place}" if place else "factor"

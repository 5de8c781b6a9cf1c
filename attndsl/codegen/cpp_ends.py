"""What a C++ kernel does once the keys of a query tile were walked: chunks of keys merged, rows finished.

In: a `CppKernel`. Out: lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attndsl.analysis.streaming import Kind
from attndsl.codegen.cpp_kernel import CppKernel, shift_of
from attndsl.codegen.cpp_lines import names_of
from attndsl.codegen.cpp_signature import MAX_SCORE
from attndsl.codegen.plan import is_maximum
from attndsl.ir.nodes import Expr


def merge_lines(kernel: CppKernel) -> Iterator[str]:
    """Two parts of a row brought to the maxima of both; none where later passes need what earlier ones found."""
    statistics, terms = kernel.statistics, kernel.streaming.terms
    if len(kernel.streaming.passes) > 1 or kernel.roots or not terms:
        return
    maxima = [part for part in statistics if part.kind is Kind.MAX]
    for part in maxima:
        new, shift = part.grown.name, shift_of(part)
        yield f"const vreal {new} = larger(w.{part.name}[i], part.{part.name}[i]);"
        yield f"const vreal {shift} = select({new} == vreal(-INF), vreal(0), {new});"
    factors = {move: name.removeprefix("alpha") for move, name in kernel.rescales().items()}
    for move, suffix in factors.items():
        for side, where in (("alpha", "w"), ("beta", "part")):
            olds = "".join(f"const vreal {part.name} = {where}.{part.name}[i]; " for part in maxima)
            yield f"vreal {side}{suffix};"
            yield f"{{ {olds}{side}{suffix} = {kernel.rescale(move, maxima)}; }}"
    for part in statistics:
        if part.kind is Kind.SUM:
            left, right = _scaled(f"w.{part.name}[i]", f"part.{part.name}[i]", factors, part.rescale)
            yield f"w.{part.name}[i] = {left} + {right};"
    for place, term in enumerate(terms):
        left, right = _scaled("load(sum)", f"part.acc[{place}][i][d]", factors, term.rescale)
        yield "for (int d = 0; d < V_HEAD_DIM; d++) {"
        yield f"    real* sum = w.products.sum_at({place}, d, i);"
        yield f"    store(sum, {left} + {right});"
        yield "}"
    yield from (f"w.{part.name}[i] = {part.grown.name};" for part in maxima)
    if kernel.tracks_maximum:
        yield f"w.{MAX_SCORE}[i] = larger(w.{MAX_SCORE}[i], part.{MAX_SCORE}[i]);"


def end_lines(kernel: CppKernel) -> Iterator[str]:
    """What is stored of rows, and what their sums are multiplied by."""
    streaming = kernel.streaming
    for part in kernel.statistics:
        yield f"vreal {part.name} = w.{part.name}[i];"
    peaks = (part.name for part in filter(is_maximum, kernel.statistics))
    yield f"const vreal {MAX_SCORE} = {next(peaks, f'w.{MAX_SCORE}[i]')};"
    sunk: dict[Expr, str] = {}
    if streaming.sink is not None:
        sunk = kernel.rescales()
        yield from _sink_lines(kernel, streaming.sink, sunk)
    if not streaming.terms:
        yield f"const vreal {_factor(0)} = {_of_live_rows(kernel, 'vreal(1)')};"
    for place, term in enumerate(streaming.terms):
        factor = kernel.of_row(term.factor)
        if term.rescale in sunk:
            factor = f"{factor} * {sunk[term.rescale]}"
        yield f"const vreal {_factor(place)} = {_of_live_rows(kernel, factor)};"
    if streaming.lse is not None:
        yield kernel.lse_line()


def out(kernel: CppKernel) -> str:
    """A column of the output."""
    count = max(1, len(kernel.streaming.terms))
    return " + ".join(f"{_factor(place)} * w.products.sum({place}, d, i)" for place in range(count))


def _of_live_rows(kernel: CppKernel, factor: str) -> str:
    """0 for a row without a live key, and where the divisor is 0."""
    text = f"unless_infinite({factor})"
    return f"select(lanes_of(w.alive[i]), {text}, vreal(0))" if kernel.plan.guards_rows else text


def _sink_lines(kernel: CppKernel, sink: Expr, alphas: Mapping[Expr, str]) -> Iterator[str]:
    """The sink joins the maximum after the keys, so that m_i stays that of the scores until then."""
    program = names_of(kernel.renamed(kernel.plan.last.program))
    rows = kernel.renamed(kernel.plan.last.own)
    maximum = next(part for part in kernel.statistics if part.name == "m_i")
    shift = shift_of(maximum)
    yield from kernel.statements(rows, program)
    text = kernel.printer.named(sink, program | names_of(rows), kernel.loads)
    yield f"const vreal sink_i = vreal({text});"
    yield "const vreal m_new = larger(m_i, sink_i);"
    yield f"const vreal {shift} = select(m_new == vreal(-INF), vreal(0), m_new);"
    for move, alpha in alphas.items():
        yield f"const vreal {alpha} = {kernel.rescale(move, [maximum])};"
    for part in kernel.statistics:
        if part.rescale is not None:
            yield f"{part.name} = {part.name} * {alphas[part.rescale]};"
    yield f"m_i = {shift};"


def _scaled(left: str, right: str, factors: Mapping[Expr, str], rescale: Expr | None) -> tuple[str, str]:
    """Two sums brought to the same maxima."""
    if rescale is None:
        return left, right
    return f"{left} * alpha{factors[rescale]}", f"{right} * beta{factors[rescale]}"


def _factor(place: int) -> str:
    return f"factor_{place}" if place else "factor"

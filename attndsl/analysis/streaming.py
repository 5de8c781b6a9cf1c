"""How a normalizer streams over the keys: which row statistics are kept, and what divides the row at the end.

In: a variant. Out: a `Streaming`, or the reasons why none is known. Expressions are over `Input(SCORE)` = the final
score of a pair, coordinates, captures, and `RowValue`s: a statistic under its name once it is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce

from attndsl.analysis.arithmetic import ZERO, call, mul, neg, select, sub, total
from attndsl.analysis.exponential import Exponential, divisors, exponential, is_positive
from attndsl.analysis.rescaling import rescaling
from attndsl.analysis.statistics import Kind as Kind
from attndsl.analysis.statistics import (
    Named,
    grown,
    named,
    nested_sums,
    rescale_or_none,
    row_values_in,
    scheduled,
    segment_positions,
)
from attndsl.analysis.statistics import Statistic as Statistic
from attndsl.analysis.terms import Pair, taken_apart
from attndsl.diagnostics import Diagnostic
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Reduce
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_expr
from attndsl.ir.rewrite import substitute
from attndsl.ir.types import Reduction
from attndsl.ir.variant import Variant

LSE = build.row_value("lse")
"""The log of the whole divisor of a row, of normalizers whose weight is `exp(x - lse)`."""

MAX_TERMS = 2
"""More accumulators of the output would not fit beside the tiles."""

MAX_PASSES = 2
"""Passes for statistics, or for those between two roots; one more is for the output."""

BRIEF = 60

Passes = tuple[tuple[Statistic, ...], ...]


@dataclass(frozen=True, slots=True)
class Term:
    """`factor * sum of value * v`: one accumulator of the output. The factor is free of the key and of the score.

    Summed over the terms, `factor * value` is the weight. `value` reads maxima, `rescale` is as for a statistic.
    """

    factor: Expr
    value: Expr
    rescale: Expr | None = None


@dataclass(frozen=True, slots=True)
class Streaming:
    """What passes over the keys compute.

    `passes` are the statistics by the pass that computes them, each in order of dependence, maxima first. When
    `terms` is not empty, the last pass also sums the output (online: one pass in all, without statistics where it needs
    none: `((),)`); when it is, one more pass does, with every statistic known.

    `weight` is the final weight of a pair, weight mods included, once `kept` are known: names of statistics, or `lse`
    alone where the normalizer has one. `lse` is then its value from the statistics, else `None`.
    `sink`, of one shifted by its row maximum, is the largest value that joins the maximum before `lse` and the factors
    are computed, with the sums rescaled: so nothing overflows, and a row without a live key has the lse of its sinks.
    `notes` say in words what was derived, one line each, for `explain`.
    """

    passes: tuple[tuple[Statistic, ...], ...]
    terms: tuple[Term, ...]
    weight: Expr
    kept: tuple[str, ...]
    lse: Expr | None
    notes: tuple[str, ...] = ()
    sink: Expr | None = None

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        return tuple(statistic for part in self.passes for statistic in part)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a variant has no streaming form (or, of `backward.Backward`, no derivative kernels): all reasons."""

    reasons: tuple[Diagnostic, ...]


def stream(variant: Variant) -> Streaming | Refusal:
    """The streaming form of the normalizer and the weight mods of a variant."""
    kin = exponential(variant.normalizer)
    row = row_form(variant)
    weight, lse = row.roots
    passes = scheduled(row.statistics)
    reasons = tuple(_too_deep(variant, row, passes))
    if reasons:
        return Refusal(reasons)
    looks_for_roots = any(statistic.kind is Kind.SOLVE for statistic in row.statistics)
    terms = () if len(passes) > 1 or looks_for_roots else _terms(weight, row.statistics)
    if kin is not None and kin.sinks is not None:
        kept: tuple[str, ...] = (LSE.name,)
        weight = substitute(variant.weight, {build.WEIGHT: from_lse(kin)})
    else:
        weight = total(mul(term.value, term.factor) for term in terms) if terms else weight
        kept = _kept(weight, row.statistics)
    notes = tuple(_notes(passes, terms, kin))
    return Streaming(passes or ((),), terms, weight, kept, None if kin is None else lse, notes, _sink(kin))


def row_form(variant: Variant) -> Named:
    """The final weight and, where the normalizer has one, its lse (else 0), over named row statistics."""
    kin = exponential(variant.normalizer)
    normalized = select(_vanishes(variant.normalizer), ZERO, variant.normalizer)
    return named(substitute(variant.weight, {build.WEIGHT: normalized}), ZERO if kin is None else kin.lse)


def _vanishes(normalizer: Expr) -> Expr:
    """The condition under which a row has no weight: a divisor is 0. False where that is known not to happen."""
    return build.disjunction(
        [build.apply(Op.EQ, divisor, ZERO) for divisor in divisors(normalizer) if not is_positive(divisor)]
    )


def from_lse(kin: Exponential) -> Expr:
    """The normalized weight by its lse, which is -inf where the divisor is 0."""
    weight = call(Op.EXP, sub(kin.exponent, LSE))
    if is_positive(kin.divisor):
        return weight
    return select(build.apply(Op.EQ, LSE, build.real(-math.inf)), ZERO, weight)


def _kept(weight: Expr, statistics: tuple[Statistic, ...]) -> tuple[str, ...]:
    """What the weight and its derivative read: not the maxima that only the brackets of roots need."""
    totals = (statistic.solve.total for statistic in statistics if statistic.solve is not None)
    needed = row_values_in(weight, *totals, *(statistic.integrand for statistic in statistics))
    return tuple(statistic.name for statistic in statistics if statistic.name in needed)


def _terms(weight: Expr, statistics: tuple[Statistic, ...]) -> tuple[Term, ...]:
    """The accumulators of the output, summed in the pass that computes the statistics; none where that cannot be."""
    late = frozenset(statistic.name for statistic in statistics if statistic.kind is not Kind.MAX)
    running = grown(statistics)
    terms: list[Term] = []
    for factor, value in _streamable(taken_apart(weight, late) or (), running):
        rescale = rescaling(value, running)
        if rescale is None or len(terms) == MAX_TERMS:
            return ()
        terms.append(Term(factor, value, rescale_or_none(rescale)))
    return tuple(terms)


def _streamable(pairs: Iterable[Pair], running: Mapping[Expr, Expr]) -> Iterator[Pair]:
    """The terms, and of those that no one factor rescales, the summands."""
    for factor, value in pairs:
        match value:
            case Apply(op=Op.ADD | Op.SUB as op, args=(left, right)) if rescaling(value, running) is None:
                yield from _streamable(((factor, left), (factor if op is Op.ADD else neg(factor), right)), running)
            case _:
                yield factor, value


def _too_deep(variant: Variant, row: Named, passes: Passes) -> Iterator[Diagnostic]:
    """Statistics that take more passes over the keys than kernels make."""
    nested, positions = nested_sums(row.statistics), segment_positions(passes)
    for statistic in row.statistics:
        below = nested[statistic.name]
        if (statistic.kind is Kind.SUM and below) or positions[statistic.name] > MAX_PASSES:
            node = row.node_of(statistic)
            notes = [f"it reads {_described(variant, row, other)}" for other in row.statistics if other.name in below]
            yield Diagnostic(
                "normalizer-needs-more-passes",
                f"`{brief(node)}` takes more passes over the keys than kernels make",
                variant.origins.first(node),
                (*notes, "kernels pass over the keys for statistics, and once more for the weights"),
                'write it so that no sum reads another, or call it with `backend="reference"`',
            )


def _described(variant: Variant, row: Named, statistic: Statistic) -> str:
    node = row.node_of(statistic)
    span = variant.origins.first(node)
    return f"`{brief(node)}`" + ("" if span is None else f" ({span})")


def _sink(kin: Exponential | None) -> Expr | None:
    """The largest sink, where a row maximum is the shift."""
    if kin is None or not kin.sinks or not isinstance(kin.shift, Reduce) or kin.shift.reduction is not Reduction.MAX:
        return None
    return reduce(partial(build.apply, Op.MAX), kin.sinks)


def _notes(passes: Passes, terms: tuple[Term, ...], kin: Exponential | None) -> Iterator[str]:
    for number, part in enumerate(passes, 1):
        for statistic in part:
            yield f"pass {number}: {statistic.name} is {_meaning(statistic)}{_rescaled(statistic.rescale)}"
    for number, term in enumerate(terms):
        name = "acc" if number == 0 else f"acc_{number}"
        factor = f", times {on_one_line(term.factor)} at the end"
        yield f"{name} sums {on_one_line(term.value)} times the values{_rescaled(term.rescale)}{factor}"
    if not terms:
        yield f"pass {len(passes) + 1}: the weights, which read statistics of all keys"
    if kin is not None and kin.sinks is not None:
        yield f"the weight is exp({on_one_line(kin.exponent)} - lse), before weight mods"
        if kin.shift is ZERO:
            yield "the exponential is not shifted by a row maximum: large scores overflow"


def _meaning(statistic: Statistic) -> str:
    match statistic.kind:
        case Kind.MAX:
            return f"the maximum of {on_one_line(statistic.integrand)}"
        case Kind.SUM:
            return f"the sum of {on_one_line(statistic.integrand)}"
        case Kind.SOLVE:
            assert statistic.solve is not None
            return f"where the sum of {on_one_line(statistic.integrand)} is {on_one_line(statistic.solve.total)}"


def brief(statistic: Expr) -> str:
    """A statistic where its span shows all of it."""
    text = print_expr(statistic)
    if "\n" not in text and len(text) <= BRIEF:
        return text
    return f"{statistic.reduction.value}(...)" if isinstance(statistic, Reduce) else "row_solve(...)"


def on_one_line(expr: Expr) -> str:
    """An expression on one line."""
    return print_expr(expr).replace("\n", "; ")


def _rescaled(rescale: Expr | None) -> str:
    return "" if rescale is None else f", rescaled by {on_one_line(rescale)} when a maximum grows"

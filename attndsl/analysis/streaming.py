"""How a normalizer streams over the keys: which row statistics are kept, and what divides the row at the end.

In: a variant. Out: a `Streaming`, or the reasons why none is known. Expressions are over `Input(SCORE)` = the final
score of a pair, coordinates, captures, and `RowValue`s: a statistic under its name once it is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from attndsl.analysis.axes import axes_of
from attndsl.diagnostics import Diagnostic
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Input, Reduce, RowValue, Solve
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, substitute
from attndsl.ir.types import Axis, Reduction
from attndsl.ir.variant import Variant

LSE = build.row_value("lse")
"""The log of the whole divisor of a row, of normalizers whose weight is `exp(x - lse)`."""


class Kind(Enum):
    """How a statistic comes from the live keys of its row."""

    MAX = "max"
    SUM = "sum"
    SOLVE = "solve"


@dataclass(frozen=True, slots=True)
class Statistic:
    """A row statistic: the maximum or the sum of `integrand` over the live keys, or the root `solve` asks for.

    `name` is that of its `RowValue`: `m_i`, `m_i_1` for maxima, `l_i`, `l_i_1` for sums, `tau_i` for roots. The
    integrand reads earlier statistics by their `RowValue`. `rescale`, of a sum that reads maxima of its own pass, is
    what the sum so far is multiplied by when they grow from their `RowValue` to their `grown` one; `None` where it
    reads none.
    """

    name: str
    kind: Kind
    integrand: Expr
    rescale: Expr | None = None
    solve: Solve | None = None

    @property
    def value(self) -> RowValue:
        """The statistic once it is known; within its pass, what it is so far."""
        return build.row_value(self.name)

    @property
    def grown(self) -> RowValue:
        """A maximum after the tile at hand: `m_new` for `m_i`."""
        is_usual = self.name.startswith("m_i")
        return build.row_value(self.name.replace("m_i", "m_new") if is_usual else f"{self.name}_new")


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
    `terms` is not empty, the last pass also sums the output (online: one pass in all); when it is, one more pass does,
    with every statistic known.

    `weight` is the final weight of a pair, weight mods included, once `kept` are known: names of statistics, or `lse`
    alone where the normalizer has one. `lse` is then its value from the statistics, else `None`.
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
    reasons: list[Diagnostic] = []
    m, m_new = build.row_value("m_i"), build.row_value("m_new")
    shift = build.row(Reduction.MAX, build.SCORE)
    exponential = build.apply(Op.EXP, build.apply(Op.SUB, build.SCORE, shift))
    total = build.row(Reduction.SUM, exponential)
    divisor: Expr | None = None
    sink: Expr | None = None
    match variant.normalizer:
        case Apply(op=Op.DIV, args=(numerator, below)) if numerator is exponential:
            sink = _sink(below, total, shift)
            if below is total or sink is not None:
                divisor = below
        case _:
            pass
    if divisor is None:
        message = "no streaming form of this normalizer is known"
        notes, help_ = ("kernels stream softmax, with or without a sink",), 'call it with `backend="reference"`'
        span = variant.origins.first(variant.normalizer)
        reasons.append(Diagnostic("normalizer-not-streamable", message, span, notes, help_))
    if variant.weight is not build.WEIGHT:
        message, help_ = "kernels do not edit normalized weights", 'call it with `backend="reference"`'
        span = variant.origins.first(variant.weight)
        reasons.append(Diagnostic("weight-mod-not-streamable", message, span, (), help_))
    if reasons or divisor is None:
        return Refusal(tuple(reasons))
    sums = build.row_value("l_i")
    value = build.apply(Op.EXP, build.apply(Op.SUB, build.SCORE, m))
    rescale = build.apply(Op.EXP, build.apply(Op.SUB, m, m_new))
    whole = substitute(divisor, {total: sums, shift: m})
    return Streaming(
        passes=((Statistic("m_i", Kind.MAX, build.SCORE), Statistic("l_i", Kind.SUM, value, rescale)),),
        terms=(Term(build.apply(Op.DIV, build.real(1.0), whole), value, rescale),),
        weight=build.apply(Op.EXP, build.apply(Op.SUB, build.SCORE, LSE)),
        kept=("lse",),
        lse=build.apply(Op.ADD, m, build.apply(Op.LOG, whole)),
        sink=sink,
    )


def _sink(divisor: Expr, total: Expr, shift: Expr) -> Expr | None:
    if not (isinstance(divisor, Apply) and divisor.op is Op.ADD and total in divisor.args):
        return None
    match divisor.args[0] if divisor.args[1] is total else divisor.args[1]:
        case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(sink, shifted)),)) if shifted is shift:
            return sink if _is_row_value(sink) else None
        case Apply(op=Op.EXP, args=(Apply(op=Op.NEG, args=(shifted,)),)) if shifted is shift:
            return build.real(0.0)
        case _:
            return None


def _is_row_value(sink: Expr) -> bool:
    """Free of the score, of statistics and of the key."""
    return Axis.K not in axes_of(sink) and not any(isinstance(node, Input | Reduce) for node in postorder(sink))

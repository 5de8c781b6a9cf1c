"""The derivative of a variant's output by its scores and captured tensors, pair by pair.

In: a variant and its `Streaming`. Out: a `Backward`, or the reasons why there is none. Expressions are over
`Input(SCORE)` = the final score, `Input(DWEIGHT)` = the derivative by the final weight of the pair, coordinates,
captures, the `RowValue`s the forward keeps, and two more: `delta`, the row's sum of DWEIGHT times the final weight
(the product of output and its gradient, where nothing but the output has one), and `dlse`, the gradient of `lse`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from attndsl.analysis.arithmetic import ONE, ZERO, add, call, div, mul, neg, select, sub, total
from attndsl.analysis.calculus import cotangents, pull
from attndsl.analysis.exponential import Exponential, exponential, is_row
from attndsl.analysis.invariance import is_invariant
from attndsl.analysis.row_sums import DELTA as DELTA
from attndsl.analysis.row_sums import RowSums
from attndsl.analysis.statistics import Kind, Statistic, row_values_in
from attndsl.analysis.streaming import LSE, Refusal, Streaming, brief, from_lse, on_one_line, row_form
from attndsl.diagnostics import Diagnostic
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Load, RowValue
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, substitute
from attndsl.ir.variant import Variant

DLSE = build.row_value("dlse")
NET = build.row_value("net")


@dataclass(frozen=True, slots=True)
class RowFormula:
    """A value of each row under the name of its `RowValue`."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Backward:
    """Derivatives, in the order they are computed.

    `sums`: further sums over the live keys of each row, of these integrands: one more pass over the keys, none for
    softmax and its kin. `rows`: values once a row, from what is known then; later ones may read earlier ones.
    `kept` are the row values that `weight`, `dscore` and `dloads` read, apart from coordinates and captures.

    `weight` is the final weight, for the gradient of v. `dscore` is the derivative by the final score of the pair,
    which goes on through the score mods to q, k and captures. `dloads` are derivatives by captured elements that the
    normalizer and the weight mods read, pair by pair; `drows` those by elements that are alike along the keys, where
    they are known row by row and need no pass: an element may stand in both, then the two add.
    All are about live pairs; elsewhere they are not evaluated, or selected away. `drows` hold for every row, live or
    not.
    """

    sums: tuple[RowFormula, ...]
    rows: tuple[RowFormula, ...]
    kept: tuple[str, ...]
    weight: Expr
    dscore: Expr
    dloads: tuple[tuple[Load, Expr], ...]
    drows: tuple[tuple[Load, Expr], ...]
    notes: tuple[str, ...] = ()


def differentiate(variant: Variant, streaming: Streaming) -> Backward | Refusal:
    """The derivative of a variant that streams."""
    kin = exponential(variant.normalizer)
    if kin is not None and kin.sinks is not None:
        return _of_exponential(variant, streaming, kin)
    varying = [
        statistic
        for statistic in streaming.statistics
        if statistic.kind is Kind.MAX and not _is_constant(variant, streaming, statistic)
    ]
    if varying:
        return Refusal(tuple(_varies(variant, statistic) for statistic in varying))
    return _of_statistics(variant, streaming)


def _is_constant(variant: Variant, streaming: Streaming, maximum: Statistic) -> bool:
    """Whether nothing depends on a maximum, on the way it is computed aside."""
    if maximum.name not in streaming.kept:
        return True
    lse = ZERO if streaming.lse is None else streaming.lse
    return is_invariant((streaming.weight, lse), maximum, streaming.statistics)


def _varies(variant: Variant, maximum: Statistic) -> Diagnostic:
    row = row_form(variant)
    node = row.node_of(next(statistic for statistic in row.statistics if statistic.name == maximum.name))
    return Diagnostic(
        "maximum-not-invariant",
        f"the weights depend on `{brief(node)}` beyond a shift that cancels",
        variant.origins.first(node),
        ("in the backward of kernels a row maximum is a constant: right where the weights are the same for any other",),
        'subtract the maximum wherever the score stands, or call it with `backend="reference"`',
    )


def _of_exponential(variant: Variant, streaming: Streaming, kin: Exponential) -> Backward:
    """`w = mod(n)`, `n = exp(x - lse)`, lse = log(Σ exp(x) + Σ exp(c)): dlse/dx = n, dlse/dc = exp(c - lse).

    So the derivative by x is n * (dn - net), net the row's sum of n * dn less what flows into lse from outside; that by
    a sink is -net * exp(c - lse), in rows without a key too, whose lse is the sink.
    """
    normalized = from_lse(kin)
    sums = RowSums(streaming.weight)
    slope = _modified(variant, ONE, build.WEIGHT)
    net = sub(sums.of_gradient(mul(normalized, slope)), DLSE)
    through = mul(normalized, sub(_modified(variant, build.DWEIGHT, build.WEIGHT), NET))

    direct: list[tuple[Load, Expr]] = []
    drows = _of_sinks(kin.sinks or ())
    for load in _loads(variant.weight):
        known = sums.known(_modified(variant, ONE, load)) if is_row(load) else None
        if known is None:
            direct.append((load, _modified(variant, build.DWEIGHT, load)))
        else:
            drows.append((load, known))
    dscore, *by_exponent = cotangents(kin.exponent, through, [build.SCORE, *_loads(kin.exponent)]).values()
    dloads = [*zip(_loads(kin.exponent), by_exponent, strict=True), *direct]
    return _assembled(streaming, sums, [RowFormula("net", net)], dscore, dloads, drows)


def _modified(variant: Variant, seed: Expr, leaf: Expr) -> Expr:
    """The gradient of a leaf of the weight mods, at the weight normalized by lse."""
    kin = exponential(variant.normalizer)
    assert kin is not None
    return substitute(cotangents(variant.weight, seed, [leaf])[leaf], {build.WEIGHT: from_lse(kin)})


def _of_sinks(sinks: Iterable[Expr]) -> list[tuple[Load, Expr]]:
    found: list[tuple[Load, Expr]] = []
    for sink in sinks:
        share = call(Op.EXP, sub(sink, LSE))
        # Without a key and with a sink of -inf there is nothing to share, and no number says so.
        seed = select(_is_minus_infinity(LSE), ZERO, neg(mul(NET, share)))
        found += cotangents(sink, seed, _loads(sink)).items()  # type: ignore[arg-type]
    return found


def _of_statistics(variant: Variant, streaming: Streaming) -> Backward:
    """Any other normalizer: what flows into each statistic, latest first, then what flows into the pairs."""
    flowing = tuple(
        statistic
        for statistic in streaming.statistics
        if statistic.kind is not Kind.MAX and statistic.name in streaming.kept
    )
    sums = RowSums(streaming.weight)
    lse = _guarded_lse(variant)
    rows: list[RowFormula] = []
    into: dict[Statistic, RowValue] = {}
    for statistic in reversed(flowing):
        value = _into(statistic, streaming.weight, lse, into, sums)
        if value is not ZERO:
            rows.append(RowFormula(f"d{statistic.name}", value))
            into[statistic] = build.row_value(f"d{statistic.name}")

    through: list[tuple[Expr, Expr]] = [(_integrand(statistic), value) for statistic, value in into.items()]
    loads = _loads(streaming.weight, *(integrand for integrand, _ in through))
    known = {load: _by_row(load, streaming, sums) for load in loads}
    pairwise = [load for load in loads if known[load] is None]
    weighed = [(streaming.weight, build.DWEIGHT), *through]
    dscore, *both = _pulled(weighed, [build.SCORE, *pairwise])
    settled = [load for load in loads if known[load] is not None]
    dloads = [*zip(pairwise, both, strict=True), *zip(settled, _pulled(through, settled), strict=True)]
    drows = [(load, value) for load, value in known.items() if value is not None]
    drows += _of_rows(lse, into, streaming)
    return _assembled(streaming, sums, rows, dscore, dloads, drows)


def _into(statistic: Statistic, weight: Expr, lse: Expr, later: Mapping[Statistic, RowValue], sums: RowSums) -> Expr:
    """What flows into a statistic; into a root, what flows on from it to the sum it solves for.

    The root τ of Σ f = total moves by -Σ (∂f/∂x) / Σ (∂f/∂τ), or stays where no f moves with it.
    """
    value = statistic.value
    parts = [sums.of_gradient(cotangents(weight, ONE, [value])[value]), cotangents(lse, DLSE, [value])[value]]
    for other, flow in later.items():
        slope = sums.of(cotangents(_integrand(other), ONE, [value])[value])
        if other.solve is not None:
            slope = sub(slope, cotangents(other.solve.total, ONE, [value])[value])
        parts += [] if slope is ZERO else [mul(flow, slope)]
    found = total(parts)
    if statistic.solve is None or found is ZERO:
        return found
    rate = sums.of(_at_root(statistic, cotangents(statistic.integrand, ONE, [build.THRESHOLD])[build.THRESHOLD]))
    return select(build.apply(Op.EQ, rate, ZERO), ZERO, neg(div(found, rate)))


def _integrand(statistic: Statistic) -> Expr:
    return _at_root(statistic, statistic.integrand)


def _at_root(statistic: Statistic, expr: Expr) -> Expr:
    return substitute(expr, {build.THRESHOLD: statistic.value})


def _by_row(load: Load, streaming: Streaming, sums: RowSums) -> Expr | None:
    """What flows from the weights into an element that is alike along the row, where no further sum is needed."""
    if not is_row(load):
        return None
    slope = cotangents(streaming.weight, ONE, [load])[load]
    known = None if slope is ZERO else sums.known(slope)
    return None if known is None else _where_seen(known, streaming)


def _of_rows(lse: Expr, into: Mapping[Statistic, RowValue], streaming: Streaming) -> list[tuple[Load, Expr]]:
    """What flows into elements through lse, and through what roots make their sums equal to."""
    found = [*cotangents(lse, DLSE, _loads(lse)).items()]
    for statistic, flow in into.items():
        if statistic.solve is not None:
            by_total = cotangents(statistic.solve.total, neg(flow), _loads(statistic.solve.total))
            found += [(load, _where_seen(value, streaming)) for load, value in by_total.items()]
    return found  # type: ignore[return-value]


def _where_seen(value: Expr, streaming: Streaming) -> Expr:
    """0 in rows without a live key, where statistics are not numbers to calculate with."""
    maxima = [part for part in streaming.statistics if part.kind is Kind.MAX and part.name in streaming.kept]
    if not maxima or not row_values_in(value) & set(streaming.kept):
        return value
    return select(_is_minus_infinity(maxima[0].value), ZERO, value)


def _guarded_lse(variant: Variant) -> Expr:
    """lse as far as it has a derivative: none where the divisor is 0 or the shift is that of a row without keys."""
    kin, row = exponential(variant.normalizer), row_form(variant)
    lse = row.roots[1]
    if kin is None:
        return lse
    divisor, shift = (substitute(part, row.values) for part in (kin.divisor, kin.shift))
    empty = build.apply(Op.OR, build.apply(Op.EQ, divisor, ZERO), _is_minus_infinity(shift))
    return select(empty, build.real(-math.inf), lse)


def _pulled(seeds: Iterable[tuple[Expr, Expr]], wrt: Sequence[Expr]) -> list[Expr]:
    """The gradients of nodes when several expressions, some of them alike, have gradients."""
    merged: dict[Expr, Expr] = {}
    for root, seed in seeds:
        merged[root] = add(merged[root], seed) if root in merged else seed
    return list(pull(merged, wrt).values())


def _loads(*roots: Expr) -> tuple[Load, ...]:
    """The captured floats expressions read."""
    return tuple(node for node in postorder(*roots) if isinstance(node, Load) and node.dtype.is_float)


def _is_minus_infinity(value: Expr) -> Expr:
    return build.apply(Op.EQ, value, build.real(-math.inf))


def _assembled(
    streaming: Streaming,
    sums: RowSums,
    rows: Iterable[RowFormula],
    dscore: Expr,
    dloads: Iterable[tuple[Load, Expr]],
    drows: Iterable[tuple[Load, Expr]],
) -> Backward:
    by_pair, by_row = _added(dloads), _added(drows)
    pairwise = (streaming.weight, dscore, *(value for _, value in by_pair))
    kept = dict.fromkeys(node.name for node in postorder(*pairwise) if isinstance(node, RowValue))
    formulas = tuple(RowFormula(value.name, integrand) for integrand, value in sums.found.items())
    notes = tuple(_notes(streaming, formulas))
    return Backward(formulas, tuple(rows), tuple(kept), streaming.weight, dscore, by_pair, by_row, notes)


def _added(flows: Iterable[tuple[Load, Expr]]) -> tuple[tuple[Load, Expr], ...]:
    """One gradient an element; none where nothing flows."""
    found: dict[Load, Expr] = {}
    for load, value in flows:
        found[load] = add(found[load], value) if load in found else value
    return tuple((load, value) for load, value in found.items() if value is not ZERO)


def _notes(streaming: Streaming, sums: tuple[RowFormula, ...]) -> Iterator[str]:
    for statistic in streaming.statistics:
        if statistic.kind is Kind.MAX:
            yield f"{statistic.name} is a constant: the weights are the same for any number in its place"
    if not sums:
        yield "no further pass over the keys: what flows into each statistic is a multiple of the row's delta"
    for formula in sums:
        text = on_one_line(formula.value)
        yield f"one more pass over the keys: {formula.name}, the sum of {text}, is no multiple of the row's delta"

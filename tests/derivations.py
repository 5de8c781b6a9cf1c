"""Derivations carried out: what a kernel would compute from a `Streaming` and a `Backward`, in torch and float64.

In: a case, its derivation, inputs. Out: outputs and gradients, to be compared with the reference. The forward takes
keys in blocks, in any order, and keeps running statistics and accumulators; the backward knows only what was kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from strategies import Case
from torch import Tensor

from attndsl.analysis.backward import Backward
from attndsl.analysis.streaming import Kind, Statistic, Streaming
from attndsl.dense import Env, environment, evaluate
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Load
from attndsl.ir.rewrite import substitute
from attndsl.reference import live_pairs

Rows = dict[str, Tensor]
GUESS = build.row_value("guess")


@dataclass(frozen=True)
class Call:
    """A variant without score mods on inputs: its scores, and which pairs are live."""

    case: Case
    values: dict[str, Any]
    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    live: Tensor
    env: Env


def called(case: Case, q: Tensor, k: Tensor, v: Tensor, values: dict[str, Any]) -> Call:
    """The scores of a case, key heads repeated for the query heads that share them."""
    ratio = q.shape[1] // k.shape[1]
    k, v = k.detach().repeat_interleave(ratio, 1), v.detach().repeat_interleave(ratio, 1)
    q = q.detach()
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    live = live_pairs(case.variant, values, **case.grid).expand(scores.shape)
    env = environment(case.variant, values, **case.grid, dtype=torch.float64)
    return Call(case, values, q, k, v, scores, live, env)


def at(call: Call, expr: Expr, rows: Rows, columns: Tensor | None = None, **flows: Tensor) -> Tensor:
    """An expression over pairs of some columns, when row values are known."""
    names = {"dweight": build.DWEIGHT, "threshold": GUESS}
    leaves = {**call.env.leaves, build.SCORE: torch.where(call.live, call.scores, 0.0)}
    leaves |= {build.row_value(name): value for name, value in rows.items()}
    leaves |= {names[name]: value for name, value in flows.items()}
    if columns is not None:
        leaves[build.SCORE] = leaves[build.SCORE][..., columns]
        leaves[build.K] = leaves[build.K][..., columns]
    return evaluate(substitute(expr, {build.THRESHOLD: GUESS}), replace(call.env, leaves=leaves))


def forward(call: Call, streaming: Streaming, blocks: list[Tensor]) -> tuple[Rows, Tensor | None]:
    """The statistics, and the output where the last pass sums it."""
    rows: Rows = {}
    out = None
    for number, statistics in enumerate(streaming.passes, 1):
        if any(statistic.kind is Kind.SOLVE for statistic in statistics):
            (statistic,) = statistics
            rows[statistic.name] = _solved(call, statistic, rows)
            continue
        terms = streaming.terms if number == len(streaming.passes) else ()
        sums = _swept(call, statistics, terms, rows, blocks)
        if terms:
            parts = [at(call, term.factor, rows) * part for term, part in zip(terms, sums, strict=True)]
            out = torch.where(call.live.any(-1, keepdim=True), sum(parts), 0.0)
    return rows, out


def _swept(call: Call, statistics, terms, rows: Rows, blocks: list[Tensor]) -> list[Tensor]:
    """One pass over the keys: the statistics are added to `rows`, the sums of the terms' values are returned."""
    zero = call.scores.new_zeros(*call.scores.shape[:-1], 1)
    for statistic in statistics:
        rows[statistic.name] = zero - math.inf if statistic.kind is Kind.MAX else zero
    sums = [zero * 0 for _ in terms]
    for columns in blocks:
        live = call.live[..., columns]
        grown, before = dict(rows), dict(rows)
        for statistic in statistics:
            if statistic.kind is Kind.MAX:
                values = torch.where(live, at(call, statistic.integrand, rows, columns), -math.inf)
                grown[statistic.name] = torch.maximum(rows[statistic.name], values.amax(-1, keepdim=True))
                before[statistic.grown.name] = grown[statistic.name]
        for statistic in statistics:
            if statistic.kind is Kind.SUM:
                added = torch.where(live, at(call, statistic.integrand, grown, columns), 0.0).sum(-1, keepdim=True)
                grown[statistic.name] = _rescaled(call, statistic.rescale, rows[statistic.name], before) + added
        for index, term in enumerate(terms):
            weights = torch.where(live, at(call, term.value, grown, columns), 0.0)
            sums[index] = _rescaled(call, term.rescale, sums[index], before) + weights @ call.v[..., columns, :]
        rows.update(grown)
    return sums


def _rescaled(call: Call, rescale: Expr | None, value: Tensor, rows: Rows) -> Tensor:
    """What was summed so far; rows that have seen no key have summed nothing."""
    if rescale is None:
        return value
    return torch.where(value == 0, 0.0, value * at(call, rescale, rows))


def _solved(call: Call, statistic: Statistic, rows: Rows) -> Tensor:
    """The root by bisection."""
    solve = statistic.solve
    assert solve is not None
    low, high, wanted = (at(call, part, rows) for part in (solve.lower, solve.upper, solve.total))
    start = low
    for _ in range(80):
        middle = (low + high) / 2
        found = torch.where(call.live, at(call, solve.body, rows, threshold=middle), 0.0).sum(-1, keepdim=True)
        low, high = torch.where(found > wanted, middle, low), torch.where(found > wanted, high, middle)
    return torch.where(call.live.any(-1, keepdim=True), high, start)


def kept(call: Call, streaming: Streaming, rows: Rows) -> Rows:
    """What the forward keeps; lse of a row without keys is that of its sinks."""
    found = {name: rows[name] for name in streaming.kept if name in rows}
    if "lse" in streaming.kept:
        found["lse"] = lse_of(call, streaming, rows)
    return found


def lse_of(call: Call, streaming: Streaming, rows: Rows) -> Tensor:
    """lse after the sinks have joined the maximum; -inf where there is neither a key nor a sink."""
    assert streaming.lse is not None
    rows = _joined(call, streaming, rows)
    value = at(call, streaming.lse, rows).expand(*call.scores.shape[:-1], 1)
    return torch.where(value.isnan() | ~_seen(call, streaming), -math.inf, value)


def _seen(call: Call, streaming: Streaming) -> Tensor:
    """Rows that have an lse: those with a live key or a sink."""
    from attndsl.analysis.exponential import exponential

    kin = exponential(call.case.variant.normalizer)
    has_sink = kin is not None and bool(kin.sinks)
    return call.live.any(-1, keepdim=True) | torch.tensor(has_sink)


def _joined(call: Call, streaming: Streaming, rows: Rows) -> Rows:
    if streaming.sink is None:
        return rows
    joined = dict(rows)
    (maximum,) = (part for part in streaming.statistics if part.kind is Kind.MAX)
    joined[maximum.name] = torch.maximum(rows[maximum.name], at(call, streaming.sink, rows))
    moved = {**rows, maximum.grown.name: joined[maximum.name]}
    for part in streaming.statistics:
        if part.kind is Kind.SUM:
            joined[part.name] = _rescaled(call, part.rescale, rows[part.name], moved)
    return joined


def weights(call: Call, streaming: Streaming, rows: Rows) -> Tensor:
    return torch.where(call.live, at(call, streaming.weight, rows), 0.0)


def gradients(
    call: Call, backward: Backward, rows: Rows, d_out: Tensor, d_lse: Tensor
) -> tuple[Tensor, list[tuple[Load, Tensor]], list[tuple[Load, Tensor]]]:
    """The gradients of the scores, of elements by pair, and of elements by row, from what was kept."""
    size = call.scores.shape
    d_weight = torch.where(call.live, d_out @ call.v.transpose(-1, -2), 0.0)
    weight = torch.where(call.live, at(call, backward.weight, rows), 0.0)
    known = {**rows, "delta": (d_weight * weight).sum(-1, keepdim=True), "dlse": d_lse[..., None]}
    for formula in backward.sums:
        values = at(call, formula.value, rows, dweight=d_weight)
        known[formula.name] = torch.where(call.live, values, 0.0).sum(-1, keepdim=True)
    for formula in backward.rows:
        known[formula.name] = at(call, formula.value, known)
    held = {name: known[name] for name in backward.kept}

    def pairwise(value: Expr) -> Tensor:
        return torch.where(call.live, at(call, value, held, dweight=d_weight), 0.0)

    by_row = [(load, at(call, value, known).expand(*size[:-1], 1)) for load, value in backward.drows]
    return pairwise(backward.dscore), [(load, pairwise(value)) for load, value in backward.dloads], by_row


def captured(call: Call, flows: list[tuple[Load, Tensor]], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What flows into captured tensors from their elements."""
    env = replace(call.env, values={**call.env.values, **values})
    found = {name: torch.zeros_like(value) for name, value in values.items()}
    for load, flow in flows:
        element = evaluate(load, env).expand_as(flow)
        (gradient,) = torch.autograd.grad(element, values[load.tensor], flow)
        found[load.tensor] = found[load.tensor] + gradient
    return found

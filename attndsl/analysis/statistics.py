"""The row statistics of a normalizer by name, and the passes over the keys that compute them.

In: an expression with row statistics as nodes. Out: the same over `RowValue`s, a `Statistic` for each, and the passes:
a statistic comes in the first pass in which all it reads is known, a sum beside maxima it reads where it can be
rescaled as they grow, a root in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from attndsl.analysis.rescaling import rescaling
from attndsl.ir import build
from attndsl.ir.nodes import Const, Expr, Reduce, RowValue, Solve
from attndsl.ir.rewrite import postorder, substituted
from attndsl.ir.types import Reduction


class Kind(Enum):
    """How a statistic comes from the live keys of its row."""

    MAX = "max"
    SUM = "sum"
    SOLVE = "solve"


@dataclass(frozen=True, slots=True)
class Statistic:
    """A row statistic: the maximum or the sum of `integrand` over the live keys, or the root `solve` asks for.

    `name` is that of its `RowValue`: `m_i`, `m_i_1` for maxima, `l_i`, `l_i_1` for sums, `tau_i` for roots. The
    integrand reads earlier statistics by their `RowValue`; that of a root is the body of `solve`. `rescale`, of a sum
    that reads maxima of its own pass, is what the sum so far is multiplied by when they grow from their `RowValue` to
    their `grown` one; `None` where it does not change with them.
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
class Named:
    """`roots` over row values; the statistics in the order they read each other, each with the node it was."""

    roots: tuple[Expr, ...]
    statistics: tuple[Statistic, ...]
    values: Mapping[Expr, Expr]

    def node_of(self, statistic: Statistic) -> Expr:
        """The node a statistic was written as."""
        return next(node for node, value in self.values.items() if value is statistic.value)


NAMES = {Kind.MAX: "m_i", Kind.SUM: "l_i", Kind.SOLVE: "tau_i"}


def named(*roots: Expr) -> Named:
    """The expressions with every row statistic under its name."""
    values: dict[Expr, Expr] = {}
    found: list[Statistic] = []
    for node in postorder(*roots):
        if isinstance(node, Reduce | Solve):
            statistic = _statistic(node, values, found)
            found.append(statistic)
            values[node] = statistic.value
    moved = substituted(roots, values)
    return Named(tuple(moved[root] for root in roots), tuple(found), values)


def _statistic(node: Reduce | Solve, values: Mapping[Expr, Expr], before: list[Statistic]) -> Statistic:
    match node:
        case Reduce(reduction=reduction, arg=arg):
            kind = Kind.MAX if reduction is Reduction.MAX else Kind.SUM
            return Statistic(_name(kind, before), kind, substituted((arg,), values)[arg])
        case Solve(body=body, total=total, lower=lower, upper=upper):
            parts = (body, total, lower, upper)
            moved = substituted(parts, values)
            solve = build.solve(*(moved[part] for part in parts))
            return Statistic(_name(Kind.SOLVE, before), Kind.SOLVE, solve.body, solve=solve)


def _name(kind: Kind, before: list[Statistic]) -> str:
    count = sum(statistic.kind is kind for statistic in before)
    return NAMES[kind] if count == 0 else f"{NAMES[kind]}_{count}"


def reads(statistic: Statistic) -> frozenset[str]:
    """The names of the statistics another one reads."""
    return row_values_in(statistic.integrand if statistic.solve is None else statistic.solve)


def row_values_in(*roots: Expr) -> frozenset[str]:
    """The names of the row values expressions read."""
    return frozenset(node.name for node in postorder(*roots) if isinstance(node, RowValue))


def scheduled(statistics: tuple[Statistic, ...]) -> tuple[tuple[Statistic, ...], ...]:
    """The statistics by the pass that computes them, with their rescaling."""
    waiting = list(statistics)
    known: set[str] = set()
    passes: list[tuple[Statistic, ...]] = []
    while waiting:
        part = _next_pass(waiting, known)
        passes.append(part)
        names = {statistic.name for statistic in part}
        known |= names
        waiting = [statistic for statistic in waiting if statistic.name not in names]
    return tuple(passes)


def _next_pass(waiting: list[Statistic], known: set[str]) -> tuple[Statistic, ...]:
    ready = [statistic for statistic in waiting if reads(statistic) <= known]
    maxima = [statistic for statistic in ready if statistic.kind is Kind.MAX]
    sums = [statistic for statistic in ready if statistic.kind is Kind.SUM]
    for statistic in waiting:
        if statistic.kind is Kind.SUM and statistic not in ready:
            sums.extend(_beside(statistic, maxima, known))
    return (*maxima, *sums) or (ready[0],)


def _beside(statistic: Statistic, maxima: list[Statistic], known: set[str]) -> Iterable[Statistic]:
    """A sum that runs in one pass with maxima it reads, if it does."""
    if reads(statistic) <= known | {maximum.name for maximum in maxima}:
        factor = rescaling(statistic.integrand, grown(maxima))
        if factor is not None:
            yield replace(statistic, rescale=rescale_or_none(factor))


def grown(maxima: Iterable[Statistic]) -> dict[Expr, Expr]:
    """What running maxima become."""
    return {maximum.value: maximum.grown for maximum in maxima if maximum.kind is Kind.MAX}


def rescale_or_none(factor: Expr) -> Expr | None:
    """`None` for a factor of 1."""
    return None if isinstance(factor, Const) else factor


def nested_sums(statistics: tuple[Statistic, ...]) -> dict[str, frozenset[str]]:
    """The sums each statistic reads, through others but not through roots."""
    below: dict[str, frozenset[str]] = {}
    kinds = {statistic.name: statistic.kind for statistic in statistics}
    for statistic in statistics:
        read = [name for name in reads(statistic) if kinds[name] is not Kind.SOLVE]
        sums = frozenset(name for name in read if kinds[name] is Kind.SUM)
        below[statistic.name] = sums.union(*(below[name] for name in read))
    return below


def segment_positions(passes: tuple[tuple[Statistic, ...], ...]) -> dict[str, int]:
    """Which pass since the last root computes a statistic, from 1; 0 for roots."""
    positions: dict[str, int] = {}
    position = 0
    for part in passes:
        position = 0 if part[0].kind is Kind.SOLVE else position + 1
        positions.update(dict.fromkeys((statistic.name for statistic in part), position))
    return positions

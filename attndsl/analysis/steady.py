"""What keeps moving one way from query to query: then the first and the last query of a stretch have its extremes.

In: expressions free of the key, and the elements of captured tensors. Out: the loads along the queries that change
rarely enough to cut stretches there, and whether everything else moves one way in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from attndsl.analysis.axes import axes_of
from attndsl.analysis.intervals import Known
from attndsl.analysis.monotone import Trend, trend_in_query
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Load
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis

LOGIC = frozenset({Op.AND, Op.OR, Op.XOR, Op.NOT})
ORDERED = frozenset({Op.LT, Op.LE, Op.GT, Op.GE})
RARELY = 8
"""A tensor that changes more often than at every eighth query is looked at query by query."""


def steady_loads(roots: tuple[Expr, ...], queries: int, known: Known) -> frozenset[Load]:
    """The loads `t[..., q_idx]` of integer and bool tensors that change rarely."""
    return frozenset(
        load
        for load in _loads_along_queries(roots)
        if len(known.summaries[load.tensor].changes()[0]) * RARELY <= max(queries, RARELY)
    )


def move_one_way(bounds: Iterable[tuple[Expr, bool]], steady: frozenset[Load]) -> bool:
    """Whether the bounds of one side only ever move, together, one way while steady loads do not change.

    Each comes with whether it moves against its expression.
    """
    trends = ((trend_in_query(bound, steady), against) for bound, against in bounds)
    moves = {trend.reversed if against else trend for trend, against in trends}
    return Trend.UNKNOWN not in moves and not {Trend.RISING, Trend.FALLING} <= moves


def turn_once(gates: tuple[Expr, ...], steady: frozenset[Load]) -> bool:
    """Whether gates that are the same, condition by condition, at two queries are so in between."""
    return all(_turns_once(condition, steady) for gate in gates for condition in conditions(gate))


def conditions(gate: Expr) -> Iterator[Expr]:
    """What a boolean combines with `and`, `or`, `xor` and `not`."""
    seen: set[Expr] = set()
    stack = [gate]
    while stack:
        node = stack.pop()
        if isinstance(node, Apply) and node.op in LOGIC:
            stack.extend(arg for arg in node.args if arg not in seen)
            seen.update(node.args)
        else:
            yield node


def _turns_once(condition: Expr, steady: frozenset[Load]) -> bool:
    """Whether a condition that is the same at two queries is so in between."""
    match condition:
        case Apply(op=op, args=(left, right)) if op in ORDERED and left.dtype.is_int:
            return trend_in_query(build.apply(Op.SUB, left, right), steady) is not Trend.UNKNOWN
        case _:
            return trend_in_query(condition, steady) is Trend.FLAT


@lru_cache(maxsize=256)
def _loads_along_queries(roots: tuple[Expr, ...]) -> tuple[Load, ...]:
    return tuple(node for node in postorder(*roots) if isinstance(node, Load) and _runs_along_queries(node))


def _runs_along_queries(load: Load) -> bool:
    return (
        not load.dtype.is_float
        and bool(load.indices)
        and load.indices[-1] is build.Q
        and all(axes_of(index) <= {Axis.B, Axis.H} for index in load.indices[:-1])
    )

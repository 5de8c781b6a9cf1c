"""Under which conditions the value of a node matters: live pairs and taken branches.

In: a variant. Out: for every node the ways of reaching it, each a tuple of booleans that all hold. A node is reached on
a pair if in one of its ways all of them are true there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from attndsl.analysis.axes import axes_below
from attndsl.analysis.bounds import conjuncts
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis
from attndsl.ir.variant import Variant

Guards = tuple[Expr, ...]

MAX_WAYS = 8
"""Ways to reach a node that are kept apart; more become one guard, which ranges cannot use but evaluation can."""


@lru_cache(maxsize=64)
def ways_to_reach(variant: Variant) -> Mapping[Expr, tuple[Guards, ...]]:
    """How every node is reached, parents before operands."""
    live = conjuncts(variant.mask)
    reached: dict[Expr, tuple[Guards, ...]] = {}
    for root in variant.roots:
        reached[root] = _either(reached.get(root, ()), (() if root is variant.mask else live,))
    for node in reversed(list(postorder(*variant.roots))):
        for child, guard in _edges(node):
            ways = tuple(way if guard is None else (*way, guard) for way in reached[node])
            reached[child] = _either(reached.get(child, ()), ways)
    axes = axes_below(variant.normalizer)
    for node in axes:
        # The statistics of a row without live keys are computed too, so what they read is read in every row.
        if Axis.K not in axes[node]:
            reached[node] = _either((), tuple(tuple(g for g in way if g not in live) for way in reached[node]))
    return reached


def _edges(node: Expr) -> Iterator[tuple[Expr, Expr | None]]:
    """The operands of a node, each with what must hold for it to matter."""
    match node:
        case Apply(op=Op.WHERE, args=(condition, yes, no)):
            yield condition, None
            yield yes, condition
            yield no, build.apply(Op.NOT, condition)
        case Apply(op=Op.AND, args=(left, right)):
            yield left, None
            yield right, left
        case Apply(op=Op.OR, args=(left, right)):
            yield left, None
            yield right, build.apply(Op.NOT, left)
        case _:
            yield from ((child, None) for child in children(node))


def _either(known: tuple[Guards, ...], more: tuple[Guards, ...]) -> tuple[Guards, ...]:
    """The alternatives together; one implied by another that asks for less is dropped."""
    ways = {frozenset(way): tuple(dict.fromkeys(way)) for way in (*known, *more)}
    kept = tuple(way for key, way in ways.items() if not any(other < key for other in ways))
    if len(kept) <= MAX_WAYS:
        return kept
    return ((build.disjunction([build.conjunction(way) for way in kept]),),)

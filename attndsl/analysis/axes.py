"""Which of b, h, q, k a value depends on: the shape it is computed in and the loop it can be hoisted out of."""

from __future__ import annotations

from functools import lru_cache

from attndsl.ir.nodes import Coord, Expr, Input, Reduce, RowValue, Solve, children
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import AXIS_OF, Axis

PAIR = frozenset({Axis.B, Axis.H, Axis.Q, Axis.K})


def axes_below(*roots: Expr) -> dict[Expr, frozenset[Axis]]:
    """The axes of every node below the roots. Score and weight vary along all; a row statistic not along the keys."""
    axes: dict[Expr, frozenset[Axis]] = {}
    for node in postorder(*roots):
        match node:
            case Coord(coordinate=coordinate):
                axis = AXIS_OF.get(coordinate)
                axes[node] = frozenset() if axis is None else frozenset({axis})
            case Input():
                axes[node] = PAIR
            case RowValue():
                axes[node] = PAIR - {Axis.K}
            case Reduce() | Solve():
                axes[node] = frozenset[Axis]().union(*(axes[child] for child in children(node))) - {Axis.K}
            case _:
                axes[node] = frozenset[Axis]().union(*(axes[child] for child in children(node)))
    return axes


@lru_cache(maxsize=4096)
def axes_of(root: Expr) -> frozenset[Axis]:
    """The axes a value depends on."""
    return axes_below(root)[root]

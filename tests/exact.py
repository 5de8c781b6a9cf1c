"""The value of an integer or bool expression in Python's integers, by the operator table alone: an oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import facts
from attndsl.ir.rewrite import postorder

Step = tuple[Expr, Callable[..., int] | None, tuple[Expr, ...]]
"""A node, what its value is of those of others, None at a leaf, and the others."""


def value(root: Expr, leaves: Mapping[Expr, int]) -> int:
    """The value, given those of coordinates and parameters."""
    values: dict[Expr, int] = {}
    for node, exact, args in _steps(root):
        values[node] = leaves[node] if exact is None else exact(*[values[arg] for arg in args])
    return values[root]


@lru_cache(maxsize=64)
def _steps(root: Expr) -> tuple[Step, ...]:
    """What to compute in order; suites ask for the values of one expression at many points."""
    return tuple((node, *_rule(node)) for node in postorder(root))


def _rule(node: Expr) -> tuple[Callable[..., int] | None, tuple[Expr, ...]]:
    match node:
        case Const(value=constant):
            return lambda: int(constant), ()
        case Apply(op=op, args=args):
            exact = facts(op).exact
            assert exact is not None
            return exact, args
        case _:
            return None, ()

"""The value of an integer or bool expression in Python's integers, by the operator table alone: an oracle."""

from __future__ import annotations

from collections.abc import Mapping

from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import facts
from attndsl.ir.rewrite import postorder


def value(root: Expr, leaves: Mapping[Expr, int]) -> int:
    """The value, given those of coordinates and parameters."""
    values: dict[Expr, int] = {}
    for node in postorder(root):
        match node:
            case Const(value=constant):
                values[node] = int(constant)
            case Apply(op=op, args=args):
                exact = facts(op).exact
                assert exact is not None
                values[node] = exact(*(values[arg] for arg in args))
            case _:
                values[node] = leaves[node]
    return values[root]

"""Whether a score may be infinite though q and k are not: by what it reads or where a function of the key has a pole.

In: a score expression. Out: a yes that may be wrong, or a no that holds as long as nothing overflows and no number that
is the same for all keys of a row (a scalar, a slope of a head) is itself infinite.
"""

from __future__ import annotations

import math

from attndsl.analysis.axes import axes_below
from attndsl.ir.nodes import Apply, Const, Expr, Load
from attndsl.ir.ops import Op
from attndsl.ir.types import Axis

_POLES = {Op.LOG: 0, Op.LOG2: 0, Op.RSQRT: 0, Op.DIV: 1, Op.POW: 0, Op.FLOORDIV: 1}
"""Operators that are infinite at a finite operand, and which operand that is."""


def may_be_infinite(score: Expr) -> bool:
    """Whether a final score may be infinite at some keys of a row and finite at others."""
    axes = axes_below(score)
    return any(_is_source(node, axes) for node in axes)


def _is_source(node: Expr, axes: dict[Expr, frozenset[Axis]]) -> bool:
    match node:
        case Const(value=float(value)):
            return math.isinf(value)
        case Load():
            return node.dtype.is_float and Axis.K in axes[node]
        case Apply(op=op, args=args):
            return node.dtype.is_float and op in _POLES and Axis.K in axes[args[_POLES[op]]]
        case _:
            return False

"""Whether an integer expression only grows, or only falls, with the query.

Then its extremes over a tile of queries are at the first and the last of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache

from attndsl.analysis.axes import axes_of
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Load, children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis


class Trend(Enum):
    """How a value moves as the query index grows; `UNKNOWN` says nothing."""

    FLAT = 0
    RISING = 1
    FALLING = -1
    UNKNOWN = None

    @property
    def reversed(self) -> Trend:
        return {Trend.RISING: Trend.FALLING, Trend.FALLING: Trend.RISING}.get(self, self)


@lru_cache(maxsize=1024)
def trend_in_query(root: Expr, steady: frozenset[Expr] = frozenset()) -> Trend:
    """The trend of an integer expression in `q_idx`, by its structure; what is `steady` does not move."""
    trends: dict[Expr, Trend] = {}
    for node in postorder(root):
        trends[node] = Trend.FLAT if node in steady else _trend(node, trends)
    return trends[root]


def _trend(node: Expr, trends: Mapping[Expr, Trend]) -> Trend:
    if node is build.Q:
        return Trend.RISING
    operands = [trends[child] for child in children(node)]
    if Axis.Q not in axes_of(node) or (operands and all(trend is Trend.FLAT for trend in operands)):
        return Trend.FLAT
    if isinstance(node, Load) or not isinstance(node, Apply):
        return Trend.UNKNOWN
    match node.op:
        case Op.ADD | Op.MIN | Op.MAX:
            return _join(operands[0], operands[1])
        case Op.SUB:
            return _join(operands[0], operands[1].reversed)
        case Op.NEG:
            return operands[0].reversed
        case Op.MUL:
            left, right = node.args
            return _scaled(right, left, trends) if isinstance(left, Const) else _scaled(left, right, trends)
        case Op.FLOORDIV | Op.SHR if isinstance(node.args[1], Const):
            positive = node.op is Op.SHR or node.args[1].value > 0
            return operands[0] if positive else operands[0].reversed
        case _:
            return Trend.UNKNOWN


def _join(left: Trend, right: Trend) -> Trend:
    if left is Trend.FLAT:
        return right
    if right is Trend.FLAT or left is right:
        return left
    return Trend.UNKNOWN


def _scaled(value: Expr, factor: Expr, trends: Mapping[Expr, Trend]) -> Trend:
    match value, factor:
        case _, Const():
            return trends[value] if factor.value > 0 else trends[value].reversed
        case Apply(op=Op.FLOORDIV, args=(whole, divisor)), _ if divisor is factor and trends[factor] is Trend.FLAT:
            # The multiple of a number at or next to `whole`: it moves as that does, whatever the number's sign.
            return trends[whole]
        case _:
            return Trend.UNKNOWN

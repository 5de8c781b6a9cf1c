"""Integers that are never negative, and the divisions for which rounding towards zero is rounding down.

In: expressions. Out: their `//` and `%` that a kernel may compute as a processor does, given that positions are not
negative and that divisors that are scalars are positive.
"""

from __future__ import annotations

from attndsl.ir.nodes import Apply, Const, Coord, Expr, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder


def natural_divisions(roots: tuple[Expr, ...]) -> frozenset[Expr]:
    """The `//` and `%` whose operands are never negative where the launcher's conditions hold."""
    sure: set[Expr] = set()
    for node in postorder(*roots):
        if _is_natural(node, sure):
            sure.add(node)
    divisors = {
        node.args[1]
        for node in postorder(*roots)
        if isinstance(node, Apply) and node.op in (Op.FLOORDIV, Op.MOD) and isinstance(node.args[1], Scalar)
    }
    return frozenset(
        node
        for node in postorder(*roots)
        if isinstance(node, Apply)
        and node.op in (Op.FLOORDIV, Op.MOD)
        and node.dtype.is_int
        and node.args[0] in sure
        and (node.args[1] in divisors or (isinstance(node.args[1], Const) and node.args[1].value > 0))
    )


def _is_natural(node: Expr, sure: set[Expr]) -> bool:
    """Whether an integer is never negative, given that its operands in `sure` are not."""
    if not node.dtype.is_int:
        return False
    match node:
        case Const(value=value):
            return value >= 0
        case Coord():
            return True
        case Apply(op=Op.ADD | Op.MUL | Op.MIN | Op.BIT_OR | Op.BIT_XOR, args=args):
            return all(arg in sure for arg in args)
        case Apply(op=Op.MAX | Op.BIT_AND, args=args):
            return any(arg in sure for arg in args)
        case Apply(op=Op.FLOORDIV, args=(left, Const(value=value))):
            return left in sure and value > 0
        case Apply(op=Op.MOD, args=(_, Const(value=value))):
            return value > 0
        case Apply(op=Op.SHR, args=(left, _)):
            return left in sure
        case Apply(op=Op.ABS | Op.BIT_LENGTH):
            return True
        case Apply(op=Op.WHERE, args=(_, yes, no)):
            return yes in sure and no in sure
        case _:
            return False

"""Scalars whose sign a variant's own requirements settle for every call.

In: requirements. Out: the integer scalars that are at least 1 wherever the variant runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from attndsl.analysis.linear import linear
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.requirement import Requirement


def positive_scalars(requirements: Iterable[Requirement]) -> frozenset[Expr]:
    """Scalars with a requirement like `chunk >= 1`, `0 < chunk` or, among other conditions, `chunk >= 4 and ...`."""
    return frozenset(found for each in requirements for found in _positive(each.condition))


def _positive(condition: Expr) -> Iterable[Expr]:
    match condition:
        case Apply(op=Op.AND, args=args):
            return (found for arg in args for found in _positive(arg))
        case Apply(op=Op.GE, args=(left, right)) if left.dtype.is_int:
            return _at_least_one(left, right, 0)
        case Apply(op=Op.GT, args=(left, right)) if left.dtype.is_int:
            return _at_least_one(left, right, 1)
        case Apply(op=Op.LE, args=(left, right)) if left.dtype.is_int:
            return _at_least_one(right, left, 0)
        case Apply(op=Op.LT, args=(left, right)) if left.dtype.is_int:
            return _at_least_one(right, left, 1)
        case _:
            return ()


def _at_least_one(larger: Expr, smaller: Expr, by: int) -> Iterable[Expr]:
    """The scalar that is at least 1 where `larger >= smaller + by`, if there is one."""
    form = linear(build.apply(Op.SUB, larger, smaller)).plus(-by)
    match form.terms:
        case ((Scalar() as scalar, 1),) if form.constant <= -1:
            return (scalar,)
        case _:
            return ()

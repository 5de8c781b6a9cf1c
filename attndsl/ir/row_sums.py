"""Further outputs of a row: sums over its live keys of what is made of the final weights.

In: a predicate, for a mass. Out: `RowSum`s, data that the reference evaluates and kernels add up beside the output.
"""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.variant import Param


@dataclass(frozen=True, slots=True)
class RowSum:
    """The sum of `term` over the live keys of each row.

    `term` is a float over `Input(WEIGHT)` = the final weight of the pair, coordinates and `params`.
    """

    name: str
    term: Expr
    params: tuple[Param, ...] = ()


def entropy() -> RowSum:
    """-w log w, which is 0 at w = 0."""
    product = build.apply(Op.MUL, build.WEIGHT, build.apply(Op.LOG, build.WEIGHT))
    is_zero = build.apply(Op.EQ, build.WEIGHT, build.real(0.0))
    term = build.apply(Op.WHERE, is_zero, build.real(0.0), build.apply(Op.NEG, product))
    return RowSum("entropy", term)


def mass(name: str, predicate: Expr, params: tuple[Param, ...]) -> RowSum:
    """The weight of the keys at which a predicate over coordinates and captures holds."""
    return RowSum(name, build.apply(Op.WHERE, predicate, build.WEIGHT, build.real(0.0)), params)

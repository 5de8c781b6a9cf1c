"""Whether every key between the union bounds of a query tile is seen by one of its queries.

Then the bounds alone tell which keys of a partial tile take part, and nothing needs to be reduced over its rows. The
live keys of single queries must leave no gap between them: bounds that do not move with the query clip all of them
alike; of those that move one on a side is enough, and two must move together, by at most a key a query.
"""

from __future__ import annotations

from enum import Enum, auto

from attndsl.analysis.axes import axes_of
from attndsl.analysis.bounds import KeyRange
from attndsl.analysis.linear import linear
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Axis


class Cover(Enum):
    """`ALWAYS`; `WHERE_NOT_EMPTY`: if the lower bound is not above the upper one, which then holds for all queries or
    for none; `UNKNOWN`."""

    ALWAYS = auto()
    WHERE_NOT_EMPTY = auto()
    UNKNOWN = auto()


def coverage(keys: KeyRange) -> Cover:
    """What the shapes of the bounds prove."""
    lower, upper = _moving(keys.lower), _moving(keys.upper)
    if keys.gates or not keys.is_exact or len(lower) > 1 or len(upper) > 1:
        return Cover.UNKNOWN
    if not (lower and upper):
        return Cover.ALWAYS
    return Cover.WHERE_NOT_EMPTY if _move_together(lower[0], upper[0]) else Cover.UNKNOWN


def _moving(bounds: tuple[Expr, ...]) -> tuple[Expr, ...]:
    return tuple(bound for bound in bounds if Axis.Q in axes_of(bound))


def _move_together(lower: Expr, upper: Expr) -> bool:
    """Both are `q_idx` (or `-q_idx`) plus something that does not move."""
    forms = (linear(lower), linear(upper))
    steps = {form.coefficient(build.Q) for form in forms}
    still = all(Axis.Q not in axes_of(term) for form in forms for term, _ in form.without(build.Q).terms)
    return still and steps in ({1}, {-1})

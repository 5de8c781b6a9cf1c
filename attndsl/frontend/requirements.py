"""Requirements as both front ends add them to a program.

In: a condition a user wrote, and what to say where it does not hold. Out: a `Requirement` in the builder, or a report.
"""

from __future__ import annotations

from attndsl.diagnostics import Span
from attndsl.frontend.builder import Builder
from attndsl.ir.nodes import Coord, Expr, Input, Load, Reduce, Solve
from attndsl.ir.requirement import Requirement, strangers


def add_requirement(builder: Builder, condition: Expr, message: str, span: Span | None) -> None:
    """Ask this of every call; asking the same twice is asking it once."""
    if not condition.dtype.is_bool:
        problem = f"a requirement has type {condition.dtype.value}, expected bool"
        help_ = "compare with something, e.g. `window >= 1`"
        builder.reporter.error("requirement-not-boolean", problem, span, help=help_)
        return
    foreign = ", ".join(sorted({f"`{_name(leaf)}`" for leaf in strangers(condition)}))
    if foreign:
        problem = f"a requirement is about a whole call and cannot read {foreign}"
        help_ = "use `q_len`, `kv_len`, scalar parameters, and `q_idx` for what every query must keep"
        builder.reporter.error("requirement-operand", problem, span, help=help_)
        return
    builder.requirements.setdefault((condition, message), Requirement(condition, message, span))


def _name(leaf: Expr) -> str:
    match leaf:
        case Coord(coordinate=coordinate):
            return coordinate.value
        case Load(tensor=tensor):
            return tensor
        case Input(flow=flow):
            return flow.value
        case Reduce(reduction=reduction):
            return reduction.value
        case Solve():
            return "row_solve"
        case _:
            raise AssertionError(leaf)

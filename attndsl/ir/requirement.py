"""What a variant asks of every call: a condition on the host, never part of a kernel."""

from __future__ import annotations

from dataclasses import dataclass, field

from attndsl.diagnostics import Span
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Scalar, postorder

ABOUT_A_CALL = frozenset({build.Q_LEN, build.KV_LEN, build.Q})
"""The lengths, and `q_idx`, which here stands for each position of a query: offsets reach a requirement through it."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """`condition` over lengths, scalars and `q_idx` holds in a call, for every query of it; else `message` says why."""

    condition: Expr
    message: str
    span: Span | None = field(default=None, compare=False, repr=False)


def strangers(condition: Expr) -> tuple[Expr, ...]:
    """The leaves of a condition that one call has many of: other coordinates, elements, values of stages."""
    leaves = (node for node in postorder(condition) if not isinstance(node, Apply | Const | Scalar))
    return tuple(leaf for leaf in leaves if leaf not in ABOUT_A_CALL)

"""The normalizers both front ends know by name, as the mathematics they are."""

from __future__ import annotations

from attndsl.diagnostics import Span
from attndsl.frontend.builder import Builder
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Reduction


def softmax(builder: Builder, sink: Expr | None = None, span: Span | None = None) -> Expr:
    """exp(s) / (exp(sink) + sum exp(s)) over the live keys, shifted by the row's maximum; no sink, no first term."""
    shift = builder.row(Reduction.MAX, build.SCORE, span)
    weight = builder.call("exp", [builder.infix("-", build.SCORE, shift, span)], span)
    total = builder.row(Reduction.SUM, weight, span)
    if sink is not None:
        total = builder.infix("+", builder.call("exp", [builder.infix("-", sink, shift, span)], span), total, span)
    return builder.infix("/", weight, total, span)

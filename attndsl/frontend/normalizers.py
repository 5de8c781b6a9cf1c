"""The normalizers both front ends know by name, as the mathematics they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attndsl.diagnostics import Span
from attndsl.frontend.builder import Builder
from attndsl.frontend.requirements import add_requirement
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Reduction

TOO_SMALL_K = "topk takes at least one key"
TOO_FEW_KEYS = "topk takes no more keys than a call has"


def softmax(builder: Builder, sink: Expr | None = None, span: Span | None = None) -> Expr:
    """exp(s) / (exp(sink) + sum exp(s)) over the live keys, shifted by the row's maximum; no sink, no first term."""
    shift = builder.row(Reduction.MAX, build.SCORE, span)
    weight = builder.call("exp", [builder.infix("-", build.SCORE, shift, span)], span)
    total = builder.row(Reduction.SUM, weight, span)
    if sink is not None:
        total = builder.infix("+", builder.call("exp", [builder.infix("-", sink, shift, span)], span), total, span)
    return builder.infix("/", weight, total, span)


def require_topk(builder: Builder, arguments: Mapping[str, Expr | None], span: Span) -> None:
    """1 <= k <= kv_len."""
    k = arguments["k"]
    if k is not None:
        add_requirement(builder, builder.infix(">=", k, build.integer(1), span), TOO_SMALL_K, span)
        add_requirement(builder, builder.infix("<=", k, build.KV_LEN, span), TOO_FEW_KEYS, span)


REQUIREMENTS: Mapping[str, Callable[[Builder, Mapping[str, Expr | None], Span], None]] = {"topk": require_topk}
"""What a normalizer of the library asks of its arguments, by its name."""

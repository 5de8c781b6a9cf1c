"""Score branches that are minus infinity become mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Input, children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.variant import Variant
from attndsl.passes.conditions import both, choice

FLOAT32_INFINITY = 2.0**128
"""Constants from here on may be infinite in a kernel."""


@dataclass(frozen=True, slots=True)
class Split:
    """A score as two facts: it is minus infinity unless `live` holds; where that holds it equals `value`.

    `finite` says that `value` is finite by construction, given a finite scaled dot product.
    """

    live: Expr
    value: Expr
    finite: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing was split off."""
        return self.live is build.TRUE


def mask_dead_scores(variant: Variant) -> Variant:
    """Move conditions under which the score is -inf into the mask, where tiles can be skipped by them.

    before: `score score * 2.0 if kv_idx <= q_idx else -inf`
    after:  `mask kv_idx <= q_idx`, `score score * 2.0`

    A sum with such a branch, `score + (0.0 if kv_idx <= q_idx else -inf)`, is split too where the other summand is
    finite by construction. The scaled dot product counts as finite, and so does what `+`, `-` and `*` make of it: a
    pair where they overflow had the score NaN and is dead now. A condition on the score stays: the mask is decided
    before scores are.
    """
    split = _splits(variant.score)[variant.score]
    if split.is_whole:
        return variant
    value = build.SCORE if split.live is build.FALSE else split.value
    origins = variant.origins.moved({variant.score: value})
    if origins.first(split.live) is None:
        # What was negated or put together is written nowhere: the score it stood in is.
        origins.add(split.live, *variant.origins.of(variant.score))
    moved = (*variant.moved_to_mask, split.live)
    return replace(variant, score=value, mask=both(variant.mask, split.live), origins=origins, moved_to_mask=moved)


def _splits(score: Expr) -> dict[Expr, Split]:
    splits: dict[Expr, Split] = {}
    scored: set[Expr] = set()
    for node in postorder(score):
        if isinstance(node, Input) or not scored.isdisjoint(children(node)):
            scored.add(node)
        splits[node] = _split(node, splits, scored)
    return splits


def _split(node: Expr, splits: Mapping[Expr, Split], scored: set[Expr]) -> Split:
    match node:
        case Input():
            return Split(build.TRUE, node, finite=True)
        case Const(value=value) if value == -math.inf:
            return Split(build.FALSE, build.real(0.0), finite=True)
        case Const(value=value):
            return Split(build.TRUE, node, finite=abs(value) < FLOAT32_INFINITY)
        case Apply(op=Op.WHERE, args=(condition, yes, no)) if condition not in scored and node.dtype.is_float:
            return _branches(node, condition, splits[yes], splits[no])
        case Apply(op=Op.ADD | Op.SUB | Op.MUL, args=(left, right)):
            return _arithmetic(node, splits[left], splits[right])
        case Apply(op=Op.NEG, args=(arg,)):
            return Split(build.TRUE, node, splits[arg].finite and splits[arg].is_whole)
        case Apply(op=Op.TO_FLOAT):
            return Split(build.TRUE, node, finite=True)
        case _:
            return Split(build.TRUE, node)


def _branches(node: Expr, condition: Expr, yes: Split, no: Split) -> Split:
    if yes.is_whole and no.is_whole:
        return Split(build.TRUE, node, yes.finite and no.finite)
    live = choice(condition, yes.live, no.live)
    if yes.live is build.FALSE:
        return Split(live, no.value, no.finite)
    if no.live is build.FALSE:
        return Split(live, yes.value, yes.finite)
    return Split(live, build.apply(Op.WHERE, condition, yes.value, no.value), yes.finite and no.finite)


def _arithmetic(node: Apply, left: Split, right: Split) -> Split:
    finite = left.finite and right.finite
    if left.is_whole and right.is_whole:
        return Split(build.TRUE, node, finite)
    adds = node.op is Op.ADD or (node.op is Op.SUB and right.is_whole)
    # -inf plus a finite summand is -inf; plus inf or NaN it is NaN, which is not dead.
    stays_dead = (left.is_whole or right.finite) and (right.is_whole or left.finite)
    if not (adds and stays_dead):
        return Split(build.TRUE, node)
    return Split(both(left.live, right.live), build.apply(node.op, left.value, right.value), finite)

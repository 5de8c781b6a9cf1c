"""Closed forms: the live keys of a query as an interval whose ends are expressions in the query.

In: a mask after `normalize_comparisons`, where an affine comparison stands solved for `kv_idx`. Out: a `KeyRange`, and
its two uses on a tile of queries, which are different facts (`union_bounds`, `intersection_bounds` in `codegen`).
"""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import Axis


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A conjunction read as bounds on the key.

    A pair is live iff `kv_idx >= e` for every e in `lower`, `kv_idx <= e` for every e in `upper`, and every `gates`
    and `residue` holds. Bounds and gates are free of `kv_idx`; the residue is what bounds nothing.
    """

    lower: tuple[Expr, ...] = ()
    upper: tuple[Expr, ...] = ()
    gates: tuple[Expr, ...] = ()
    residue: tuple[Expr, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether bounds and gates say everything: no residue."""
        return not self.residue

    @property
    def is_bounded(self) -> bool:
        """Whether anything bounds the keys, or gates the row."""
        return bool(self.lower or self.upper or self.gates)


def conjuncts(mask: Expr) -> tuple[Expr, ...]:
    """The terms of nested `and`s, left to right; none for `true`."""
    if mask is build.TRUE:
        return ()
    terms: list[Expr] = []
    stack = [mask]
    while stack:
        node = stack.pop()
        if isinstance(node, Apply) and node.op is Op.AND:
            stack.extend(reversed(node.args))
        else:
            terms.append(node)
    return tuple(dict.fromkeys(terms))


def key_range(mask: Expr) -> KeyRange:
    """The bounds a mask puts on the key, by the shape of its terms alone."""
    lower: list[Expr] = []
    upper: list[Expr] = []
    gates: list[Expr] = []
    residue: list[Expr] = []
    for term in conjuncts(mask):
        match term:
            case Apply(op=Op.GE, args=(left, right)) if left is build.K and Axis.K not in axes_of(right):
                lower.append(right)
            case Apply(op=Op.LE, args=(left, right)) if left is build.K and Axis.K not in axes_of(right):
                upper.append(right)
            case Apply(op=Op.EQ, args=(left, right)) if left is build.K and Axis.K not in axes_of(right):
                lower.append(right)
                upper.append(right)
            case _ if Axis.K not in axes_of(term):
                gates.append(term)
            case _:
                residue.append(term)
    return KeyRange(tuple(lower), tuple(upper), tuple(gates), tuple(residue))

"""Closed forms: the live keys of a query as an interval whose ends are expressions in the query.

In: a mask after `normalize_comparisons`, where an affine comparison stands solved for `kv_idx`. Out: a `KeyRange`, and
its two uses on a tile of queries, which are different facts (`union_bounds`, `intersection_bounds` in `codegen`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from attndsl.analysis.axes import axes_of
from attndsl.analysis.reals import is_enclosed
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Load, postorder
from attndsl.ir.ops import Op
from attndsl.ir.types import Axis

MAX_RANGES = 4
"""Ranges a kernel walks at most; a mask of more is a table."""


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


class Strategy(Enum):
    """How a kernel knows which key tiles to visit.

    `CLOSED_FORM`: from bounds, computed in the kernel; `TABLE`: from runs of tiles the host prepares, where the mask
    has terms that bound nothing but can be decided on tiles; `DENSE`: it visits all of them.
    """

    CLOSED_FORM = "closed_form"
    TABLE = "table"
    DENSE = "dense"


@lru_cache(maxsize=256)
def choose_strategy(mask: Expr) -> Strategy:
    """The strategy a mask allows: bounds where they say everything, tables where tiles can be decided."""
    if any(is_decidable(term) for keys in key_ranges(mask) for term in keys.residue):
        return Strategy.TABLE
    if mask is build.TRUE or any(keys.is_bounded for keys in key_ranges(mask)):
        return Strategy.CLOSED_FORM
    return Strategy.DENSE


@lru_cache(maxsize=256)
def is_decidable(term: Expr) -> bool:
    """Whether ranges can ever decide a term: something can be known of every float in it, without looking at as many
    as there are pairs."""
    return is_enclosed(term) and not any(_is_of_pairs(node) for node in postorder(term))


def _is_of_pairs(node: Expr) -> bool:
    """A float of a tensor that has one for each pair: to look at all of them costs what visiting every tile does."""
    if not isinstance(node, Load) or not node.dtype.is_float:
        return False
    axes = [axes_of(index) for index in node.indices]
    return any(Axis.Q in some for some in axes) and any(Axis.K in some and Axis.Q not in some for some in axes)


@lru_cache(maxsize=256)
def floats_looked_into(mask: Expr) -> tuple[str, ...]:
    """The float tensors whose elements decide where a mask holds."""
    made = (node for node in postorder(mask) if isinstance(node, Apply) and not node.dtype.is_float)
    deciding = (node for node in made if any(arg.dtype.is_float for arg in node.args) and is_decidable(node))
    loads = (load for node in deciding for load in postorder(node) if isinstance(load, Load) and load.dtype.is_float)
    return tuple(dict.fromkeys(load.tensor for load in loads))


def floats_planned_by(mask: Expr) -> tuple[str, ...]:
    """Those of which a call makes a table."""
    return floats_looked_into(mask) if choose_strategy(mask) is Strategy.TABLE else ()


def conjuncts(mask: Expr) -> tuple[Expr, ...]:
    """The terms of nested `and`s, left to right; none for `true`."""
    return () if mask is build.TRUE else _flattened(mask, Op.AND)


def disjuncts(term: Expr) -> tuple[Expr, ...]:
    """The terms of nested `or`s, left to right."""
    return _flattened(term, Op.OR)


def _flattened(root: Expr, op: Op) -> tuple[Expr, ...]:
    terms: list[Expr] = []
    seen: set[Expr] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, Apply) and node.op is op:
            stack.extend(reversed(node.args))
        else:
            terms.append(node)
    return tuple(terms)


@lru_cache(maxsize=256)
def key_ranges(mask: Expr, limit: int = MAX_RANGES) -> tuple[KeyRange, ...]:
    """A mask as a union of key ranges: a pair is live iff it is in one of them.

    An `or` is distributed over the rest while at most `limit` ranges come of it and each of its terms bounds something;
    one that is not stays in the residue. One range stands for a plain conjunction.
    """
    branches: list[list[Expr]] = [[]]
    for term in conjuncts(mask):
        choices = disjuncts(term)
        split = len(choices) > 1 and len(choices) * len(branches) <= limit and all(map(_bounds_something, choices))
        branches = [[*branch, choice] for branch in branches for choice in (choices if split else (term,))]
    ranges = (_key_range(tuple(part for term in branch for part in conjuncts(term))) for branch in branches)
    return tuple(dict.fromkeys(ranges))


def _bounds_something(term: Expr) -> bool:
    return _key_range(conjuncts(term)).is_bounded


def key_range(mask: Expr) -> KeyRange:
    """The bounds the terms of a conjunction put on the key, `or`s left in the residue."""
    return _key_range(conjuncts(mask))


def _key_range(terms: tuple[Expr, ...]) -> KeyRange:
    lower: list[Expr] = []
    upper: list[Expr] = []
    gates: list[Expr] = []
    residue: list[Expr] = []
    for term in dict.fromkeys(terms):
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

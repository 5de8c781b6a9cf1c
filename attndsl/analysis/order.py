"""Tensors in order along their last axis, and the bounds on the key that follow from comparing their elements.

In: comparisons of a load along the keys with something free of the key, and the elements at hand. Out: `Sought`, a
bound whose value is the place of something among the sorted elements, found by binary search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attndsl.analysis.axes import axes_of
from attndsl.analysis.summaries import Order, Summary
from attndsl.analysis.values import INT64_MAX, INT64_MIN, Array
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Load
from attndsl.ir.ops import Op
from attndsl.ir.types import Axis

MIRRORED = {Op.LT: Op.GT, Op.LE: Op.GE, Op.GT: Op.LT, Op.GE: Op.LE, Op.EQ: Op.EQ}


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """A bound on the key: the place of `value` among the elements `order`, after those equal to it or before.

    A lower bound is the first key that counts, an upper one the last. `indices` choose the row of the elements, whose
    numbers along each axis are `shape`.
    """

    order: Order
    shape: tuple[int, ...]
    indices: tuple[Expr, ...]
    value: Expr
    after: bool
    is_lower: bool

    @property
    def roots(self) -> tuple[Expr, ...]:
        """What must be known to find it."""
        return (self.value, *self.indices)

    def ends(self, values: Array, rows: Array) -> Array:
        """The bound for each value among the elements of its row."""
        goals = np.minimum(np.maximum(values, INT64_MIN), INT64_MAX).astype(np.int64)
        if self.order.falls:
            goals = ~goals
        places = np.empty(goals.shape, np.int64)
        for row in (0,) if len(self.order.rows) == 1 else np.unique(rows).tolist():
            elements, starts = self.order.rows[row]
            here = rows == row
            places[here] = starts[elements.searchsorted(goals[here], "right" if self.after else "left")]
        return places if self.is_lower else places - 1


def sought(term: Expr, summaries: Mapping[str, Summary], kv_len: int) -> tuple[Sought, ...]:
    """The bounds a term is, if it compares an ordered load along the keys with something free of the key."""
    match term:
        case Apply(op=op, args=(left, right)) if op in MIRRORED:
            for this, other, relation in ((left, right, op), (right, left, MIRRORED[op])):
                if isinstance(this, Load) and _runs_along_keys(this) and Axis.K not in axes_of(other):
                    summary = summaries[this.tensor]
                    order = summary.order(kv_len)
                    row = (summary.shape[:-1], this.indices[:-1])
                    return () if order is None else _bounds(order, row, other, relation)
    return ()


def _bounds(
    order: Order, row: tuple[tuple[int, ...], tuple[Expr, ...]], value: Expr, relation: Op
) -> tuple[Sought, ...]:
    """What `element ~ value` says of the key; where the elements fall, their complements rise."""
    if order.falls:
        relation = MIRRORED[relation]
    lower = Sought(order, *row, value, relation is Op.GT, is_lower=True)
    upper = Sought(order, *row, value, relation is not Op.LT, is_lower=False)
    if relation is Op.EQ:
        return (lower, upper)
    return (lower,) if relation in (Op.GE, Op.GT) else (upper,)


def _runs_along_keys(load: Load) -> bool:
    return (
        load.dtype.is_int
        and bool(load.indices)
        and load.indices[-1] is build.K
        and all(axes_of(index) <= {Axis.B, Axis.H} for index in load.indices[:-1])
    )

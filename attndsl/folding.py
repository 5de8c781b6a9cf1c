"""Few queries of heads that share keys, as rows of one head: keys are then read once for all of them.

In: a compilation and a call. Out: the program in which a row is a query and a head of its group, and the call on views
of the same queries; nothing where there is nothing to gain. From there on it is a program like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from attndsl.compiler import Compilation
from attndsl.ir import build
from attndsl.ir.names import free_names
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import substituted
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant
from attndsl.runtime.arguments import Call, Value
from attndsl.runtime.facts import FactBook
from attndsl.runtime.launch import Rows

MOST_QUERIES = 16
"""Calls with more queries fill tiles by themselves."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names of parameters: the heads of a group, the queries of a head, the position of the first query."""

    group: str
    queries: str
    first: str


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A program whose rows are queries and heads of a group."""

    compilation: Compilation
    facts: FactBook
    names: Names

    def call(self, call: Call) -> Call:
        """The call on it."""
        group = call.heads // call.kv_heads
        added = {self.names.group: group, self.names.queries: call.q_len, self.names.first: call.q_offset}
        q = call.q.unflatten(1, (call.kv_heads, group)).transpose(2, 3).flatten(2, 3)
        return replace(call, q=q, q_offset=0, values={**call.values, **added})


_folded: WeakKeyDictionary[Compilation, dict[bool, Folded]] = WeakKeyDictionary()


def folded(compilation: Compilation, call: Call) -> Folded | None:
    """The program for a call that no gradient is asked of; `None` where heads share nothing, or queries are many."""
    if (
        call.q_len > MOST_QUERIES
        or call.heads == call.kv_heads
        or not call.q_len
        or compilation.source.order is not None
    ):
        return None
    if torch.is_grad_enabled() and _learns(call):
        return None
    known = _folded.setdefault(compilation, {})
    by_batch = isinstance(call.q_offset, Tensor)
    if by_batch not in known:
        names = _names(compilation.source)
        known[by_batch] = Folded(Compilation(fold(compilation.source, names, by_batch)), FactBook(), names)
    return known[by_batch]


def unfolded(rows: Rows, call: Call) -> Rows:
    """The rows of a call, from those of its folded one."""
    group = call.heads // call.kv_heads

    def apart(value: Tensor) -> Tensor:
        by_head: Tensor = value.unflatten(2, (call.q_len, group)).transpose(2, 3)
        return by_head.flatten(1, 2)

    lse = None if rows.lse is None else apart(rows.lse)
    return Rows(apart(rows.out), lse, apart(rows.max_score))


def fold(variant: Variant, names: Names, offset_by_batch: bool) -> Variant:
    """The variant with heads `h * group + q_idx % group` and queries `first_query + q_idx // group`.

    before: `score score - slopes[h] * float(q_idx - kv_idx)`
    after:  `score score - slopes[h * group + q_idx % group] * float(first_query + q_idx // group - kv_idx)`
    """
    group = build.scalar(names.group, DType.I64)
    first = build.load(names.first, (build.B,), DType.I64) if offset_by_batch else build.scalar(names.first, DType.I64)
    head = build.apply(Op.ADD, build.apply(Op.MUL, build.H, group), build.apply(Op.MOD, build.Q, group))
    query = build.apply(Op.ADD, first, build.apply(Op.FLOORDIV, build.Q, group))
    length = build.scalar(names.queries, DType.I64)
    moves = substituted(variant.roots, {build.H: head, build.Q: query, build.Q_LEN: length})
    added: tuple[Param, ...] = (ScalarParam(names.group, DType.I64), ScalarParam(names.queries, DType.I64))
    added += (TensorParam(names.first, DType.I64, ("B",)) if offset_by_batch else ScalarParam(names.first, DType.I64),)
    moved = variant.map(moves.__getitem__)
    return replace(
        moved,
        params=(*variant.params, *added),
        origins=variant.origins.moved(moves),
        requirements=(),
        moved_to_mask=(),
    )


def _learns(call: Call) -> bool:
    values: Mapping[str, Value] = call.values
    tensors = (call.q, call.k, call.v, *values.values())
    return any(isinstance(one, Tensor) and one.requires_grad for one in tensors)


def _names(variant: Variant) -> Names:
    return Names(*free_names(variant, "group", "queries", "first_query"))

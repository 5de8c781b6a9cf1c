"""Calls outside of graphs: a look-up where one of their kind ran before, else every check, and a plan for the kind.

In: an instance, the tensors of a call, and how it is made. Out: the output, with the statistics that are asked for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch

from attndsl.execution import Prepared, prepare
from attndsl.instance import Instance
from attndsl.reference import Result, attend, weigh
from attndsl.runtime.agreement import check_agreement, check_weights
from attndsl.runtime.arguments import Call
from attndsl.runtime.backends import TARGETS, backend_named, chosen
from attndsl.runtime.kinds import How, kind_of
from attndsl.runtime.launch import Rows
from attndsl.runtime.statistics import Sums, wanted_statistics, with_statistics


def call(instance: Instance, q: Any, k: Any, v: Any, how: How) -> Any:
    """What the call returns."""
    kind, prepared = _prepared(instance, q, k, v, how)
    if prepared is not None:
        made = Call(q, k, v, prepared.scale, how.q_offset, instance.values)
        if prepared.stands(made):
            return prepared.result(made)
    return _first(instance, q, k, v, how, kind)


def _prepared(instance: Instance, q: Any, k: Any, v: Any, how: How) -> tuple[Hashable, Prepared | None]:
    """The kind of a call, `None` where it has none, and what was prepared for its kind."""
    if how.blocks is not None or how.check:
        return None, None
    try:
        kind = kind_of(q, k, v, how.q_offset, instance.tensors), instance.numbers, how.key
        return kind, instance.book.prepared(kind)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None, None  # what has no kind is refused by the checks, which say why


def _first(instance: Instance, q: Any, k: Any, v: Any, how: How, kind: Hashable) -> Any:
    """A call that nothing was prepared for: checked, and prepared for those that are like it."""
    wanted, asked = wanted_statistics(how.return_aux), backend_named(how.backend)
    made = instance.checked(q, k, v, scale=how.scale, enable_gqa=how.enable_gqa, q_offset=how.q_offset)
    if how.blocks is not None:
        routed = instance.routed(how.blocks, made, enable_gqa=how.enable_gqa)
        return call(routed, q, k, v, how._replace(blocks=None))
    sums = Sums() if wanted is None else wanted.sums(made)
    target = TARGETS.get(chosen(asked, made))
    facts = instance.facts(made)
    if how.check:
        _check_weights(instance, made, how)
    if target is None:
        return with_statistics(_dense(instance, made, how, sums), wanted)
    more = replace(made, values={**instance.values, **sums.values})
    prepared = prepare(instance.compilation, instance.book, more, facts, target, sums.sums, wanted)
    if kind is not None and prepared.is_lasting:
        instance.book.keep(kind, prepared)
    if not how.check:
        return prepared.result(more)
    rows = prepared.rows(more)
    _check(rows, _dense(instance, made, how, sums), q.dtype)
    return with_statistics(rows, wanted)


def _dense(instance: Instance, made: Call, how: How, sums: Sums) -> Result:
    """What the reference says of a call."""
    where = {"scale": made.scale, "enable_gqa": how.enable_gqa, "q_offset": made.q_offset, "sums": sums.sums}
    return attend(instance.source, {**made.values, **sums.values}, made.q, made.k, made.v, **where)


def _check(found: Rows, expected: Result, dtype: torch.dtype) -> None:
    """Raise when what a kernel left is not what the reference says."""
    for what in ("out", "lse", "max_score"):
        there, wanted = getattr(found, what), getattr(expected, what)
        if wanted is not None:
            check_agreement(what, there, wanted, dtype)


def _check_weights(instance: Instance, made: Call, how: How) -> None:
    """Raise when finite scores have weights that are not."""
    where = {"scale": made.scale, "enable_gqa": how.enable_gqa, "q_offset": made.q_offset}
    with torch.no_grad():
        weighed = weigh(instance.source, made.values, made.q, made.k, **where)
    check_weights(instance.source, weighed.scores, weighed.weights, made.q_offset)

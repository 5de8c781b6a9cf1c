"""Reads of captured tensors that are alike for several keys in a row, such as those of a table of blocks.

In: the expressions of a kernel. Out: the reads it makes once for every step of so many keys, and not once a pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Load
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, uses
from attndsl.ir.types import Axis


@dataclass(frozen=True, slots=True)
class Step:
    """`kv_idx // size`, alike for `size` keys in a row."""

    value: Expr
    size: int


def coarse_reads(roots: Iterable[Expr]) -> dict[Expr, Step]:
    """The reads of pairs that know of a key nothing but its step.

    A size is a power of two, as the number of keys of a tile is: a tile has whole steps, or lies in one. Nothing else
    reads the step, so that it need not be known of every key.
    """
    roots = tuple(dict.fromkeys(roots))
    loads = (node for node in postorder(*roots) if isinstance(node, Load))
    found = {load: step for load in loads if (step := _step(load)) is not None}
    counts = uses(roots)
    inside = Counter(index for load in found for index in load.indices)
    return {load: step for load, step in found.items() if counts[step.value] == inside[step.value]}


def _step(load: Load) -> Step | None:
    """The step a read of pairs knows keys by, if that is all it knows of them."""
    along = {index for index in load.indices if Axis.K in axes_of(index)}
    match [*along]:
        case [Apply(op=Op.FLOORDIV, args=(key, Const(value=int(size)))) as value] if key is build.K:
            is_power = size > 1 and size & (size - 1) == 0
            return Step(value, size) if is_power and Axis.Q in axes_of(load) else None
        case _:
            return None

"""Which facts hold in a call: what the fast kernel relies on, and what proofs are taken on.

In: a program after the passes, and the ranges, values and layouts of a call. Out: `Grants`, which answers for each
`Condition` and each fact of a proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attndsl.analysis.intervals import Box, Known
from attndsl.analysis.obligations import Layout, Verdict, check_call
from attndsl.analysis.proofs import Condition, Fact, holds, is_about_floats, row_proofs
from attndsl.analysis.values import Interval
from attndsl.dense import Env, evaluate
from attndsl.ir import build
from attndsl.ir.nodes import Expr, postorder
from attndsl.ir.types import Coordinate
from attndsl.ir.variant import Variant

LARGEST_FAST_LENGTH = 2**30
"""Above this, rounding a bound up to a tile could leave 32 bits."""


@dataclass(frozen=True, slots=True)
class Grants:
    """What a call grants; `holds` answers for one fact."""

    program: Variant
    box: Box
    known: Known
    scale: float
    verdict: Verdict

    def holds(self, fact: Fact) -> bool:
        """Whether a fact holds for every query of the call."""
        match fact:
            case Condition.INT32:
                return self.verdict.fits_int32 and self._is_short()
            case Condition.IN_BOUNDS:
                return self.verdict.reads_in_bounds
            case Condition.NATURAL:
                return self.verdict.nonneg
            case Condition.POSITIVE_SCALE:
                return self.scale > 0
        if is_about_floats(fact):
            return self._holds_in_floats(fact)
        return _is_empty(self.box.ranges[Coordinate.Q_IDX]) or holds(fact, self.box, self.known)

    @property
    def fast(self) -> bool:
        """Whether everything the fast kernel relies on holds."""
        return all(map(self.holds, relied_on(self.program)))

    def _holds_in_floats(self, fact: Expr) -> bool:
        """In the arithmetic of a kernel, in which large numbers are infinite; a fact about every query is not taken."""
        if any(node is build.Q for node in postorder(fact)):
            return False
        lengths = {build.Q_LEN: Coordinate.Q_LEN, build.KV_LEN: Coordinate.KV_LEN}
        leaves: dict[Expr, Tensor] = {
            node: torch.tensor(int(self.box.ranges[name].lo.item())) for node, name in lengths.items()
        }
        return bool(evaluate(fact, Env(leaves, self.known.scalars, torch.float32)))

    def _is_short(self) -> bool:
        coordinates = (Coordinate.Q_LEN, Coordinate.KV_LEN, Coordinate.Q_IDX)
        ends = (end for name in coordinates for end in (self.box.ranges[name].lo, self.box.ranges[name].hi))
        return all(abs(int(end.item())) < LARGEST_FAST_LENGTH for end in ends)


def grants_of(program: Variant, box: Box, known: Known, places: Mapping[str, Layout], scale: float) -> Grants:
    """The grants of a call."""
    return Grants(program, box, known, scale, check_call(program, box, known, places))


def relied_on(program: Variant) -> tuple[Fact, ...]:
    """Everything the fast kernel of a program relies on."""
    proven = (fact for proof in row_proofs(program.mask, program.score) for fact in proof.facts)
    return tuple(dict.fromkeys([*Condition, *proven]))


def _is_empty(interval: Interval) -> bool:
    return int(interval.lo.max()) > int(interval.hi.min())

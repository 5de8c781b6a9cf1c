"""Calls of one kind, prepared once: by which kernels they run, in which order of tokens, with which heads as rows.

In: a compilation, what is known of the call, the call. Out: a `Prepared`, which runs every call of the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attndsl.codegen.plan import Target
from attndsl.compiler import Compilation
from attndsl.engines import ENGINES
from attndsl.engines.kernels import Kernels
from attndsl.folding import Folded, folded, unfolded
from attndsl.ir.order import GridOrder
from attndsl.ir.row_sums import RowSum
from attndsl.runtime import autograd, order
from attndsl.runtime.arguments import Call
from attndsl.runtime.facts import FactBook, Facts
from attndsl.runtime.launch import Rows
from attndsl.runtime.statistics import Wanted, with_statistics
from attndsl.runtime.tuning import choices


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kind of calls, checked at a `scale` and planned, for as long as the `facts` stand; it holds no user's tensor.

    `tokens` is the order in which kernels keep tokens, `wanted` what is returned beside the output, `grouped` how calls
    of which no gradient is asked run with the heads of a group as rows of one, `choices` which tiles had been chosen.
    """

    engine: Kernels
    facts: Facts
    scale: float
    tokens: GridOrder | None
    wanted: Wanted | None
    choices: int
    grouped: tuple[Folded, Prepared] | None = None

    @property
    def is_lasting(self) -> bool:
        """Whether this may serve other calls: predicates of statistics are checked at every one."""
        lasts = self.facts.watch is not None and not (self.wanted is not None and self.wanted.masses)
        return lasts and (self.grouped is None or self.grouped[1].is_lasting)

    def stands(self, call: Call) -> bool:
        """Whether a call of this kind may be run without another look."""
        if self.choices != choices() or not self.facts.stand(call):
            return False
        return self.grouped is None or self.grouped[1].stands(self.grouped[0].call(call))

    def result(self, call: Call) -> Any:
        """The output, with the statistics that are wanted."""
        if self.wanted is None and self.tokens is None and self.grouped is None:
            return autograd.output(self.engine, call)
        return with_statistics(self.rows(call), self.wanted)

    def rows(self, call: Call) -> Rows:
        """The rows of a call by kernels, differentiable."""
        if self.grouped is not None and not autograd.is_recorded(call):
            fold, inner = self.grouped
            return unfolded(inner.rows(fold.call(call)), call)
        if self.tokens is None:
            return autograd.attend(self.engine, call)
        return order.restored(autograd.attend(self.engine, order.stored(call, self.tokens)), self.tokens)


def prepare(
    compilation: Compilation,
    book: FactBook,
    call: Call,
    facts: Facts,
    target: Target,
    sums: tuple[RowSum, ...] = (),
    wanted: Wanted | None = None,
) -> Prepared:
    """How calls like this one are run."""
    engine, grouped = ENGINES[target](compilation, book, facts, sums), None
    with torch.no_grad():  # whether gradients are asked for is each call's own affair
        fold = None if sums else folded(compilation, call)
    if fold is not None:
        inner, source, program = fold.call(call), fold.compilation.source, fold.compilation.program
        known = fold.facts.of(source, program, inner)
        grouped = fold, prepare(fold.compilation, fold.facts, inner, known, target)
    return Prepared(engine, facts, call.scale, compilation.source.order, wanted, choices(), grouped)


def attend(compilation: Compilation, book: FactBook, call: Call, facts: Facts, target: Target) -> Rows:
    """The rows of a call by kernels, differentiable."""
    return prepare(compilation, book, call, facts, target).rows(call)

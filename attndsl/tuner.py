"""Measuring tiles on the tensors of one call, and keeping the best for calls like it.

In: an instance, a call of it, what may be tried and for how long. Out: a `TuningReport`; `runtime.tuning` has the
winners.

Every tile is tried in a whole step, forward and backward, in which its one kernel is timed: tables, captured values and
sparsity are those of the call. Its results are held against the reference in float64 (`Judge`). A winner is measured
again in turns with the default, and must be faster by more than the noise. Everything is kept at the end: of tuning
that is interrupted nothing stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from attndsl.codegen.plan import Gather, Target
from attndsl.compiler import Compilation
from attndsl.diagnostics import CallError, VerifyError, fail
from attndsl.instance import Instance
from attndsl.judging import Judge
from attndsl.probing import Met, Probe, ProbedKernels, ProbedNativeKernels, Unfit
from attndsl.runtime.arguments import Call
from attndsl.runtime.facts import FactBook, Facts
from attndsl.runtime.launch import family_for
from attndsl.runtime.progress import Progress, progress
from attndsl.runtime.tiles import TileShape, is_within, limits_of, neighbours
from attndsl.runtime.tuning import device_name, keep_tile
from attndsl.runtime.tuning_report import KernelTuning, Trial, TuningReport
from attndsl.runtime.unfit import why_unfit

MARGIN = 1.02
"""How many times as fast as the default a tile must be to replace it."""

TURNS = 3
"""How often winner and default are measured in turns."""

NUMBERS = ("block_m", "block_n", "num_warps", "num_stages")
"""What a tile given as numbers is made of, in order; the last two may be left out."""


def tune(
    instance: Instance,
    call: Call,
    target: Target | None,
    backward: bool | None,
    candidates: Sequence[Any] | None,
    budget: float,
) -> TuningReport:
    """What `Attention.tune` does, its own arguments checked."""
    if target is None:
        help_ = 'use `backend="auto"`, "triton" or "cpu"'
        raise fail(CallError, "nothing-to-tune", "the reference has no tiles to tune", None, help=help_)
    if not budget > 0:
        raise fail(CallError, "bad-budget", f"`budget` is {budget!r}, expected a positive number of seconds")
    family = "cpu" if target is Target.CPP else family_for(call)
    given = None if candidates is None else tuple(_numbers(tile, family) for tile in candidates)
    tensors = (call.q, call.k, call.v, *call.values.values())
    learns = any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)
    kernels = instance.compilation, instance.book, instance.facts(call)
    tuner = Tuner(*kernels, call, target, learns if backward is None else backward)
    return tuner.tune(family, given, budget)


def _numbers(tile: Any, family: str) -> dict[str, int]:
    """A candidate by the names of its numbers."""
    given = tuple(getattr(tile, name) for name in NUMBERS) if isinstance(tile, TileShape) else tile
    is_tile = isinstance(given, tuple | list) and len(given) in (2, 4)
    if not is_tile or not all(isinstance(number, int) for number in given):
        message = f"a candidate is {tile!r}, expected (queries, keys) or (queries, keys, warps, stages)"
        raise fail(CallError, "bad-tile", message, None, help="for example `candidates=[(64, 64), (128, 32, 8, 2)]`")
    named, limits = dict(zip(NUMBERS, given, strict=False)), limits_of(family)
    if not is_within(family, replace(TileShape(0, 0, limits.warps[0], limits.stages[0]), **named)):
        message = f"the tile {tile} is beyond what kernels of this device are tried with"
        help_ = f"sides are powers of two {_span(limits.block)}, warps {_span(limits.warps)}, "
        raise fail(CallError, "bad-tile", message, None, help=f"{help_}stages {_span(limits.stages)}")
    return named


def _span(limits: tuple[int, int]) -> str:
    return f"from {limits[0]} to {limits[1]}"


@dataclass(frozen=True, slots=True)
class Tuner:
    """The kernels of one variant for one call."""

    compilation: Compilation
    book: FactBook
    facts: Facts
    call: Call
    target: Target
    backward: bool

    def tune(self, family: str, candidates: tuple[dict[str, int], ...] | None, budget: float) -> TuningReport:
        """Measure, check, choose, keep."""
        judge, end = Judge(self.compilation, self.call, self.backward), time.monotonic() + budget
        met = self._kernels(judge)
        search = _Search(self, judge, family, candidates, end)
        name, call = self.compilation.source.name, self.call
        with progress(f"tuning {name}") as shown:
            found = tuple(search.of(kernel, shown) for kernel in met.values())
        for result in found:
            spec, title = met[result.kernel].spec, self._title(result)
            keep_tile(self.compilation.fingerprint, result.kernel, spec, call, result.chosen, title)
        note = f"the {budget:g} seconds are over: what was left is not tried" if search.is_over else ""
        return TuningReport(name, device_name(call, self.target), found, len(judge.rows), call.q_len, note)

    def run(self, judge: Judge, probe: Probe) -> Probe:
        """One step with one kernel probed; raises where its results are wrong."""
        engine = ProbedNativeKernels if self.target is Target.CPP else ProbedKernels
        judge.judge(engine(self.compilation, self.book, self.facts, probe=probe))
        return probe

    def _kernels(self, judge: Judge) -> dict[str, Met]:
        """The kernels of a step with default tiles."""
        met = self.run(judge, Probe()).met if min(self.call.q.shape[:3]) else {}
        if not met:
            help_ = "give tensors like those of the calls to come"
            raise fail(CallError, "nothing-to-tune", "the call has no query, so no kernel runs", None, help=help_)
        return met

    def _title(self, result: KernelTuning) -> str:
        """What a record says for people."""
        call = self.call
        sizes = f"{call.batch * call.heads} heads, {call.q_len} x {call.kv_len}"
        what = f"{self.compilation.source.name}: {result.kernel}, {sizes}, on {device_name(call, self.target)}"
        return f"{what}: {result.chosen}, {result.gain:.2f} times as fast as the default"


@dataclass(slots=True)
class _Search:
    """The tiles of one kernel after the other, until the time is over."""

    tuner: Tuner
    judge: Judge
    family: str
    candidates: tuple[dict[str, int], ...] | None
    end: float
    is_over: bool = False

    def of(self, met: Met, shown: Progress) -> KernelTuning:
        """The default, and what is around the best so far for as long as it gets better."""
        trials = {met.tile: self._trial(met, met.tile, shown, is_default=True)}
        best, before = met.tile, None
        while best != before:
            before = best
            for tile in self._near(met, best):
                if tile not in trials and self._has_time():
                    trials[tile] = self._trial(met, tile, shown)
            best = min(trials.values(), key=lambda trial: float("inf") if trial.ms is None else trial.ms).tile
        gain = 1.0 if best == met.tile else self._gain(met, best)
        chosen, gain = (best, gain) if gain > MARGIN else (met.tile, 1.0)
        return KernelTuning(met.plan.kernel, tuple(trials.values()), chosen, gain)

    def _near(self, met: Met, best: TileShape) -> Iterator[TileShape]:
        """What to try beside the best so far: what is given, scheduled like the default."""
        is_square = met.plan.gather is Gather.DIAGONAL
        if self.candidates is None:
            yield from neighbours(self.family, best, is_square=is_square)
            return
        for numbers in self.candidates:
            tile = replace(met.tile, **numbers)
            yield replace(tile, block_n=tile.block_m) if is_square else tile

    def _has_time(self) -> bool:
        self.is_over = self.is_over or time.monotonic() > self.end
        return not self.is_over

    def _trial(self, met: Met, tile: TileShape, shown: Progress, *, is_default: bool = False) -> Trial:
        """One tile: what it takes, or why it is not to be had, as the default must be."""
        shown(f"{met.plan.kernel}, {tile}")
        if is_default:
            return Trial(tile, self._ms(met, None))
        try:
            return Trial(tile, self._ms(met, tile))
        except (Unfit, VerifyError) as error:
            return Trial(tile, None, str(error))
        except Exception as error:
            why = why_unfit(error)
            if why is None:
                raise
            return Trial(tile, None, why)

    def _gain(self, met: Met, tile: TileShape) -> float:
        """How many times as fast as the default a tile is, by the least of each in some turns."""
        turns = [(self._ms(met, None), self._ms(met, tile)) for _ in range(TURNS)]
        default, tuned = (min(times) for times in zip(*turns, strict=True))
        return default / tuned if tuned else 1.0

    def _ms(self, met: Met, tile: TileShape | None) -> float:
        return self.tuner.run(self.judge, Probe(met.plan.kernel, met.spec, tile)).ms

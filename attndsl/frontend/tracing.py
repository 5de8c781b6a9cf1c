"""Python functions to a `Variant`: run once with symbols for coordinates.

In: mods or plain functions for each stage. Out: `Program`, the variant and the values of its parameters. All mistakes
of all mods are reported together; exceptions a function raises itself pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attndsl.diagnostics import DiagnosticError
from attndsl.frontend import normalizers
from attndsl.frontend.bindings import Bindings
from attndsl.frontend.decorators import Mod, as_mod
from attndsl.frontend.dispatch import TensorMode
from attndsl.frontend.names import identifier
from attndsl.frontend.recorder import TraceRecorder, stage_of
from attndsl.frontend.run import NeedsValue
from attndsl.frontend.signatures import Stage
from attndsl.frontend.symbols import Symbol
from attndsl.ir import build
from attndsl.ir.names import renaming
from attndsl.ir.nodes import Expr, Load, Scalar
from attndsl.ir.rewrite import postorder, sweep
from attndsl.ir.types import Coordinate
from attndsl.ir.variant import Variant

MAX_TRIES = 16
"""Traces that may turn single scalars into constants before all of them become constants."""

MAX_NAME = 60

Mods = Callable[..., Any] | Sequence[Callable[..., Any]] | None


@dataclass(frozen=True, slots=True)
class Program:
    """A variant, the values of its parameters, and by name where each captured value was met (`frontend.closures`)."""

    variant: Variant
    bindings: Bindings
    keys: Mapping[str, Hashable]


@dataclass(frozen=True, slots=True)
class _Stages:
    score: tuple[Mod, ...]
    mask: tuple[Mod, ...]
    normalizer: tuple[Mod, ...]
    weight: tuple[Mod, ...]

    def name(self) -> str:
        """What a variant is called if its user does not say."""
        mods = (*self.mask, *self.score, *self.normalizer, *self.weight)
        labels = dict.fromkeys(mod.label for mod in mods if mod.label is not None)
        joined = "_".join(label for label in labels if label is not None)
        return identifier(joined)[:MAX_NAME].rstrip("_") if joined else "attention"


def trace(
    *,
    score_mod: Mods = None,
    mask_mod: Callable[..., Any] | None = None,
    normalizer: Callable[..., Any] | None = None,
    weight_mod: Mods = None,
    name: str | None = None,
    positional: bool = False,
) -> Program:
    """The variant these functions describe; `positional` reads plain functions in FlexAttention's order only."""
    stages = _Stages(
        _mods(Stage.SCORE, score_mod, positional),
        _mods(Stage.MASK, mask_mod, positional),
        _mods(Stage.NORMALIZER, normalizer, positional),
        _mods(Stage.WEIGHT, weight_mod, positional),
    )
    title = stages.name() if name is None else identifier(name)
    constants: frozenset[Hashable] = frozenset()
    for _ in range(MAX_TRIES):
        found = _run(stages, title, constants)
        if isinstance(found, Program):
            return found
        if found <= constants:  # a mod that is made anew in each trace: its parameters have no lasting identity
            break
        constants |= found
    program = _run(stages, title, None)
    assert isinstance(program, Program)
    return program


def _mods(stage: Stage, given: Mods, positional: bool) -> tuple[Mod, ...]:
    if given is None:
        return ()
    many = given if isinstance(given, list | tuple) else (given,)
    return tuple(as_mod(stage, function, positional) for function in many)


def _run(stages: _Stages, name: str, constants: frozenset[Hashable] | None) -> Program | frozenset[Hashable]:
    """One trace: the program, or the numbers that have to be constants."""
    recorder = TraceRecorder(_run.__code__, constants)
    try:
        with TensorMode(recorder):
            roots = _roots(recorder, stages)
        recorder.builder.reporter.check()
    except NeedsValue as need:
        return need.keys
    except DiagnosticError:
        raise
    except Exception as error:
        if recorder.builder.reporter:  # what it met was our placeholder, or our error in other words
            raise _reported(recorder) from error
        # The function may have met a symbol where it insists on a number; if not, it raises the same again.
        scalars = recorder.captures.scalar_keys()
        if not scalars:
            raise
        return scalars
    return _program(recorder, name, roots)


def _reported(recorder: TraceRecorder) -> DiagnosticError:
    try:
        recorder.builder.reporter.check()
    except DiagnosticError as error:
        return error
    raise AssertionError("a reporter with errors raises them")


def _roots(recorder: TraceRecorder, stages: _Stages) -> tuple[Expr, Expr, Expr, Expr]:
    score: Expr = build.SCORE
    for mod in stages.score:
        score = _edited(recorder, mod, score)
    mask: Expr = build.TRUE
    for mod in stages.mask:
        with stage_of(recorder, Stage.MASK):
            mask = recorder.finished(mod, recorder.evaluate(mod, _coordinates(recorder)))
    weights: Expr = build.SCORE
    if not stages.normalizer:
        weights = normalizers.softmax(recorder.builder)
    for mod in stages.normalizer:
        weights = _edited(recorder, mod, build.SCORE)
    weight: Expr = build.WEIGHT
    for mod in stages.weight:
        weight = _edited(recorder, mod, weight)
    return score, mask, weights, weight


def _edited(recorder: TraceRecorder, mod: Mod, value: Expr) -> Expr:
    """What a mod makes of the value that flows into it."""
    flow = mod.stage.flow
    assert flow is not None
    with stage_of(recorder, mod.stage):
        values = {**_coordinates(recorder), flow.value: Symbol(recorder, value)}
        return recorder.finished(mod, recorder.evaluate(mod, values))
    return value


def _coordinates(recorder: TraceRecorder) -> dict[str, Symbol]:
    return {coordinate.value: Symbol(recorder, build.coord(coordinate)) for coordinate in Coordinate}


def _program(recorder: TraceRecorder, name: str, roots: tuple[Expr, Expr, Expr, Expr]) -> Program:
    requirements = tuple(recorder.builder.requirements.values())
    conditions = tuple(requirement.condition for requirement in requirements)
    nodes = list(postorder(*roots, *conditions))
    used = {node.name for node in nodes if isinstance(node, Scalar)}
    used |= {node.tensor for node in nodes if isinstance(node, Load)}
    found = recorder.captures.finish(used)
    names = found.names
    variant = Variant(name, found.params, *roots, recorder.builder.origins, requirements, order=recorder.builder.order)
    if any(label != final for label, final in names.items()):
        moves = sweep((*roots, *conditions), renaming(names))
        requirements = tuple(replace(one, condition=moves[one.condition]) for one in requirements)
        variant = replace(
            variant.map(moves.__getitem__), origins=variant.origins.moved(moves), requirements=requirements
        )
    return Program(variant, found.bindings, found.keys)

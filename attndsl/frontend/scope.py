"""Names of the text language: which exist, which are taken, what each stage may use.

In: declarations as `parse` meets them. Out: `Scope`, which answers what a name means, and diagnostics for clashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from graphlib import CycleError, TopologicalSorter

from attndsl.diagnostics import Reporter, Span
from attndsl.frontend.layout import Layout
from attndsl.frontend.syntax import Syntax
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Input, Reduce, Solve, children
from attndsl.ir.ops import CALLS
from attndsl.ir.types import Coordinate, Flow, Reduction
from attndsl.ir.variant import Param

Value = Expr | None
"""A node, or nothing where a mistake left none."""

COORDINATES: Mapping[str, Expr] = {coordinate.value: build.coord(coordinate) for coordinate in Coordinate}
FLOWS: Mapping[str, Expr] = {Flow.SCORE.value: build.SCORE, Flow.WEIGHT.value: build.WEIGHT}
REDUCTIONS = {reduction.value: reduction for reduction in Reduction}
LITERALS: Mapping[str, bool | float] = {"true": True, "false": False, "inf": math.inf, "nan": math.nan}
FUNCTIONS = frozenset({*CALLS, *REDUCTIONS, "clamp", "row_solve", "softmax"})
KEYWORDS = frozenset({"and", "else", "if", "not", "or"})

RESERVED = KEYWORDS | FUNCTIONS | COORDINATES.keys() | FLOWS.keys() | LITERALS.keys()
"""What a parameter, a `let` or a `def` cannot be called."""


class Stage(Enum):
    """Where an expression stands; the value is the word users write."""

    MASK = "mask"
    SCORE = "score"
    NORMALIZER = "normalizer"
    WEIGHT = "weight"
    REQUIREMENT = "requirement"
    LET = "let"

    @property
    def offers(self) -> frozenset[str]:
        """The values and row statistics that exist here; a `let` may hold what the stage that uses it has."""
        return {
            Stage.MASK: frozenset[str](),
            Stage.SCORE: frozenset({"score"}),
            Stage.NORMALIZER: frozenset({"score", "row_solve", "softmax", *REDUCTIONS}),
            Stage.WEIGHT: frozenset({"weight"}),
            Stage.REQUIREMENT: frozenset[str](),
            Stage.LET: frozenset({"score", "row_solve", "softmax", "weight", *REDUCTIONS}),
        }[self]


def where_offered(name: str, stage: Stage) -> str:
    """Where a value or statistic that a stage lacks does exist, and what to write instead."""
    if stage is Stage.MASK and name == Flow.SCORE.value:
        return "a mask is known before scores are: write `score  score if score > 0.0 else -inf`; -inf is masked"
    stages = [f"`{stage.value}`" for stage in Stage if name in stage.offers and stage is not Stage.LET]
    return f"`{name}` exists in {' and '.join(stages)} items"


@dataclass(frozen=True, eq=False, slots=True)
class Def:
    """A function; one written in a body sees the parameters and lets of its attention."""

    name: str
    params: tuple[str, ...]
    body: Syntax
    span: Span
    is_local: bool


@dataclass(slots=True)
class Scope:
    """What the names of one attention stand for."""

    shared: Mapping[str, Def] = field(default_factory=dict)
    own: Mapping[str, Def] = field(default_factory=dict)
    params: dict[str, Param] = field(default_factory=dict)
    lets: dict[str, Value] = field(default_factory=dict)
    grids: dict[str, Layout] = field(default_factory=dict)
    later: frozenset[str] = frozenset()
    _needs: dict[Expr, frozenset[str]] = field(default_factory=dict)

    def function(self, name: str, seen_from: Def | None) -> Def | None:
        """The `def` of that name; one outside an attention sees only its like."""
        sees_body = seen_from is None or seen_from.is_local
        return self.shared.get(name) or (self.own.get(name) if sees_body else None)

    def grid(self, name: str, seen_from: Def | None) -> Layout | None:
        """The grid of that name, where the body of the attention is in sight."""
        return self.grids.get(name) if seen_from is None or seen_from.is_local else None

    def functions(self, seen_from: Def | None) -> set[str]:
        """Every function a `def` gives."""
        return {name for name in (*self.shared, *self.own) if self.function(name, seen_from) is not None}

    def has_inside(self, name: str) -> bool:
        """Whether the attention itself has a value of that name."""
        return name in self.params or name in self.lets

    def names(self, seen_from: Def | None) -> set[str]:
        """Every value a name may stand for."""
        known = {*COORDINATES, *FLOWS, *LITERALS}
        if seen_from is not None:
            known |= set(seen_from.params)
        if seen_from is None or seen_from.is_local:
            known |= self.params.keys() | self.lets.keys()
        return known

    def needs(self, value: Expr) -> frozenset[str]:
        """The stage values and row statistics an expression is made of."""
        stack = [value]
        while stack:
            node = stack[-1]
            missing = [child for child in children(node) if child not in self._needs]
            stack.extend(missing)
            if not missing:
                self._needs[stack.pop()] = _own_needs(node).union(*(self._needs[child] for child in children(node)))
        return self._needs[value]


def _own_needs(node: Expr) -> frozenset[str]:
    match node:
        case Input(flow=flow) if flow is not Flow.THRESHOLD:  # bound by the solve around it
            return frozenset({flow.value})
        case Reduce(reduction=reduction):
            return frozenset({reduction.value})
        case Solve():
            return frozenset({"row_solve"})
        case _:
            return frozenset()


def without_recursion(defs: Mapping[str, Def], reporter: Reporter) -> set[Def]:
    """Reports each cycle of calls; the functions that may be expanded, because expansion ends."""
    sound = set(defs.values())
    while (cycle := _cycle(defs, sound)) is not None:
        path = " -> ".join(f"`{function.name}`" for function in cycle)
        help_ = "functions are expanded where they are called: write the steps out, or index a table"
        reporter.error("recursive-def", f"`{cycle[0].name}` calls itself: {path}", cycle[0].span, help=help_)
        sound -= set(cycle)
    return sound


def _cycle(defs: Mapping[str, Def], sound: set[Def]) -> list[Def] | None:
    """One cycle of calls among the sound functions, from its first function in the text back to it."""
    calls = {
        caller: {defs[name] for name in _called(caller.body) if name in defs and defs[name] in sound}
        for caller in defs.values()
        if caller in sound
    }
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        path: list[Def] = error.args[1][:0:-1]
        first = min(path, key=lambda function: (function.span.line, function.span.column))
        start = path.index(first)
        return [*path[start:], *path[:start], first]
    return None


def _called(body: Syntax) -> list[str]:
    return [str(call.children[0]) for call in body.find_data("call")]


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """`did you mean ...`, if any known name comes near."""
    # Near misses are looked for among as many names as a person may have written: the search is quadratic.
    near = get_close_matches(name[:64], sorted(known)[:1000], n=1)
    return f"did you mean `{near[0]}`?" if near else None

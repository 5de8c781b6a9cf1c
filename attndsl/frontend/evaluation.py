"""The mods of a run: called with symbols, their results as their stages want them.

In: a mod and the values of coordinates. Out: what it returned, as a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndsl.diagnostics import Span
from attndsl.frontend.decorators import CombinedMask, Mod, invoke
from attndsl.frontend.lifting import Lifting
from attndsl.frontend.operands import Operands
from attndsl.frontend.run import Run
from attndsl.frontend.signatures import LENGTHS, Stage, code_of
from attndsl.frontend.spans import definition_span
from attndsl.frontend.symbols import Symbol
from attndsl.ir import build
from attndsl.ir.binding import open_nodes
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Coordinate


class Evaluation:
    """The mods of one run."""

    def __init__(self, run: Run, operands: Operands, lifting: Lifting) -> None:
        self._run = run
        self._operands = operands
        self._lifting = lifting

    def evaluate(self, mod: Mod, values: Mapping[str, Any]) -> Any:
        """What a mod says where coordinates have these values."""
        lengths = {name: self._run.symbol(build.coord(Coordinate(name))) for name in LENGTHS}
        return self._evaluate(mod, {**lengths, **values})

    def finished(self, mod: Mod, value: Any) -> Expr:
        """What a mod of a stage returned, as that stage wants it."""
        node, builder = self._result(mod, value), self._run.builder
        if node in open_nodes(node):
            message, help_ = "what a `row_solve` looks for is used outside of it", "use what it returns"
            builder.reporter.error("threshold-escapes", message, self._written_in(mod, node), help=help_)
            return build.SCORE
        is_mask = mod.stage is Stage.MASK
        fits = node.dtype.is_bool if is_mask else node.dtype.is_float
        span = None if fits else self._written_in(mod, node)
        return builder.mask(node, span) if is_mask else builder.score(node, span, mod.stage.value)

    def _evaluate(self, mod: Mod, values: Mapping[str, Any]) -> Any:
        if isinstance(mod, CombinedMask):
            return mod.combine([self._part(part, values) for part in mod.parts])
        self._lifting.keep(mod)  # its identity is part of its parameters' keys
        mod.check(values)
        lifted = {
            name: self._lifting.parameter(value, name, mod.label, (id(mod), name))
            for name, value in mod.parameters().items()
        }
        return invoke(self._lifting.callable(mod.function, mod.label), mod.signature, values, lifted)

    def _part(self, part: Mod, values: Mapping[str, Any]) -> Symbol:
        """A part of combined masks; that it is a condition is checked where its name is known."""
        return self._run.symbol(self.finished(part, self._evaluate(part, values)))

    def _result(self, mod: Mod, value: Any) -> Expr:
        """What a mod returned as a node."""
        converted = self._operands.node(value)
        if converted is not None:
            return converted
        got = "nothing" if value is None else f"a value of type {type(value).__name__}"
        help_ = "end it with `return`" if value is None else "return what was computed from its arguments"
        if isinstance(value, Mod):
            help_ = f"it makes a {value.stage.decorator}: call it first, `{mod.__name__}()`"
        self._run.builder.reporter.error("mod-result", f"`{mod.__name__}` returned {got}", help=help_)
        return build.TRUE if mod.stage is Stage.MASK else build.real(0.0)

    def _written_in(self, mod: Mod, node: Expr) -> Span | None:
        """Where a mod wrote its result: last, as other mods may have written it too; a bare argument has no place."""
        spans = self._run.builder.origins.of(node)
        code = code_of(mod.function)
        return spans[-1] if spans else definition_span(code) if code is not None else None

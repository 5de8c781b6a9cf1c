"""What a name or an indexing means where it stands.

In: a name, the frame it is read in, the scope of its attention. Out: a node, or `None` with a diagnostic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attndsl.diagnostics import Span
from attndsl.frontend import prelude
from attndsl.frontend.builder import Builder
from attndsl.frontend.normalizers import softmax
from attndsl.frontend.scope import (
    COORDINATES,
    FLOWS,
    FUNCTIONS,
    LITERALS,
    Def,
    Scope,
    Stage,
    Value,
    suggestion,
    where_offered,
)
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.variant import ScalarParam, TensorParam


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an expression is being read: its stage, and the function being expanded with its arguments.

    `is_solved`: in the body of a row solve, the name it binds being one of the arguments.
    """

    stage: Stage
    function: Def | None = None
    arguments: Mapping[str, Value] = field(default_factory=dict)
    level: int = 0
    is_solved: bool = False

    @property
    def sees_body(self) -> bool:
        """Whether parameters and lets of the attention are visible."""
        return self.function is None or self.function.is_local


class Names:
    """Looks names up in one attention."""

    def __init__(self, builder: Builder, scope: Scope) -> None:
        self._builder = builder
        self._reporter = builder.reporter
        self._scope = scope

    def value(self, name: str, span: Span, frame: Frame) -> Value:
        """What a name stands for, innermost first."""
        if name in frame.arguments:
            return frame.arguments[name]
        if frame.sees_body and name in self._scope.lets:
            return self._let(name, span, frame)
        if frame.sees_body and name in self._scope.params:
            return self._param(name, span)
        if name in LITERALS:
            return self._builder.literal(LITERALS[name], span)
        if name in COORDINATES:
            return self._leaf(COORDINATES[name], span)
        if name in FLOWS and self.offered(name, span, frame):
            return self._leaf(FLOWS[name], span)
        if name == "softmax" and self.offered(name, span, frame):
            return softmax(self._builder, None, span)
        if name not in FLOWS and name != "softmax":
            self._unknown(name, span, frame)
        return None

    def element(self, name: str | None, indices: Sequence[Value], span: Span, frame: Frame) -> Value:
        """`name[i, j]`; no name if something else is indexed."""
        is_param = name is not None and frame.sees_body and name not in frame.arguments
        tensor = self._scope.params.get(name) if is_param and name is not None else None
        if isinstance(tensor, TensorParam):
            positions = [index for index in indices if index is not None]
            return self._builder.load(tensor, positions, span) if len(positions) == len(indices) else None
        if name is None or self._is_known(name, frame):
            what = "this" if name is None else f"`{name}`"
            help_ = "only tensor parameters have elements, and only the attention that declares them sees them"
            self._reporter.error("not-a-tensor", f"{what} is not a tensor and cannot be indexed", span, help=help_)
        else:
            self._unknown(name, span, frame)
        return None

    def offered(self, name: str, span: Span, frame: Frame) -> bool:
        """Whether a stage has a value or a row statistic; reports if not."""
        if name in frame.stage.offers:
            return True
        message = f"a {frame.stage.value} does not have `{name}`"
        self._reporter.error("wrong-stage", message, span, help=where_offered(name, frame.stage))
        return False

    def _leaf(self, node: Expr, span: Span) -> Expr:
        self._builder.origins.add(node, span)
        return node

    def _let(self, name: str, span: Span, frame: Frame) -> Value:
        value = self._scope.lets[name]
        foreign = [] if value is None else sorted(self._scope.needs(value) - frame.stage.offers)
        if foreign:
            message = f"`{name}` is made of `{foreign[0]}`, which a {frame.stage.value} does not have"
            self._reporter.error("wrong-stage", message, span, help=where_offered(foreign[0], frame.stage))
        return value

    def _param(self, name: str, span: Span) -> Value:
        param = self._scope.params[name]
        if isinstance(param, ScalarParam):
            return self._leaf(build.scalar(name, param.dtype), span)
        if param.rank == 0:
            return self._builder.load(param, (), span)
        message = f"`{name}` is a tensor of {param.rank} dimension(s) and needs an index"
        help_ = f"write `{name}[{', '.join(param.dims)}]` with a position for each dimension"
        self._reporter.error("tensor-without-index", message, span, help=help_)
        return None

    def is_unknown(self, name: str, frame: Frame) -> bool:
        """Whether a text has nothing at all of that name here."""
        if name in frame.arguments or name in FUNCTIONS or self._is_known(name, frame):
            return False
        return self._scope.function(name, frame.function) is None and name not in self._scope.grids

    def _is_known(self, name: str, frame: Frame) -> bool:
        return name in self._scope.names(frame.function)

    def _unknown(self, name: str, span: Span, frame: Frame) -> None:
        help_ = suggestion(name, self._scope.names(frame.function) | prelude.offered(frame.stage))
        if name in FUNCTIONS or self._scope.function(name, frame.function) is not None:
            help_ = f"`{name}` is a function: call it, `{name}(...)`"
        elif (layout := self._scope.grid(name, frame.function)) is not None:
            help_ = f"`{name}` is a grid: name a coordinate of a position, `{name}(q_idx).{layout.axes[-1]}`"
        elif frame.sees_body and name in self._scope.later:
            help_ = f"`{name}` is defined further down: move its `let` up"
        elif self._scope.has_inside(name):
            help_ = "a `def` outside an attention does not see inside: pass the value as an argument"
        self._reporter.error("unknown-name", f"there is no `{name}`", span, help=help_)

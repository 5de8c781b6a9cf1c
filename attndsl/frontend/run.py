"""One run over the mods of a variant: what all of its parts share.

In: the code that started it. Out: the nodes and captured values so far, where in the user's code the run is, and
the two ways to break it off: an error there, and the wish to start again with numbers as constants.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from types import CodeType, FrameType
from typing import Any, NoReturn

import torch

from attndsl.diagnostics import Span
from attndsl.frontend.builder import Builder
from attndsl.frontend.captures import Captured, Captures
from attndsl.frontend.declared import Open
from attndsl.frontend.signatures import Stage
from attndsl.frontend.spans import indexed_name, span_of, user_frame
from attndsl.frontend.symbols import Recorder, Symbol
from attndsl.ir.nodes import Apply, Const, Expr, Scalar, postorder
from attndsl.ir.variant import TensorParam


class NeedsValue(BaseException):
    """Python needs the value of runtime scalars: the trace starts again with these as constants.

    Not an `Exception`, so that no handler of the traced function takes it for its own.
    """

    def __init__(self, keys: frozenset[Hashable]) -> None:
        self.keys = keys
        super().__init__(keys)


class Run:
    """`stage` is the one whose mods are evaluated; frames outside of `outermost` are not the user's."""

    def __init__(self, recorder: Recorder, outermost: CodeType) -> None:
        self.recorder = recorder
        self.builder = Builder()
        self.captures = Captures()
        self.stage = Stage.MASK
        self._outermost = outermost

    def symbol(self, held: Any) -> Symbol:
        """A symbol of this run."""
        return Symbol(self.recorder, held)

    def load(self, captured: Captured, indices: Sequence[Expr]) -> Expr:
        """An element of a captured tensor."""
        param = captured.param(captured.label)
        assert isinstance(param, TensorParam)
        captured.indexed_by(indices)
        return self.builder.load(param, indices, self.span())

    def captured(self, tensor: torch.Tensor) -> Captured:
        """A tensor as it is captured, under the name the user's function knows it by."""
        return self.captures.of(tensor, self.name_of)

    # Where.

    def frame(self) -> FrameType | None:
        """The user's code that is being executed."""
        return user_frame(self._outermost)

    def span(self) -> Span | None:
        """Where in its source that is."""
        frame = self.frame()
        return span_of(frame) if frame is not None else None

    def name_of(self, tensor: torch.Tensor) -> tuple[str, str | None]:
        """The variable the user's function knows a tensor by."""
        frame = self.frame()
        if frame is None:
            return "table", None
        mod = frame.f_code.co_name
        for variables in (frame.f_locals, frame.f_globals):
            for name, value in variables.items():
                if value is tensor:
                    return name, None if mod.startswith("<") else mod
        span = span_of(frame)
        return (indexed_name(span) if span is not None else None) or "table", None if mod.startswith("<") else mod

    # Ways out.

    def stop(self, code: str, message: str, span: Span | None, *notes: str, help: str) -> NoReturn:
        """An error after which the function has no values to go on with."""
        self.builder.reporter.error(code, message, span, *notes, help=help)
        self.builder.reporter.check()
        raise AssertionError("a reporter with errors raises them")

    def stop_open(self, what: str, captured: Captured) -> NoReturn:
        """The error of what only values can be asked."""
        message = f"{what} needs a value of `{captured.name}`, which has none yet"
        is_number = isinstance(captured.value, Open) and captured.value.dims is None
        help_ = f"give it one where the mod is used: `{captured.name}=...`"
        if not is_number:
            help_ = f"read elements, as in `torch.exp({captured.name}[h])`, or {help_}"
        self.stop("open-parameter", message, self.span(), help=help_)

    def fix(self, nodes: Sequence[Expr]) -> None:
        """Start again with constants, if these are made of nothing but runtime scalars."""
        found = [self.captures.labelled(scalar.name) for scalar in self.scalars(nodes) or ()]
        for captured in found:
            if isinstance(captured.value, Open):
                self.stop_open("a trace in Python", captured)
        if found:
            raise NeedsValue(frozenset(captured.key for captured in found))

    def scalars(self, nodes: Sequence[Expr]) -> list[Scalar] | None:
        """The runtime scalars nodes are made of; none if anything else is in them."""
        below = list(postorder(*nodes))
        if any(not isinstance(node, Scalar | Const | Apply) for node in below):
            return None
        return [node for node in below if isinstance(node, Scalar)]

"""What operations on symbols become: the `Recorder` of a run.

In: operations, as symbols and torch's dispatch report them. Out: nodes in the run's `Builder`. Mods are called by
`evaluation`, tensors are indexed by `tables`, torch's functions are told apart by `tensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any, NoReturn

import torch

from attndsl.diagnostics import ProgramError, Span
from attndsl.frontend.branches import explain
from attndsl.frontend.decorators import Mod
from attndsl.frontend.dispatch import name_of_function, without_place
from attndsl.frontend.evaluation import Evaluation
from attndsl.frontend.layout import Layout, coordinate, keep_order
from attndsl.frontend.lifting import Lifting
from attndsl.frontend.operands import Operands
from attndsl.frontend.requirements import add_requirement
from attndsl.frontend.run import Run
from attndsl.frontend.signatures import Stage
from attndsl.frontend.spans import literal_first
from attndsl.frontend.symbols import Symbol, symbols_in
from attndsl.frontend.tables import Tables
from attndsl.frontend.tensors import Tensors
from attndsl.frontend.torch_functions import TORCH
from attndsl.ir import build
from attndsl.ir.nodes import Const, Expr, Scalar
from attndsl.ir.types import Reduction


class TraceRecorder:
    """Records one run over the mods of a variant. `constants` are the keys of numbers that stay constants."""

    def __init__(self, outermost: CodeType, constants: frozenset[Hashable] | None) -> None:
        self.run = run = Run(self, outermost)
        self.builder, self.captures = run.builder, run.captures
        lifting = Lifting(run, constants)
        self._operands = operands = Operands(run, lifting)
        self._tensors = Tensors(run, operands)
        self._tables = Tables(run, operands, self._tensors)
        self._evaluation = Evaluation(run, operands, lifting)
        self._is_solved = False

    # Mods.

    def evaluate(self, mod: Mod, values: Mapping[str, Any]) -> Any:
        """What a mod says where coordinates have these values."""
        return self._evaluation.evaluate(mod, values)

    def finished(self, mod: Mod, value: Any) -> Expr:
        """What a mod of a stage returned, as that stage wants it."""
        return self._evaluation.finished(mod, value)

    # Operators and functions of the language.

    def infix(self, symbol: str, left: Any, right: Any) -> Any:
        """`left symbol right`; `NotImplemented` for operands that mean nothing here."""
        operands = self._operands.nodes((left, right))
        if operands is None:
            return NotImplemented
        if symbol == "**" and operands[0].dtype.is_int and not isinstance(operands[1], Const):
            self.run.fix(operands[1:])
        left_node, right_node = operands
        return self._record(lambda span: self.builder.infix(symbol, left_node, right_node, span), operands)

    def prefix(self, symbol: str, operand: Any) -> Symbol:
        """A prefix operator."""
        operands = self._operands.required((operand,), symbol)
        return self._record(lambda span: self.builder.prefix(symbol, operands[0], span), operands)

    def call(self, name: str, *operands: Any) -> Symbol:
        """A function of the language."""
        nodes = self._operands.required(operands, name)
        return self._record(lambda span: self.builder.call(name, nodes, span), nodes)

    def row(self, name: str, operand: Any) -> Symbol:
        """A row statistic, which only a normalizer has. What stands for one that is refused may be divided by."""
        operands = self._operands.required((operand,), name)
        if not self._normalizes(name):
            return self.run.symbol(build.real(1.0))
        return self._record(lambda span: self.builder.row(Reduction(name), operands[0], span), operands)

    def row_solve(self, body: Callable[[Symbol], Any], total: Any, lower: Any, upper: Any) -> Symbol:
        """The least t at which the row's sum of `body(t)` is at most `total`, which only a normalizer has."""
        if not self._normalizes("row_solve"):
            return self.run.symbol(build.real(1.0))
        if self._is_solved:
            help_ = "compute the inner one before, and use what it found"
            message = "a `row_solve` stands in the body of another"
            self.builder.reporter.error("nested-solve", message, self.run.span(), help=help_)
            return self.run.symbol(build.real(1.0))
        self._is_solved = True
        try:
            value = body(self.run.symbol(build.THRESHOLD))
        finally:
            self._is_solved = False
        nodes = self._operands.required((value, total, lower, upper), "row_solve")
        solved, least, low, high = nodes
        return self._record(lambda span: self.builder.solve(solved, least, low, high, span), nodes)

    def require(self, condition: Symbol, message: str) -> None:
        """A condition on calls."""
        add_requirement(self.builder, self.expression(condition), message, self.run.span())

    def coordinate(self, layout: Layout, axis: str, index: Symbol) -> Symbol:
        """A coordinate of a position on a grid."""
        span = self.run.span()
        keep_order(self.builder, layout, span)
        return self.run.symbol(coordinate(self.builder, layout, axis, self.expression(index), span))

    def _normalizes(self, name: str) -> bool:
        """Whether the stage is one that has statistics of rows; reports if not."""
        stage = self.run.stage
        if stage is Stage.NORMALIZER:
            return True
        help_ = "use it in a normalizer: `@ad.normalizer`, `def weights(score): ...`"
        self.builder.reporter.error("wrong-stage", f"a {stage.value} has no `{name}`", self.run.span(), help=help_)
        return False

    def _record(self, make: Callable[[Span | None], Expr], operands: Sequence[Expr]) -> Symbol:
        """A new symbol. What the language refuses to do with runtime scalars alone, Python may do with their values."""
        before = len(self.builder.reporter)
        node = make(self.run.span())
        if len(self.builder.reporter) > before and all(self.run.scalars((one,)) is not None for one in operands):
            self.run.fix(operands)
        return self.run.symbol(node)

    # What Python asks of symbols.

    def expression(self, symbol: Symbol) -> Expr:
        """The node of a symbol."""
        return self._operands.expression(symbol)

    def literal_on_the_left(self) -> bool:
        """Whether the comparison being evaluated is written with a number first: `0 == x`."""
        span = self.run.span()
        return span is not None and literal_first(span)

    def need_value(self, *symbols: Symbol) -> NoReturn:
        """Python wants to know what these are."""
        frame = self.run.frame()
        self.run.fix([self.expression(symbol) for symbol in symbols])
        what, span, help_ = explain(frame)
        message = f"{what} needs a value that is not known while the variant is traced: it depends on the coordinates"
        self.run.stop("control-flow", message, span, help=help_)

    def has_method(self, name: str) -> bool:
        """Whether a symbol answers to a method: those of tensors, so that each use is checked in one place."""
        return not name.startswith("_") and (name in TORCH or callable(getattr(torch.Tensor, name, None)))

    def missing(self, symbol: Symbol, name: str) -> NoReturn:
        """An attribute symbols do not have. Numbers may: then it is the number that is wanted."""
        if not name.startswith("_") and isinstance(symbol.held, Scalar) and hasattr(0.0, name):
            self.run.fix([symbol.held])
        raise AttributeError(f"a traced value has no attribute `{name}`")

    # Tensors.

    def index(self, target: Any, index: Any) -> Any:
        """`target[index]`, where a symbol is among them."""
        return self._tables.index(target, index)

    def open_shape(self, symbol: Symbol) -> torch.Size:
        """The sizes of the dimensions not indexed yet."""
        return self._tables.open_shape(symbol)

    def method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A method of tensors, called on a symbol."""
        key = "Tensor.where" if name == "where" else name
        return self._tensors.on_symbols(key, f"Tensor.{name}", args, kwargs)

    def torch_function(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A torch function, called with a symbol or with tensors alone."""
        name = name_of_function(function)
        args, kwargs = without_place(args, kwargs)
        is_symbolic = next(symbols_in((args, kwargs)), None) is not None
        if name == "__getitem__" and (is_symbolic or self.captures.open_among(args[:1]) is not None):
            return self.index(*args)
        if not is_symbolic:
            return self._tensors.on_tensors(name, function, args, kwargs)
        key = "Tensor.where" if function is torch.Tensor.where else name
        return self._tensors.on_symbols(key, f"torch.{name}", args, kwargs)


@contextmanager
def stage_of(recorder: TraceRecorder, stage: Stage) -> Iterator[None]:
    """Mods of one stage are evaluated; their mistakes are kept, and the next mod goes on."""
    recorder.run.stage = stage
    try:
        yield
    except ProgramError as error:
        for found in error.diagnostics:
            recorder.builder.reporter.error(found.code, found.message, found.span, *found.notes, help=found.help)

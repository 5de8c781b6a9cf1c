"""One trace: what operations on symbols and torch functions on captured tensors become.

In: operations, as symbols and torch's dispatch report them. Out: nodes in a `Builder`, parameters in `Captures`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from types import CodeType, FrameType
from typing import Any, NoReturn

import torch

from attndsl.diagnostics import ProgramError, Span
from attndsl.frontend.branches import explain
from attndsl.frontend.builder import INT64, Builder
from attndsl.frontend.captures import Captured, Captures, tensors_in
from attndsl.frontend.closures import Rebuilder
from attndsl.frontend.declared import Named, Open
from attndsl.frontend.decorators import CombinedMask, Mod, invoke
from attndsl.frontend.dispatch import METADATA, PLACES, SIZES, is_in_place, name_of_function, without_place
from attndsl.frontend.indexing import entries, is_full, is_static, static_part, waiting_part
from attndsl.frontend.layout import Layout, coordinate, keep_order
from attndsl.frontend.requirements import add_requirement
from attndsl.frontend.signatures import LENGTHS, Stage, code_of
from attndsl.frontend.spans import definition_span, indexed_name, literal_first, span_of, user_frame
from attndsl.frontend.symbols import Symbol, symbols_in
from attndsl.frontend.torch_functions import TORCH
from attndsl.ir import build
from attndsl.ir.binding import open_nodes
from attndsl.ir.nodes import Apply, Const, Expr, Scalar, postorder
from attndsl.ir.types import Coordinate, Reduction
from attndsl.ir.variant import TensorParam


class NeedsValue(BaseException):
    """Python needs the value of runtime scalars: the trace starts again with these as constants.

    Not an `Exception`, so that no handler of the traced function takes it for its own.
    """

    def __init__(self, keys: frozenset[Hashable]) -> None:
        self.keys = keys
        super().__init__(keys)


@dataclass(frozen=True, slots=True)
class Rows:
    """A captured tensor of which some dimensions are indexed; `None` stands for those that are not."""

    captured: Captured
    indices: tuple[Expr | None, ...]


class TraceRecorder:
    """Records one run over the mods of a variant. `constants` are the keys of numbers that stay constants."""

    def __init__(self, outermost: CodeType, constants: frozenset[Hashable] | None) -> None:
        self.builder = Builder()
        self.captures = Captures()
        self.stage = Stage.MASK
        self._outermost = outermost
        self._constants = constants
        self._rebuilder = Rebuilder(self)
        self._alive: list[Mod | Named] = []
        self._is_solved = False

    # Mods.

    def evaluate(self, mod: Mod, values: Mapping[str, Any]) -> Any:
        """What a mod says where coordinates have these values."""
        lengths = {name: Symbol(self, build.coord(Coordinate(name))) for name in LENGTHS}
        return self._evaluate(mod, {**lengths, **values})

    def _evaluate(self, mod: Mod, values: Mapping[str, Any]) -> Any:
        if isinstance(mod, CombinedMask):
            return mod.combine([self.mask_part(part, values) for part in mod.parts])
        self._alive.append(mod)  # its identity is part of its parameters' keys
        mod.check(values)
        parameters = {
            name: self._parameter(value, name, mod.label, (id(mod), name)) for name, value in mod.parameters().items()
        }
        function = self._rebuilder.callable(mod.function, mod.label)
        return invoke(function, mod.signature, values, parameters)

    def mask_part(self, part: Mod, values: Mapping[str, Any]) -> Symbol:
        """A part of combined masks; that it is a condition is checked where its name is known."""
        return Symbol(self, self.finished(part, self._evaluate(part, values)))

    def finished(self, mod: Mod, value: Any) -> Expr:
        """What a mod of a stage returned, as that stage wants it."""
        node = self._result(mod, value)
        if node in open_nodes(node):
            message, help_ = "what a `row_solve` looks for is used outside of it", "use what it returns"
            self.builder.reporter.error("threshold-escapes", message, self._written_in(mod, node), help=help_)
            return build.SCORE
        is_mask = mod.stage is Stage.MASK
        fits = node.dtype.is_bool if is_mask else node.dtype.is_float
        span = None if fits else self._written_in(mod, node)
        return self.builder.mask(node, span) if is_mask else self.builder.score(node, span, mod.stage.value)

    def _written_in(self, mod: Mod, node: Expr) -> Span | None:
        """Where a mod wrote its result: last, as other mods may have written it too; a bare argument has no place."""
        spans = self.builder.origins.of(node)
        code = code_of(mod.function)
        return spans[-1] if spans else definition_span(code) if code is not None else None

    def _result(self, mod: Mod, value: Any) -> Expr:
        """What a mod returned as a node."""
        converted = self._operand(value)
        if converted is not None:
            return converted
        got = "nothing" if value is None else f"a value of type {type(value).__name__}"
        help_ = "end it with `return`" if value is None else "return what was computed from its arguments"
        if isinstance(value, Mod):
            help_ = f"it makes a {value.stage.decorator}: call it first, `{mod.__name__}()`"
        self.builder.reporter.error("mod-result", f"`{mod.__name__}` returned {got}", help=help_)
        return build.TRUE if mod.stage is Stage.MASK else build.real(0.0)

    def _parameter(self, value: Any, name: str, mod: str | None, key: Hashable) -> Any:
        if type(value) in (int, float) or _is_numpy_number(value):
            return self.number(value if type(value) in (int, float) else value.item(), name, mod, key)
        if isinstance(value, torch.Tensor):
            return self.captures.stand_in(value, name, mod, key)
        if isinstance(value, Open | Named):
            return self.declared(value, name, mod, key)
        return self._rebuilder.callable(value, mod) if callable(value) and not isinstance(value, Mod | type) else value

    # What becomes of captured values (`closures.Lifter`).

    def number(self, value: float, name: str, mod: str | None, key: Hashable) -> Any:
        """A runtime scalar, or the number itself where Python needs it or it is no quantity but structure."""
        is_constant = self._constants is None or key in self._constants
        if is_constant or not isfinite(value) or (isinstance(value, int) and value not in INT64):
            return value
        captured = self.captures.scalar(key, name, mod, value)
        return Symbol(self, build.scalar(captured.label, captured.dtype))

    def declared(self, value: Open | Named, name: str, mod: str | None, key: Hashable) -> Any:
        """A parameter without a value, or one that several mods share."""
        if isinstance(value, Named):
            self._alive.append(value)
            return self._parameter(value.value, value.name, None, ("named", id(value)))
        if value.dims is None:
            captured = self.captures.scalar(key, name, mod, value)
            return Symbol(self, build.scalar(captured.label, captured.dtype))
        alias = self.captures.stand_in_of_open(value, name, mod, key)
        return alias if value.dims else Symbol(self, self._load(self.captures.of(alias, self._find_name), []))

    def tensor(self, value: torch.Tensor, name: str, mod: str | None) -> torch.Tensor:
        """A captured tensor under the name of the variable that holds it."""
        return self.captures.stand_in(value, name, mod, (id(value), name))

    def hint(self, value: torch.Tensor, name: str, mod: str | None) -> None:
        """The name of an attribute that holds a tensor."""
        self.captures.hint(value, name, mod)

    # Operations (`symbols.Recorder`).

    def infix(self, symbol: str, left: Any, right: Any) -> Any:
        """`left symbol right`; `NotImplemented` for operands that mean nothing here."""
        operands = self._operands((left, right))
        if operands is None:
            return NotImplemented
        if symbol == "**" and operands[0].dtype.is_int and not isinstance(operands[1], Const):
            self._fix(operands[1:])
        left_node, right_node = operands
        return self._record(lambda span: self.builder.infix(symbol, left_node, right_node, span), operands)

    def prefix(self, symbol: str, operand: Any) -> Symbol:
        """A prefix operator."""
        operands = self._required((operand,), symbol)
        return self._record(lambda span: self.builder.prefix(symbol, operands[0], span), operands)

    def call(self, name: str, *operands: Any) -> Symbol:
        """A function of the language."""
        nodes = self._required(operands, name)
        return self._record(lambda span: self.builder.call(name, nodes, span), nodes)

    def row(self, name: str, operand: Any) -> Symbol:
        """A row statistic, which only a normalizer has."""
        operands = self._required((operand,), name)
        if not self._normalizes(name):
            return Symbol(self, build.real(0.0))
        return self._record(lambda span: self.builder.row(Reduction(name), operands[0], span), operands)

    def row_solve(self, body: Callable[[Symbol], Any], total: Any, lower: Any, upper: Any) -> Symbol:
        """The least t at which the row's sum of `body(t)` is at most `total`, which only a normalizer has."""
        if not self._normalizes("row_solve"):
            return Symbol(self, build.real(0.0))
        if self._is_solved:
            help_ = "compute the inner one before, and use what it found"
            message = "a `row_solve` stands in the body of another"
            self.builder.reporter.error("nested-solve", message, self._span(), help=help_)
            return Symbol(self, build.real(0.0))
        self._is_solved = True
        try:
            value = body(Symbol(self, build.THRESHOLD))
        finally:
            self._is_solved = False
        nodes = self._required((value, total, lower, upper), "row_solve")
        solved, least, low, high = nodes
        return self._record(lambda span: self.builder.solve(solved, least, low, high, span), nodes)

    def _normalizes(self, name: str) -> bool:
        """Whether the stage is one that has statistics of rows; reports if not."""
        if self.stage is Stage.NORMALIZER:
            return True
        help_ = "use it in a normalizer: `@ad.normalizer`, `def weights(score): ...`"
        message = f"a {self.stage.value} has no `{name}`"
        self.builder.reporter.error("wrong-stage", message, self._span(), help=help_)
        return False

    def require(self, condition: Symbol, message: str) -> None:
        """A condition on calls."""
        add_requirement(self.builder, self.expression(condition), message, self._span())

    def coordinate(self, layout: Layout, axis: str, index: Symbol) -> Symbol:
        """A coordinate of a position on a grid."""
        span = self._span()
        keep_order(self.builder, layout, span)
        return Symbol(self, coordinate(self.builder, layout, axis, self.expression(index), span))

    def expression(self, symbol: Symbol) -> Expr:
        """The node of a symbol; a tensor with open dimensions is one index short, which the builder reports."""
        if isinstance(symbol.held, Rows):
            rows = symbol.held
            symbol.held = self._load(rows.captured, [index for index in rows.indices if index is not None])
        node: Expr = symbol.held
        return node

    def open_shape(self, symbol: Symbol) -> torch.Size:
        """The sizes of the dimensions not indexed yet."""
        if not isinstance(symbol.held, Rows):
            return torch.Size(())
        if isinstance(symbol.held.captured.value, Open):
            self._stop_open("`.shape`", symbol.held.captured)
        self.captures.reads_shape(symbol.held.captured)
        value = symbol.held.captured.value
        with torch._C.DisableTorchFunction():
            sizes = value.shape if isinstance(value, torch.Tensor) else ()
        return torch.Size(size for size, index in zip(sizes, symbol.held.indices, strict=True) if index is None)

    def literal_on_the_left(self) -> bool:
        """Whether the comparison being evaluated is written with a number first: `0 == x`."""
        span = self._span()
        return span is not None and literal_first(span)

    def need_value(self, *symbols: Symbol) -> NoReturn:
        """Python wants to know what these are."""
        frame = user_frame(self._outermost)
        self._fix([self.expression(symbol) for symbol in symbols])
        what, span, help_ = explain(frame)
        message = f"{what} needs a value that is not known while the variant is traced: it depends on the coordinates"
        self._stop("control-flow", message, span, help=help_)

    def has_method(self, name: str) -> bool:
        """Whether a symbol answers to a method: those of tensors, so that each use is checked in one place."""
        return not name.startswith("_") and (name in TORCH or callable(getattr(torch.Tensor, name, None)))

    def missing(self, symbol: Symbol, name: str) -> NoReturn:
        """An attribute symbols do not have. Numbers may: then it is the number that is wanted."""
        if not name.startswith("_") and isinstance(symbol.held, Scalar) and hasattr(0.0, name):
            self._fix([symbol.held])
        raise AttributeError(f"a traced value has no attribute `{name}`")

    def method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A method of tensors, called on a symbol."""
        function = getattr(torch.Tensor, name, None)
        key = "Tensor.where" if name == "where" else name
        return self._on_symbols(key, f"Tensor.{name}", function, args, kwargs)

    # torch.

    def torch_function(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A torch function, called with a symbol or with tensors alone."""
        name = name_of_function(function)
        args, kwargs = without_place(args, kwargs)
        is_symbolic = next(symbols_in((args, kwargs)), None) is not None
        if name == "__getitem__" and (is_symbolic or self.captures.open_among(args[:1]) is not None):
            return self.index(*args)
        if not is_symbolic:
            return self._on_tensors(name, function, args, kwargs)
        key = "Tensor.where" if function is torch.Tensor.where else name
        return self._on_symbols(key, f"torch.{name}", function, args, kwargs)

    def _on_symbols(self, key: str, title: str, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if is_in_place(key, kwargs):
            self._stop_in_place(title)
        reason = "it has no meaning for one pair of a query and a key"
        if key in TORCH:
            try:
                result = self.captures.made(TORCH[key](self, *args, **kwargs))
            except TypeError:
                result = NotImplemented
            if result is not NotImplemented:
                return result
            reason = "these arguments mean nothing for one pair of a query and a key"
        self._fix([self.expression(symbol) for symbol in symbols_in((args, kwargs))])
        help_ = "use elementwise functions, `ad.row_max` and `ad.row_sum` in normalizers, or index a table"
        message = f"`{title}` cannot be traced with these arguments"
        return self._stop("torch-function", message, self._span(), reason, help=help_)

    def _on_tensors(self, name: str, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        tensors = list(tensors_in((args, kwargs)))
        captured = [tensor for tensor in tensors if not self.captures.made_inside(tensor)]
        if name in METADATA:
            return function(*args, **kwargs)
        without_value = self.captures.open_among(captured)
        if without_value is not None:
            what = "an index from the end, or a slice," if name == "__getitem__" else f"`{name}`"
            self._stop_open(what, without_value)
        if name in SIZES:
            for tensor in captured:
                self.captures.reads_shape(self.captures.of(tensor, self._find_name))
            return function(*args, **kwargs)
        if not captured:
            return self.captures.made(function(*args, **kwargs) if args or kwargs else function())
        if is_in_place(name, kwargs):
            self._stop_in_place(name)
        if name in PLACES and len(args) == 1 and not kwargs:
            return args[0]  # `.to(score.device)`: every symbol is wherever the call runs
        with torch.no_grad():
            result = function(*args, **kwargs)
        if next(tensors_in(result), None) is None:
            self._stop_reading(name, captured[0])
        return self.captures.derived(function, args, kwargs, result, self._find_name)

    # Indexing.

    def index(self, target: Any, index: Any) -> Any:
        """`target[index]`, where a symbol is among them."""
        if isinstance(target, Symbol):
            if not isinstance(target.held, Rows):
                return self._index_value(target, index)
            captured, indices = target.held.captured, target.held.indices
        else:
            captured = self.captures.of(target, self._find_name)
            indices = (None,) * target.ndim
        open_count = indices.count(None)
        given = entries(index, open_count)
        if not isinstance(target, Symbol) and any(map(is_static, given)) and len(given) <= open_count:
            part = self._on_tensors("__getitem__", torch.Tensor.__getitem__, (target, static_part(given)), {})
            return self.index(part, tuple(waiting_part(given)))
        nodes = [self._index(item) for item in given]
        if len(given) > open_count:
            return Symbol(self, self._load(captured, [node or build.integer(0) for node in nodes]))
        filled = iter([*nodes, *([None] * (open_count - len(nodes)))])
        indices = tuple(next(filled) if node is None else node for node in indices)
        complete = [node for node in indices if node is not None]
        if len(complete) == len(indices):
            return Symbol(self, self._load(captured, complete))
        return Symbol(self, Rows(captured, indices))

    def _index(self, item: Any) -> Expr | None:
        if is_full(item):
            return None
        if isinstance(item, slice):
            self._fix([self.expression(symbol) for symbol in symbols_in(item)])
        node = None if isinstance(item, bool | slice) or item is None else self._operand(item)
        if node is None:
            help_ = (
                "index every dimension with coordinates, integers or integer tensors of one element, or leave it `:`"
            )
            what = "a slice with bounds" if isinstance(item, slice) else f"`{item!r}`"
            self._stop("index-kind", f"a captured tensor is indexed by {what}", self._span(), help=help_)
        return node

    def _index_value(self, target: Symbol, index: Any) -> Symbol:
        if index is Ellipsis or (isinstance(index, tuple) and not index):
            return target
        return self._stop("index-of-value", "a single value is indexed", self._span(), help="use it without an index")

    def _load(self, captured: Captured, indices: Sequence[Expr]) -> Expr:
        param = captured.param(captured.label)
        assert isinstance(param, TensorParam)
        captured.indexed_by(indices)
        return self.builder.load(param, indices, self._span())

    # Operands.

    def _operand(self, value: Any) -> Expr | None:
        """The node of an operand; none for what means nothing here."""
        if isinstance(value, Symbol):
            return self.expression(value)
        if isinstance(value, Named):
            return self._operand(self.declared(value, value.name, None, None))
        if isinstance(value, bool | int | float):
            return self.builder.literal(value)
        if isinstance(value, torch.Tensor):
            return self._tensor_operand(value)
        return self._operand(value.item()) if _is_numpy_number(value) else None

    def _tensor_operand(self, tensor: torch.Tensor) -> Expr | None:
        if self.captures.made_inside(tensor) and tensor.ndim == 0:
            with torch._C.DisableTorchFunction():
                return None if tensor.is_complex() else self.builder.literal(tensor.item())
        return self._load(self.captures.of(tensor, self._find_name), [])

    def _operands(self, values: Sequence[Any]) -> tuple[Expr, ...] | None:
        nodes = [self._operand(value) for value in values]
        found = tuple(node for node in nodes if node is not None)
        if len(found) == len(nodes):
            return found
        self._fix(found)
        return None

    def _required(self, values: Sequence[Any], what: str) -> tuple[Expr, ...]:
        nodes = self._operands(values)
        if nodes is None:
            kinds = ", ".join(type(value).__name__ for value in values)
            raise TypeError(f"`{what}` does not take ({kinds})")
        return nodes

    def _record(self, make: Callable[[Span | None], Expr], operands: Sequence[Expr]) -> Symbol:
        """A new symbol. What the language refuses to do with runtime scalars alone, Python may do with their values."""
        before = len(self.builder.reporter)
        node = make(self._span())
        if len(self.builder.reporter) > before and all(self._scalars((operand,)) is not None for operand in operands):
            self._fix(operands)
        return Symbol(self, node)

    def _fix(self, nodes: Sequence[Expr]) -> None:
        """Start again with constants, if these are made of nothing but runtime scalars."""
        found = [self.captures.labelled(scalar.name) for scalar in self._scalars(nodes) or ()]
        for captured in found:
            if isinstance(captured.value, Open):
                self._stop_open("a trace in Python", captured)
        if found:
            raise NeedsValue(frozenset(captured.key for captured in found))

    def _scalars(self, nodes: Sequence[Expr]) -> list[Scalar] | None:
        """The runtime scalars nodes are made of; none if anything else is in them."""
        below = list(postorder(*nodes))
        if any(not isinstance(node, Scalar | Const | Apply) for node in below):
            return None
        return [node for node in below if isinstance(node, Scalar)]

    # Where, and what went wrong.

    def _frame(self) -> FrameType | None:
        return user_frame(self._outermost)

    def _span(self) -> Span | None:
        frame = self._frame()
        return span_of(frame) if frame is not None else None

    def _find_name(self, tensor: torch.Tensor) -> tuple[str, str | None]:
        """The variable the user's function knows a tensor by."""
        frame = self._frame()
        if frame is None:
            return "table", None
        mod = frame.f_code.co_name
        for variables in (frame.f_locals, frame.f_globals):
            for name, value in variables.items():
                if value is tensor:
                    return name, None if mod.startswith("<") else mod
        span = span_of(frame)
        return (indexed_name(span) if span is not None else None) or "table", None if mod.startswith("<") else mod

    def _stop(self, code: str, message: str, span: Span | None, *notes: str, help: str) -> NoReturn:
        """An error after which the function has no values to go on with."""
        self.builder.reporter.error(code, message, span, *notes, help=help)
        self.builder.reporter.check()
        raise AssertionError("a reporter with errors raises them")

    def _stop_in_place(self, title: str) -> NoReturn:
        message = f"`{title}` writes to a tensor; a variant only reads"
        self._stop("in-place", message, self._span(), help="use the form that returns a new value")

    def _stop_open(self, what: str, captured: Captured) -> NoReturn:
        message = f"{what} needs a value of `{captured.name}`, which has none yet"
        is_number = isinstance(captured.value, Open) and captured.value.dims is None
        help_ = f"give it one where the mod is used: `{captured.name}=...`"
        if not is_number:
            help_ = f"read elements, as in `torch.exp({captured.name}[h])`, or {help_}"
        self._stop("open-parameter", message, self._span(), help=help_)

    def _stop_reading(self, name: str, tensor: torch.Tensor) -> NoReturn:
        captured = self.captures.of(tensor, self._find_name)
        calls = {"__bool__": "if", "__int__": "int(...)", "__float__": "float(...)", "__index__": "an index"}
        what = calls.get(name, f".{name}()")
        message = f"`{what}` reads the values of `{captured.name}`, which may differ at each call"
        use = f"use `{captured.name}` as it is" if tensor.ndim == 0 else f"index it: `{captured.name}[h]`"
        help_ = f"{use}; or read the number outside of the variant and pass it as a parameter"
        self._stop("tensor-value", message, self._span(), help=help_)


@contextmanager
def stage_of(recorder: TraceRecorder, stage: Stage) -> Iterator[None]:
    """Mods of one stage are evaluated; their mistakes are kept, and the next mod goes on."""
    recorder.stage = stage
    try:
        yield
    except ProgramError as error:
        for found in error.diagnostics:
            recorder.builder.reporter.error(found.code, found.message, found.span, *found.notes, help=found.help)


def _is_numpy_number(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and value.dtype.kind in "biuf"

"""The values a traced function computes with: every operation on a `Symbol` asks its recorder for a new one.

In: Python operators, methods and torch functions. Out: calls of a `Recorder`. Nothing here builds a node.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

import torch

from attndsl.frontend.layout import Layout
from attndsl.frontend.spans import opcode_of
from attndsl.ir.nodes import Expr
from attndsl.ir.types import DType

ANYWHERE = torch.device("meta")
"""The device a symbol claims: `.to(score.device)` and `device=q_idx.device` then mean wherever the call runs."""

TORCH_TYPES = {DType.BOOL: torch.bool, DType.I32: torch.int32, DType.I64: torch.int64, DType.F32: torch.float32}
MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


class Recorder(Protocol):
    """What symbols need of the trace they belong to."""

    def infix(self, symbol: str, left: Any, right: Any) -> Symbol: ...
    def prefix(self, symbol: str, operand: Any) -> Symbol: ...
    def call(self, name: str, *operands: Any) -> Symbol: ...
    def row(self, name: str, operand: Any) -> Symbol: ...
    def row_solve(self, body: Callable[[Symbol], Any], total: Any, lower: Any, upper: Any) -> Symbol: ...
    def index(self, target: Any, index: Any) -> Any: ...
    def expression(self, symbol: Symbol) -> Expr: ...
    def open_shape(self, symbol: Symbol) -> torch.Size: ...
    def need_value(self, *symbols: Symbol) -> NoReturn: ...
    def has_method(self, name: str) -> bool: ...
    def missing(self, symbol: Symbol, name: str) -> NoReturn: ...
    def method(self, name: str, *args: Any, **kwargs: Any) -> Any: ...
    def torch_function(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any: ...
    def literal_on_the_left(self) -> bool: ...
    def require(self, condition: Symbol, message: str) -> None: ...
    def coordinate(self, layout: Layout, axis: str, index: Symbol) -> Symbol: ...
    def evaluate(self, mod: Any, values: Mapping[str, Any]) -> Any: ...


class Symbol:
    """A value that depends on the coordinates of a pair, or on a runtime scalar.

    `held` is what the recorder knows it by: an expression, or a captured tensor of which some dimensions are indexed.
    """

    __slots__ = ("held", "recorder")

    def __init__(self, recorder: Recorder, held: Any) -> None:
        self.recorder = recorder
        self.held = held

    @property
    def expr(self) -> Expr:
        """The node this symbol stands for."""
        return self.recorder.expression(self)

    def __repr__(self) -> str:
        return f"Symbol({self.held})"

    # Arithmetic, with Python's meaning.

    def __add__(self, other: Any) -> Symbol:
        return self._infix("+", other)

    def __radd__(self, other: Any) -> Symbol:
        return self._reflected("+", other)

    def __sub__(self, other: Any) -> Symbol:
        return self._infix("-", other)

    def __rsub__(self, other: Any) -> Symbol:
        return self._reflected("-", other)

    def __mul__(self, other: Any) -> Symbol:
        return self._infix("*", other)

    def __rmul__(self, other: Any) -> Symbol:
        return self._reflected("*", other)

    def __truediv__(self, other: Any) -> Symbol:
        return self._infix("/", other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self._reflected("/", other)

    def __floordiv__(self, other: Any) -> Symbol:
        return self._infix("//", other)

    def __rfloordiv__(self, other: Any) -> Symbol:
        return self._reflected("//", other)

    def __mod__(self, other: Any) -> Symbol:
        return self._infix("%", other)

    def __rmod__(self, other: Any) -> Symbol:
        return self._reflected("%", other)

    def __divmod__(self, other: Any) -> tuple[Symbol, Symbol]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Symbol, Symbol]:
        return other // self, other % self

    def __pow__(self, other: Any) -> Symbol:
        return self._infix("**", other)

    def __rpow__(self, other: Any) -> Symbol:
        return self._reflected("**", other)

    def __lshift__(self, other: Any) -> Symbol:
        return self._infix("<<", other)

    def __rlshift__(self, other: Any) -> Symbol:
        return self._reflected("<<", other)

    def __rshift__(self, other: Any) -> Symbol:
        return self._infix(">>", other)

    def __rrshift__(self, other: Any) -> Symbol:
        return self._reflected(">>", other)

    def __and__(self, other: Any) -> Symbol:
        return self._infix("&", other)

    def __rand__(self, other: Any) -> Symbol:
        return self._reflected("&", other)

    def __or__(self, other: Any) -> Symbol:
        return self._infix("|", other)

    def __ror__(self, other: Any) -> Symbol:
        return self._reflected("|", other)

    def __xor__(self, other: Any) -> Symbol:
        return self._infix("^", other)

    def __rxor__(self, other: Any) -> Symbol:
        return self._reflected("^", other)

    def __neg__(self) -> Symbol:
        return self.recorder.prefix("-", self)

    def __pos__(self) -> Symbol:
        return self.recorder.prefix("+", self)

    def __invert__(self) -> Symbol:
        return self.recorder.prefix("~", self)

    def __abs__(self) -> Symbol:
        return self.recorder.call("abs", self)

    def __round__(self, digits: int | None = None) -> Symbol:
        if digits is not None:
            self.recorder.need_value(self)
        return self.recorder.call("int", self.recorder.call("round", self))

    # Comparison. Python asks `x > 0` where `0 < x` is written; the instruction says which it was.

    def __lt__(self, other: Any) -> Symbol:
        return self._compare("<", other)

    def __le__(self, other: Any) -> Symbol:
        return self._compare("<=", other)

    def __gt__(self, other: Any) -> Symbol:
        return self._compare(">", other)

    def __ge__(self, other: Any) -> Symbol:
        return self._compare(">=", other)

    def __eq__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self._equal("==", other)

    def __ne__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self._equal("!=", other)

    # Where Python wants a value, there is none: an error that says what to write, or a constant instead of a scalar.

    def __bool__(self) -> bool:
        self.recorder.need_value(self)

    def __int__(self) -> int:
        self.recorder.need_value(self)

    def __float__(self) -> float:
        self.recorder.need_value(self)

    def __index__(self) -> int:
        self.recorder.need_value(self)

    def __complex__(self) -> complex:
        self.recorder.need_value(self)

    def __hash__(self) -> int:
        self.recorder.need_value(self)

    def __len__(self) -> int:
        self.recorder.need_value(self)

    def __iter__(self) -> Iterator[Any]:
        self.recorder.need_value(self)

    def __contains__(self, item: Any) -> bool:
        self.recorder.need_value(self)

    # The face of a 0-d tensor.

    def __getitem__(self, index: Any) -> Any:
        return self.recorder.index(self, index)

    def __getattr__(self, name: str) -> Any:
        if not self.recorder.has_method(name):
            self.recorder.missing(self, name)
        return partial(self.recorder.method, name, self)

    @property
    def device(self) -> torch.device:
        return ANYWHERE

    @property
    def dtype(self) -> torch.dtype:
        return TORCH_TYPES[self.expr.dtype]

    @property
    def shape(self) -> torch.Size:
        return self.recorder.open_shape(self)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def requires_grad(self) -> bool:
        return False

    @property
    def is_cuda(self) -> bool:
        return False

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        symbol = next(symbols_in((args, kwargs or {})))
        return symbol.recorder.torch_function(func, args, kwargs or {})

    def _infix(self, symbol: str, other: Any) -> Symbol:
        return self.recorder.infix(symbol, self, other)

    def _reflected(self, symbol: str, other: Any) -> Symbol:
        return self.recorder.infix(symbol, other, self)

    def _compare(self, symbol: str, other: Any) -> Symbol:
        instruction, operator = opcode_of(sys._getframe(2))
        mirrored = MIRRORED[symbol]
        if instruction == "COMPARE_OP" and operator.removeprefix("bool(").rstrip(")") == mirrored:
            return self.recorder.infix(mirrored, other, self)
        return self.recorder.infix(symbol, self, other)

    def _equal(self, symbol: str, other: Any) -> Symbol:
        if not isinstance(other, Symbol) and self.recorder.literal_on_the_left():
            return self.recorder.infix(symbol, other, self)
        return self.recorder.infix(symbol, self, other)


def symbols_in(value: Any) -> Iterator[Symbol]:
    """The symbols inside nested arguments."""
    match value:
        case Symbol():
            yield value
        case tuple() | list():
            for item in value:
                yield from symbols_in(item)
        case dict():
            for item in value.values():
                yield from symbols_in(item)
        case slice():
            yield from symbols_in((value.start, value.stop, value.step))

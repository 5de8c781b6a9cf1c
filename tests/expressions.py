"""Random expressions of the language, typed by the builder both front ends use.

In: a hypothesis `draw` and the shape of a call. Out: masks and score mods whose captured loads are in bounds on live
pairs, and whose floats are tame: bounded, and discontinuous only where float32 is exact, so that float32 and float64
agree. `Scope` holds the program being drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from attndsl.frontend.builder import Builder
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Coordinate, DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[T]], T]
Operand = Expr | bool | int | float

SIZES = (16, 1, 2, 4, 7, 8, 15, 17, 31, 32, 33, 48, 64, 100)
CAP = 8.0
"""Floats are kept below this: what float32 loses must not be blown up."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a call; `q_end` is one past the largest `q_idx`."""

    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    v_head_dim: int
    q_offset: int | tuple[int, ...]

    @property
    def q_end(self) -> int:
        return self.q_len + (self.q_offset if isinstance(self.q_offset, int) else max(self.q_offset))


class Scope:
    """A program being drawn: its shape, its parameters so far, short names for the builder's calls."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        self._draw = draw
        self.shape = shape
        self.builder = Builder()
        self.params: list[Param] = []
        self.values: dict[str, int | float | Tensor] = {}
        self.sizes = {
            Coordinate.B: shape.batch,
            Coordinate.H: shape.q_heads,
            Coordinate.Q_IDX: shape.q_end,
            Coordinate.KV_IDX: shape.kv_len,
        }

    def pick(self, options: Sequence[T]) -> T:
        """One of the options; shrinks to the first."""
        return options[self.between(0, len(options) - 1)]

    def between(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def op(self, symbol: str, left: Operand, right: Operand) -> Expr:
        return self.builder.infix(symbol, self._lift(left), self._lift(right))

    def call(self, name: str, *args: Operand) -> Expr:
        return self.builder.call(name, [self._lift(arg) for arg in args])

    def no(self, operand: Expr) -> Expr:
        return self.builder.prefix("not", operand)

    def minus(self, operand: Expr) -> Expr:
        return self.builder.prefix("-", operand)

    def number(self, value: int | float) -> Expr:
        """The number as a constant or as a runtime scalar."""
        if self.between(0, 2) > 0:
            return self._lift(value)
        name = f"n{len(self.params)}"
        dtype = DType.F32 if isinstance(value, float) else DType.I64
        self.params.append(ScalarParam(name, dtype, value))
        self.values[name] = value
        return build.scalar(name, dtype)

    def load(self, tensor: Tensor, *indices: Operand) -> Expr:
        """A new captured tensor, read at the indices."""
        name = f"t{len(self.params)}"
        kind = DType.BOOL if tensor.dtype is torch.bool else DType.F32 if tensor.is_floating_point() else DType.I64
        self.params.append(TensorParam(name, kind, tuple(f"d{axis}" for axis in range(tensor.ndim))))
        self.values[name] = tensor
        return self.again(name, *indices)

    def again(self, name: str, *indices: Operand) -> Expr:
        """A tensor captured before, read elsewhere."""
        tensor = next(param for param in self.params if isinstance(param, TensorParam) and param.name == name)
        return self.builder.load(tensor, [self._lift(index) for index in indices])

    def integers(self, low: int, high: int, *sizes: int) -> Tensor:
        """A tensor of random integers in [low, high), of any storage dtype that holds them."""
        dtype = self.pick((torch.int64, torch.int32, torch.int16))
        return torch.randint(low, high, sizes, generator=self._generator(), dtype=dtype)

    def bools(self, *sizes: int) -> Tensor:
        return torch.rand(sizes, generator=self._generator()) < self.pick((0.5, 0.9, 0.1))

    def reals(self, *sizes: int) -> Tensor:
        """A tensor of 1/64ths in [-2, 2], which every storage dtype holds exactly."""
        dtype = self.pick((torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64))
        return (torch.randint(-128, 129, sizes, generator=self._generator()) / 64).to(dtype)

    def random_coords(self) -> tuple[list[Expr], list[int]]:
        """Some coordinates in order, and the sizes of a tensor they index."""
        chosen = self.pick(
            (
                (Coordinate.H,),
                (Coordinate.Q_IDX,),
                (Coordinate.KV_IDX,),
                (Coordinate.B,),
                (),
                (Coordinate.B, Coordinate.H),
                (Coordinate.Q_IDX, Coordinate.KV_IDX),
                (Coordinate.B, Coordinate.KV_IDX),
                (Coordinate.B, Coordinate.H, Coordinate.Q_IDX),
                (Coordinate.B, Coordinate.H, Coordinate.Q_IDX, Coordinate.KV_IDX),
            )
        )
        # Longer than needed is fine.
        spare = self.pick((0, 0, 3))
        return [build.coord(coordinate) for coordinate in chosen], [self.sizes[axis] + spare for axis in chosen]

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.between(0, 2**16))

    def _lift(self, operand: Operand) -> Expr:
        return self.builder.literal(operand) if isinstance(operand, bool | int | float) else operand


# Integers: every expression comes with a bound on its magnitude, so that nothing leaves 64 bits.

Bounded = tuple[Expr, float]


def integer(scope: Scope, depth: int = 2) -> Bounded:
    """A random integer expression over coordinates, lengths, scalars and captured integers."""
    if depth == 0 or scope.between(0, 3) == 0:
        return _integer_leaf(scope)
    operation = scope.pick(_INTEGER_OPERATIONS)
    expr, bound = operation(scope, depth - 1)
    if bound < 2**31:
        return expr, bound
    return scope.op("%", expr, 1009), 1009


def _integer_leaf(scope: Scope) -> Bounded:
    shape = scope.shape
    kind = scope.between(0, 7)
    if kind < 4:
        leaf = ((build.K, shape.kv_len), (build.Q, shape.q_end), (build.H, shape.q_heads), (build.B, shape.batch))[kind]
    elif kind < 6:
        leaf = (scope.number(scope.pick((*SIZES, 0, -1, -5))), 100)
    elif kind == 6:
        leaf = scope.pick(((build.Q_LEN, shape.q_len), (build.KV_LEN, shape.kv_len)))
    else:
        coords, sizes = scope.random_coords()
        leaf = (scope.load(scope.integers(-20, 100, *sizes), *coords), 100)
    return leaf


def _arithmetic(scope: Scope, depth: int) -> Bounded:
    symbol = scope.pick(("-", "+", "*"))
    (left, a), (right, b) = integer(scope, depth), integer(scope, depth)
    return scope.op(symbol, left, right), a * b if symbol == "*" else a + b


def _division(scope: Scope, depth: int) -> Bounded:
    left, bound = integer(scope, depth)
    divisor: Operand = scope.pick((2, 3, 16, 7, 33, -4))
    if scope.between(0, 3) == 0:
        right, limit = integer(scope, 0)
        divisor, symbol = scope.op("+", scope.call("abs", right), 1), scope.pick(("//", "%"))
        return scope.op(symbol, left, divisor), max(bound, limit + 1)
    return scope.op(scope.pick(("//", "%")), left, divisor), max(bound, 33)


def _extremum(scope: Scope, depth: int) -> Bounded:
    (left, a), (right, b) = integer(scope, depth), integer(scope, depth)
    return scope.call(scope.pick(("min", "max")), left, right), max(a, b)


def _clamped(scope: Scope, depth: int) -> Bounded:
    value, _ = integer(scope, depth)
    return scope.call("clamp", value, -3, scope.pick(SIZES)), 100


def _bits(scope: Scope, depth: int) -> Bounded:
    (left, a), (right, b) = integer(scope, depth), integer(scope, depth)
    return scope.op(scope.pick(("&", "|", "^")), left, right), 2 * max(a, b, 1)


def _shift(scope: Scope, depth: int) -> Bounded:
    left, bound = integer(scope, depth)
    symbol = scope.pick((">>", "<<"))
    count: Operand = scope.between(0, 6)
    if scope.between(0, 3) == 0:
        count = scope.op("&", integer(scope, 0)[0], 7)
    return scope.op(symbol, left, count), bound * 128 if symbol == "<<" else bound


def _unary(scope: Scope, depth: int) -> Bounded:
    value, bound = integer(scope, depth)
    kind = scope.between(0, 3)
    if kind == 0:
        return scope.call("abs", value), bound
    if kind == 1:
        return scope.call("bit_length", value), 64
    return (scope.minus(value) if kind == 2 else scope.builder.prefix("~", value)), bound + 1


def _chosen(scope: Scope, depth: int) -> Bounded:
    (yes, a), (no, b) = integer(scope, depth), integer(scope, depth)
    return scope.call("where", condition(scope), yes, no), max(a, b)


def _cast(scope: Scope, depth: int) -> Bounded:
    if scope.between(0, 1) == 0:
        return scope.call("int", condition(scope)), 1
    return scope.call("int", exact(scope, depth)), 2**20


_INTEGER_OPERATIONS = (
    _arithmetic,
    _division,
    _extremum,
    _bits,
    _shift,
    _unary,
    _clamped,
    _chosen,
    _cast,
    _arithmetic,
)


def condition(scope: Scope) -> Expr:
    """A small bool that is neither always true nor always false."""
    kind = scope.between(0, 5)
    if kind == 0:
        return scope.op("<=", build.K, build.Q)
    if kind == 1:
        return scope.op("==", scope.op("%", build.H, 2), 0)
    if kind == 2:
        return scope.op("<", scope.op("-", build.Q, build.K), scope.pick(SIZES))
    if kind == 3:
        coords, sizes = scope.random_coords()
        return scope.load(scope.bools(*sizes), *coords)
    if kind == 4:
        left, right = (scope.op("!=", scope.op("&", position, 4), 0) for position in (build.Q, build.K))
        return scope.op("^", left, right)
    return scope.call("bool", scope.op("%", build.K, 3))


# Floats.


def exact(scope: Scope, depth: int = 1) -> Expr:
    """A float that float32 holds exactly: small integers in quarters. Rounding and comparing it is safe."""
    value, bound = integer(scope, depth)
    if bound > 2**18:
        value = scope.op("%", value, 1009)
    return scope.op("*", scope.call("float", value), scope.pick((0.25, 0.5, 1.0, -0.75)))


def real(scope: Scope, depth: int, flow: Expr | None) -> Bounded:
    """A tame random float: bounded, with moderate derivatives. `flow` is the score or weight it may use."""
    if depth == 0 or scope.between(0, 7) == 0:
        return _real_leaf(scope, flow)
    operation = scope.pick(_REAL_OPERATIONS)
    expr, bound = operation(scope, depth - 1, flow)
    if bound <= CAP:
        return expr, bound
    return scope.op("*", scope.call("tanh", scope.op("/", expr, CAP)), CAP), CAP


def _real_leaf(scope: Scope, flow: Expr | None) -> Bounded:
    kind = scope.between(0, 5)
    if kind <= 1 and flow is not None:
        return flow, CAP
    if kind <= 2:
        distance = scope.op("-", build.Q, build.K)
        return scope.op("*", scope.call("float", distance), 2.0**-6), 4.0
    if kind == 3:
        return scope.number(scope.pick((0.5, -1.0, 0.0, 1.25, 2.0, -0.375))), 2.0
    coords, sizes = scope.random_coords()
    return scope.load(scope.reals(*sizes), *coords), 2.0


def _smooth(scope: Scope, depth: int, flow: Expr | None) -> Bounded:
    value, bound = real(scope, depth, flow)
    name = scope.pick(("tanh", "sigmoid", "sin", "cos", "erf", "gelu", "silu"))
    return scope.call(name, value), bound if name in ("gelu", "silu") else 1.0


def _guarded(scope: Scope, depth: int, flow: Expr | None) -> Bounded:
    """Functions with poles or growth, at arguments where they are tame."""
    value, bound = real(scope, depth, flow)
    size = scope.call("abs", value)
    name = scope.pick(("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tan", "pow"))
    match name:
        case "exp" | "exp2":
            return scope.call(name, scope.call("min", value, 1.5)), 4.5
        case "log" | "log2":
            return scope.call(name, scope.op("+", size, 1.0)), bound
        case "sqrt" | "rsqrt":
            return scope.call(name, scope.op("+", size, 0.5)), bound + 1.5
        case "tan":
            return scope.call(name, scope.call("tanh", value)), 1.6
        case _:
            exponent = scope.pick((2.0, 0.5, -1.0, 1.5, -0.25))
            return scope.op("**", scope.op("+", size, 0.5), exponent), max(2.0, (bound + 0.5) ** exponent)


def _combined(scope: Scope, depth: int, flow: Expr | None) -> Bounded:
    (left, a), (right, b) = real(scope, depth, flow), real(scope, depth, flow)
    name = scope.pick(("+", "-", "*", "/", "min", "max"))
    match name:
        case "+" | "-":
            return scope.op(name, left, right), a + b
        case "*":
            return scope.op(name, left, right), a * b
        case "/":
            return scope.op(name, left, scope.op("+", scope.call("abs", right), 1.0)), a
        case _:
            return scope.call(name, left, right), max(a, b)


def _sign(scope: Scope, depth: int, flow: Expr | None) -> Bounded:
    value, bound = real(scope, depth, flow)
    return (scope.call("abs", value) if scope.between(0, 1) else scope.minus(value)), bound


def _branches(scope: Scope, depth: int, flow: Expr | None) -> Bounded:
    (yes, a), (no, b) = real(scope, depth, flow), real(scope, depth, flow)
    test = condition(scope)
    if scope.between(0, 2) == 0:
        test = scope.op(scope.pick(("<", "<=", ">", ">=", "==", "!=")), exact(scope), exact(scope))
    return scope.call("where", test, yes, no), max(a, b)


def _rounded(scope: Scope, depth: int, flow: Expr | None) -> Bounded:
    value = exact(scope)
    name = scope.pick(("floor", "ceil", "round", "//", "%"))
    if name in ("//", "%"):
        value = scope.op(name, value, scope.pick((2.0, 0.5, -4.0)))
    else:
        value = scope.call(name, value)
    return scope.op("%", value, 4.0), 4.0


def _relative(scope: Scope, depth: int, flow: Expr | None) -> Bounded:
    """A table of relative distances, read at a clamped one."""
    reach = scope.pick((8, 1, 3, 31))
    distance = scope.call("clamp", scope.op("-", build.Q, build.K), -reach, reach)
    return scope.load(scope.reals(2 * reach + 1), scope.op("+", distance, reach)), 2.0


_REAL_OPERATIONS = (_combined, _smooth, _guarded, _sign, _branches, _rounded, _relative, _smooth, _guarded, _combined)


def score(scope: Scope, causal: bool) -> Expr:
    """A random score mod. Under a causal mask it may read tables that only live pairs index in bounds."""
    kind = scope.between(0, 4)
    if kind == 0:
        result: Expr = build.SCORE
    elif kind == 1:
        result = scope.op("+", build.SCORE, real(scope, 2, None)[0])
    else:
        result = real(scope, 3, build.SCORE)[0]
    if causal and scope.between(0, 3) == 0:
        table = scope.load(scope.reals(scope.shape.q_end), scope.op("-", build.Q, build.K))
        result = scope.op("+", result, table)
    if scope.between(0, 7) == 0:
        result = scope.call("where", condition(scope), result, float("-inf"))
    return result

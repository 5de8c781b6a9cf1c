"""Typed constructors: the only way nodes are made. They check and type, they never simplify.

A wrong call is a bug of the caller (`VerifyError`): front ends coerce and report to users before they build.
"""

from __future__ import annotations

from functools import reduce

from attndsl.diagnostics import VerifyError
from attndsl.ir.nodes import Apply, Const, Coord, Expr, Input, Load, Reduce, RowValue, Scalar, Solve, intern
from attndsl.ir.ops import Op, Result, facts
from attndsl.ir.types import Coordinate, DType, Flow, Reduction


def boolean(value: bool) -> Const:
    return intern(Const, bool(value), DType.BOOL)


def integer(value: int) -> Const:
    return intern(Const, int(value), DType.I64)


def real(value: float) -> Const:
    return intern(Const, float(value), DType.F32)


TRUE = boolean(True)
FALSE = boolean(False)


def coord(coordinate: Coordinate) -> Coord:
    return intern(Coord, coordinate)


B, H, Q, K, Q_LEN, KV_LEN = map(coord, Coordinate)
SCORE = intern(Input, Flow.SCORE)
WEIGHT = intern(Input, Flow.WEIGHT)
THRESHOLD = intern(Input, Flow.THRESHOLD)
DWEIGHT = intern(Input, Flow.DWEIGHT)


def scalar(name: str, dtype: DType) -> Scalar:
    return intern(Scalar, name, dtype)


def load(tensor: str, indices: tuple[Expr, ...], dtype: DType) -> Load:
    """An element of a captured tensor; every index is an integer."""
    if not all(index.dtype.is_int for index in indices):
        raise VerifyError(f"`{tensor}` is indexed by {[index.dtype.value for index in indices]}, expected integers")
    return intern(Load, tensor, tuple(indices), dtype)


def row(reduction: Reduction, arg: Expr) -> Reduce:
    """A statistic of a float over the live keys of the row."""
    if not arg.dtype.is_float:
        raise VerifyError(f"{reduction.value} of {arg.dtype.value}, expected a float")
    return intern(Reduce, reduction, arg)


def solve(body: Expr, total: Expr, lower: Expr, upper: Expr) -> Solve:
    """The threshold at which a row's sum of `body` is `total`; all four are floats."""
    if not all(part.dtype.is_float for part in (body, total, lower, upper)):
        raise VerifyError("a row is solved with floats")
    return intern(Solve, body, total, lower, upper)


def row_value(name: str) -> RowValue:
    """A float kept for each row under that name."""
    return intern(RowValue, name)


def apply(op: Op, *args: Expr) -> Apply:
    """An operator on operands whose types its row accepts."""
    row_ = facts(op)
    typed = args[1:] if op is Op.WHERE else args
    dtype = typed[-1].dtype if typed else None
    well_typed = (
        len(args) == row_.arity
        and all(arg.dtype is dtype for arg in typed)
        and dtype in row_.operands
        and (op is not Op.WHERE or args[0].dtype.is_bool)
    )
    if not well_typed or dtype is None:
        raise VerifyError(f"{op.name} does not take ({', '.join(arg.dtype.value for arg in args)})")
    match row_.result:
        case Result.BOOL:
            dtype = DType.BOOL
        case Result.INT:
            dtype = DType.I64
        case Result.FLOAT:
            dtype = DType.F32
        case Result.SAME:
            pass
    return intern(Apply, op, tuple(args), dtype)


def conjunction(terms: tuple[Expr, ...] | list[Expr]) -> Expr:
    """All of the terms; true when there are none."""
    return reduce(lambda left, right: apply(Op.AND, left, right), terms) if terms else TRUE


def disjunction(terms: tuple[Expr, ...] | list[Expr]) -> Expr:
    """Any of the terms; false when there are none."""
    return reduce(lambda left, right: apply(Op.OR, left, right), terms) if terms else FALSE

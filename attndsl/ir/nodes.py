"""The nodes of an expression: frozen, typed, hash-consed.

Equal structure is the same object, so nodes compare and hash by identity, common subexpressions share by construction
and nothing recurses however deep a program is. Locations are not part of a node; `Variant.origins` keeps them.
Build nodes with `ir.build`, which types them; `intern` is for `ir.build` and the rewrite driver.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

from attndsl.ir.ops import Op
from attndsl.ir.types import Coordinate, DType, Flow, Reduction


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Const:
    """A literal with its type: `1`, `1.0` and `true` are three constants, `0.0` and `-0.0` two."""

    value: bool | int | float
    dtype: DType


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Coord:
    """A coordinate of the pair, or one of the lengths."""

    coordinate: Coordinate

    @property
    def dtype(self) -> DType:
        return DType.I64


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Input:
    """The value flowing into the stage this expression describes."""

    flow: Flow

    @property
    def dtype(self) -> DType:
        return DType.F32


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Scalar:
    """A runtime scalar: the parameter of that name of the variant."""

    name: str
    dtype: DType


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Load:
    """An element of the captured tensor parameter of that name; one index per dimension, none for a 0-d tensor."""

    tensor: str
    indices: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Apply:
    """An operator on its operands; what is known of operators is in `ir.ops`."""

    op: Op
    args: tuple[Expr, ...]
    dtype: DType


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Reduce:
    """A row statistic of a normalizer, over the live keys of the row."""

    reduction: Reduction
    arg: Expr

    @property
    def dtype(self) -> DType:
        return DType.F32


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Solve:
    """A row statistic of a normalizer: the least t at which the sum of `body` over the row's live keys is <= `total`.

    `body` is over `Input(THRESHOLD)` = t and never rises with it; t is looked for between `lower` and `upper`, values
    of the row, and is `upper` where no less will do. A row without a live key has t = `lower`.
    """

    body: Expr
    total: Expr
    lower: Expr
    upper: Expr

    @property
    def dtype(self) -> DType:
        return DType.F32


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class RowValue:
    """A float kept for each row, by name: a statistic after it is known, or a value of the backward.

    Only derivations write it; no program a front end makes holds one.
    """

    name: str

    @property
    def dtype(self) -> DType:
        return DType.F32


Expr = Const | Coord | Input | Scalar | Load | Apply | Reduce | Solve | RowValue
N = TypeVar("N", Const, Coord, Input, Scalar, Load, Apply, Reduce, Solve, RowValue)

_lock = threading.Lock()
_interned: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


def intern(kind: type[N], *fields: Any) -> N:
    """The one node of this kind with these fields."""
    key = (kind, *map(_identity, fields))
    with _lock:
        node = _interned.get(key)
        if node is None:
            node = kind(*fields)
            _interned[key] = node
    return cast(N, node)


def _after_fork() -> None:
    """The thread that held the lock is not in this process."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _identity(field: Any) -> Any:
    """A key that tells `1` from `True` from `1.0` and `0.0` from `-0.0`, and finds one NaN equal to itself."""
    if isinstance(field, float):
        return ("float", struct.pack("<d", field))
    if isinstance(field, bool | int):
        return (type(field).__name__, field)
    return field


def children(node: Expr) -> tuple[Expr, ...]:
    """The operands of a node, in order."""
    match node:
        case Apply(args=args):
            return args
        case Load(indices=indices):
            return indices
        case Reduce(arg=arg):
            return (arg,)
        case Solve(body=body, total=total, lower=lower, upper=upper):
            return (body, total, lower, upper)
        case _:
            return ()


def postorder(*roots: Expr) -> Iterator[Expr]:
    """Every distinct node once, operands before the nodes that use them, in the order they are written."""
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, expanded = stack.pop()
        if node in seen:
            continue
        if expanded:
            seen.add(node)
            yield node
            continue
        stack.append((node, True))
        stack.extend((child, False) for child in reversed(children(node)) if child not in seen)


def with_children(node: Expr, operands: tuple[Expr, ...]) -> Expr:
    """The node with other operands; the same object when they are the ones it has."""
    if all(new is old for new, old in zip(operands, children(node), strict=True)):
        return node
    match node:
        case Apply(op=op, dtype=dtype):
            return intern(Apply, op, operands, dtype)
        case Load(tensor=tensor, dtype=dtype):
            return intern(Load, tensor, operands, dtype)
        case Reduce(reduction=reduction):
            return intern(Reduce, reduction, operands[0])
        case Solve():
            return intern(Solve, *operands)
        case _:
            return node

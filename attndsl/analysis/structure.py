"""How the gradient of a captured element gathers over pairs, by what its index depends on.

In: a `Load`. Out: its `Structure`: along which of queries and keys derivatives by the element may be summed before
anybody has looked at the index.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from attndsl.analysis.axes import axes_of
from attndsl.analysis.linear import linear
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Coord, Expr, Input, Load, Reduce, RowValue, Scalar, Solve, children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis

LINEAR = frozenset({Op.ADD, Op.SUB, Op.NEG, Op.BIT_NOT, Op.MUL, Op.SHL})
COMPARISONS = frozenset({Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE})
EXTREMES = frozenset({Op.MIN, Op.MAX})


class Structure(Enum):
    """What the index of an element depends on, besides batch and head.

    `ROW`: on the query at most, `COLUMN`: on the key, `DIAGONAL`: on the distance `q_idx - kv_idx` alone,
    `PAIRS`: on both in any other way.
    """

    ROW = "row"
    COLUMN = "column"
    DIAGONAL = "diagonal"
    PAIRS = "pairs"


@lru_cache(maxsize=4096)
def structure_of(load: Load) -> Structure:
    """The structure of an element; `DIAGONAL` is claimed where it is proven."""
    axes = axes_of(load)
    if Axis.K not in axes:
        return Structure.ROW
    if Axis.Q not in axes:
        return Structure.COLUMN
    moves = drifts(*load.indices)
    return Structure.DIAGONAL if all(moves[index] == 0 for index in load.indices) else Structure.PAIRS


def is_indexed_by_scores(load: Load) -> bool:
    """Whether an index is made of scores or row statistics, so that only kernels know which element a pair reads."""
    return any(isinstance(node, Input | Reduce | Solve | RowValue) for node in postorder(*load.indices))


def drifts(*roots: Expr) -> dict[Expr, int | None]:
    """By how much a value grows when query and key both move on by one, whatever they are; `None` where no such number
    is known. A value with drift 0 is a function of `q_idx - kv_idx`, batch and head.
    """
    found: dict[Expr, int | None] = {}
    for node in postorder(*roots):
        found[node] = _drift(node, found)
    return found


def _drift(node: Expr, known: dict[Expr, int | None]) -> int | None:
    match node:
        case Const() | Scalar():
            return 0
        case Coord():
            return 1 if node is build.Q or node is build.K else 0
        case Apply(op=op) if op in LINEAR and node.dtype.is_int:
            return _linear(node, known)
        case Apply(op=op, args=args) if op in EXTREMES or op in COMPARISONS:
            shared = _shared(args, known)
            return shared if op in EXTREMES or shared is None else 0
        case Apply(op=Op.WHERE, args=(condition, yes, no)) if known[condition] == 0:
            return _shared((yes, no), known)
        case Apply(op=Op.FLOORDIV | Op.MOD as op, args=(left, Const(value=step))) if left.dtype.is_int and step != 0:
            quotient, rest = divmod(known[left] or 0, int(step))
            if known[left] is None or rest != 0:
                return None
            return quotient if op is Op.FLOORDIV else 0
        case Apply() | Load():
            return 0 if all(known[child] == 0 for child in children(node)) else None
        case _:
            return None


def _shared(args: tuple[Expr, ...], known: dict[Expr, int | None]) -> int | None:
    """The drift all operands have."""
    return known[args[0]] if len({known[arg] for arg in args}) == 1 else None


def _linear(node: Apply, known: dict[Expr, int | None]) -> int | None:
    """Of a sum: what cancels has cancelled in its linear form, whose terms are operands of some kind met before."""
    total = 0
    for term, coefficient in linear(node, expand=False).terms:
        if term is node:
            return 0 if all(known[child] == 0 for child in children(node)) else None
        drift = known.get(term)
        if drift is None:
            return None
        total += coefficient * drift
    return total

"""Normalizers that are a softmax or its kin: the weight is `exp(x - lse)`, lse the log of the whole divisor.

In: a normalizer `exp(x - shift) / divisor` (or `exp(x) / divisor`), x free of row statistics. Out: its parts. It is
`closed` when the divisor is `Σ exp(x - shift)` plus terms `exp(c - shift)` of the row alone: then the weight does not
depend on the shift, and lse = log(Σ exp(x) + Σ exp(c)) has the derivatives everybody knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.analysis.arithmetic import ZERO, add, call
from attndsl.analysis.axes import axes_of
from attndsl.ir.nodes import Apply, Expr, Reduce, Solve
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis, Reduction


@dataclass(frozen=True, slots=True)
class Exponential:
    """`exp(exponent - shift) / divisor`; the shift is 0 where there is none.

    `sinks` are the c of a closed one, `None` where the divisor has another form: lse is then shift + log(divisor) and
    no more is known of it.
    """

    exponent: Expr
    shift: Expr
    divisor: Expr
    sinks: tuple[Expr, ...] | None

    @property
    def lse(self) -> Expr:
        """The log of the whole divisor, over the same statistics as the normalizer."""
        return add(self.shift, call(Op.LOG, self.divisor))


def exponential(normalizer: Expr) -> Exponential | None:
    """The normalizer read as an exponential over a divisor; `None` for any other."""
    match normalizer:
        case Apply(op=Op.DIV, args=(Apply(op=Op.EXP, args=(exponent,)), divisor)) if is_row(divisor):
            pass
        case _:
            return None
    match exponent:
        case Apply(op=Op.SUB, args=(raw, shift)) if not statistics_in(raw) and is_row(shift):
            return Exponential(raw, shift, divisor, _sinks(divisor, raw, shift))
        case _ if not statistics_in(exponent):
            return Exponential(exponent, ZERO, divisor, _sinks(divisor, exponent, ZERO))
        case _:
            return None


def is_row(expr: Expr) -> bool:
    """Whether a value is alike for all keys of a row."""
    return Axis.K not in axes_of(expr)


def statistics_in(expr: Expr) -> bool:
    """Whether a value reads row statistics."""
    return any(isinstance(node, Reduce | Solve) for node in postorder(expr))


def _sinks(divisor: Expr, raw: Expr, shift: Expr) -> tuple[Expr, ...] | None:
    """The c of the divisor's `exp(c - shift)` when what else it adds up is `Σ exp(raw - shift)`, once."""
    sinks: list[Expr] = []
    sums = 0
    for part in addends(divisor):
        match part:
            case Reduce(reduction=Reduction.SUM, arg=Apply(op=Op.EXP, args=(power,))):
                if _above(power, shift) is not raw:
                    return None
                sums += 1
            case Apply(op=Op.EXP, args=(power,)):
                sink = _above(power, shift)
                if sink is None or statistics_in(sink):
                    return None
                sinks.append(sink)
            case _:
                return None
    return tuple(sinks) if sums == 1 else None


def _above(power: Expr, shift: Expr) -> Expr | None:
    """What a power of e has beyond the shift."""
    match power:
        case _ if shift is ZERO:
            return power
        case Apply(op=Op.SUB, args=(value, subtracted)) if subtracted is shift:
            return value
        case Apply(op=Op.NEG, args=(negated,)) if negated is shift:
            return ZERO
        case _:
            return None


def addends(expr: Expr) -> list[Expr]:
    """The terms of a sum, in the order they are written."""
    found: list[Expr] = []
    stack = [expr]
    while stack:
        match stack.pop():
            case Apply(op=Op.ADD, args=(left, right)):
                stack += [right, left]
            case term:
                found.append(term)
    return found


def divisors(normalizer: Expr) -> tuple[Expr, ...]:
    """The sums over a row, and what is made of them, that a normalizer divides by: a weight is 0 where one is 0."""
    found = [node.args[1] for node in postorder(normalizer) if isinstance(node, Apply) and node.op is Op.DIV]
    return tuple(divisor for divisor in dict.fromkeys(found) if is_row(divisor) and _sums(divisor))


def _sums(expr: Expr) -> bool:
    return any(isinstance(node, Reduce) and node.reduction is Reduction.SUM for node in postorder(expr))


def is_positive(divisor: Expr) -> bool:
    """Whether a divisor is at least 1 in every row with a live key: it adds `exp(x - row_max(x))` over the row."""
    return any(map(_holds_its_maximum, addends(divisor))) and all(map(is_nonnegative, addends(divisor)))


def _holds_its_maximum(part: Expr) -> bool:
    match part:
        case Reduce(reduction=Reduction.SUM, arg=Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(raw, shift)),))):
            return isinstance(shift, Reduce) and shift.reduction is Reduction.MAX and shift.arg is raw
        case _:
            return False


def is_nonnegative(expr: Expr) -> bool:
    """Whether a value is plainly never negative."""
    match expr:
        case Reduce(reduction=Reduction.SUM, arg=arg):
            return is_nonnegative(arg)
        case Apply(op=Op.EXP | Op.EXP2 | Op.ABS | Op.SQRT | Op.SIGMOID):
            return True
        case Apply(op=Op.MUL, args=(left, right)) if left is right:
            return True
        case _:
            return False

"""Is an expression zero whatever its leaves are? Decided by sympy on rational functions of what it cannot look into.

In: a float expression. Out: a proof that it is 0, as mathematics has it: rounding aside. `exp` of a sum is a product,
captured elements and functions of other kinds are unknowns. Branches of a `where` are looked at one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from attndsl.analysis.arithmetic import ONE, ZERO
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, children, with_children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder

MAX_UNKNOWNS = 24
"""Beyond this many the rational functions would be large, and nobody wrote them by hand."""

MAX_CASES = 64
"""Combinations of branches that are tried."""

MAX_POWER = 8

MAX_DENOMINATOR = 10**6
ROUNDING = Fraction(1, 2**50)
"""A float this close to a simple fraction was meant as one: 0.3333333333333333 as a third, and less 1 as -2/3."""

Rational = Any


@lru_cache(maxsize=512)
def is_zero(root: Expr) -> bool:
    """Whether the expression is proven to be 0, in every combination of the branches it has."""
    cases = [root]
    for _ in range(MAX_CASES):
        if not cases:
            return True
        case = cases.pop()
        condition = next(_conditions(case), None)
        if condition is not None:
            cases += [assuming(case, condition, truth) for truth in (True, False)]
        elif not _vanishes(case):
            return False
    return False


def assuming(root: Expr, condition: Expr, truth: bool) -> Expr:
    """The expression where a condition is known: the branches it takes."""
    moves: dict[Expr, Expr] = {}
    for node in postorder(root):
        moved = with_children(node, tuple(moves[child] for child in children(node)))
        moves[node] = build.boolean(truth) if node is condition else _decided(moved)
    return moves[root]


def _decided(node: Expr) -> Expr:
    match node:
        case Apply(op=Op.WHERE, args=(Const(value=truth), yes, no)):
            return yes if truth else no
        case Apply(op=Op.NOT, args=(Const(value=truth),)):
            return build.boolean(not truth)
        case Apply(op=Op.AND | Op.OR as op, args=(left, right)):
            for known, other in ((left, right), (right, left)):
                if isinstance(known, Const):
                    return other if known.value == (op is Op.AND) else known
            return node
        case _:
            return node


def _conditions(root: Expr) -> Iterator[Expr]:
    """The conditions branches depend on, taken apart."""
    for node in postorder(root):
        match node:
            case Apply(op=Op.WHERE, args=(condition, *_)):
                yield from (part for part in postorder(condition) if part.dtype.is_bool and not _is_logic(part))


def _is_logic(node: Expr) -> bool:
    return isinstance(node, Apply) and node.op in (Op.AND, Op.OR, Op.NOT)


def _vanishes(root: Expr) -> bool:
    if root is ZERO:
        return True
    unknowns = [node for node in postorder(root) if node.dtype.is_float and not isinstance(node, Const)]
    try:
        return _Field(min(2 * len(unknowns), MAX_UNKNOWNS)).is_zero(root)
    except (ZeroDivisionError, _TooLarge):
        return False


class _TooLarge(Exception):
    """More unknowns than the field has."""


class _Field:
    """Rational functions of as many unknowns as the expression turns out to have."""

    def __init__(self, size: int) -> None:
        from sympy import QQ
        from sympy.polys.fields import field

        self._field, *self._free = field([f"x{index}" for index in range(size)], QQ)
        self._unknowns: dict[Any, Rational] = {}
        self._roots: list[tuple[Rational, int, Rational]] = []
        self._values: dict[Expr, Rational] = {}

    def is_zero(self, root: Expr) -> bool:
        """Whether the rational function that the expression is has numerator 0."""
        for node in postorder(root):
            if node.dtype.is_float:
                self._values[node] = self._value(node)
        parts = [self._values[root]]
        for unknown, degree, base in reversed(self._roots):
            parts = [residue for part in parts for residue in self._residues(part, unknown, degree, base)]
        return not any(parts)

    def _residues(self, value: Rational, unknown: Rational, degree: int, base: Rational) -> list[Rational]:
        """The numerator by powers of a root below its degree; higher ones are powers of what it is the root of."""
        index = next(at for at, power in enumerate(unknown.numer.leading_expv()) if power)
        residues = [self._field(0)] * degree
        for powers, coefficient in value.numer.terms():
            times, rest = divmod(powers[index], degree)
            plain = (*powers[:index], 0, *powers[index + 1 :])
            monomial = self._field(self._field.ring.from_dict({plain: coefficient}))
            residues[rest] += monomial * base**times
        return residues

    def _unknown(self, key: Any) -> Rational:
        if key not in self._unknowns:
            if not self._free:
                raise _TooLarge
            self._unknowns[key] = self._free.pop(0)
        return self._unknowns[key]

    def _value(self, node: Expr) -> Rational:
        match node:
            case Const(value=value) if value == value and abs(value) != float("inf"):
                return self._field(_exact(value))
            case Apply(op=op, args=args) if op in _RATIONAL and all(arg in self._values for arg in args):
                return _RATIONAL[op](*(self._values[arg] for arg in args))
            case Apply(op=Op.POW, args=(base, exponent)):
                return self._power(self._values[base], self._values[exponent])
            case Apply(op=Op.SQRT | Op.RSQRT as op, args=(base,)):
                return self._power(self._values[base], self._field(1 if op is Op.SQRT else -1) / 2)
            case Apply(op=Op.EXP, args=(exponent,)):
                return self._exponential(self._values[exponent])
            case Apply(op=op, args=args):
                return self._unknown((op, *(self._values.get(arg, arg) for arg in args)))
            case _:
                return self._unknown(node)

    def _power(self, base: Rational, exponent: Rational) -> Rational:
        """The whole part of the exponent apart, so that x ** p and x ** (p - 1) are known to be related."""
        constant = exponent.numer.const() / exponent.denom.LC if exponent.denom.is_ground else 0
        fraction = Fraction(int(constant.numerator), int(constant.denominator)) if constant else Fraction(0)
        whole = math.floor(fraction)
        if abs(whole) > MAX_POWER:
            return self._unknown((Op.POW, base, exponent))
        part = fraction - whole
        if exponent != self._field(constant) or part.denominator > MAX_POWER:
            return self._unknown((Op.POW, base, exponent - whole)) * base**whole
        return (self._root(base, part.denominator) ** part.numerator if part else 1) * base**whole

    def _root(self, base: Rational, degree: int) -> Rational:
        is_new = (Op.POW, base, degree) not in self._unknowns
        root = self._unknown((Op.POW, base, degree))
        if is_new:
            self._roots.append((root, degree, base))
        return root

    def _exponential(self, exponent: Rational) -> Rational:
        """exp of each term of the exponent, by its own; a multiple of a term is a power."""
        result = self._field(1)
        for powers, coefficient in exponent.numer.terms():
            unit = self._field.ring.from_dict({powers: self._field.ring.domain(1)})
            times = Fraction(int(coefficient.numerator), int(coefficient.denominator))
            whole = times.denominator == 1 and abs(times) <= MAX_POWER
            key = (Op.EXP, unit, exponent.denom, ONE if whole else abs(times))
            base = self._unknown(key)
            result = result * base ** (int(times) if whole else (1 if times > 0 else -1))
        return result


def _exact(value: bool | int | float) -> Any:
    from sympy import QQ

    fraction = Fraction(value)
    near = fraction.limit_denominator(MAX_DENOMINATOR)
    if abs(near - fraction) <= abs(fraction) * ROUNDING:
        fraction = near
    return QQ(fraction.numerator, fraction.denominator)


_RATIONAL: dict[Op, Callable[..., Rational]] = {
    Op.ADD: lambda left, right: left + right,
    Op.SUB: lambda left, right: left - right,
    Op.MUL: lambda left, right: left * right,
    Op.DIV: lambda left, right: left / right,
    Op.NEG: lambda operand: -operand,
    Op.TO_FLOAT: lambda operand: operand,
}

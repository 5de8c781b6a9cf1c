"""Expressions as products, to see what one is a multiple of.

In: expressions. Out: their factors, and the factor between two of them. A `where` with a branch of 0 counts as a gate
on the other one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from attndsl.analysis.arithmetic import ONE, ZERO, add, call, div, mul, neg, select, sub
from attndsl.analysis.derivatives import Literal
from attndsl.analysis.exponential import is_row
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op


@dataclass(slots=True)
class Product:
    """`number * Π base ** power` where all gates hold, 0 elsewhere. Powers are whole or half."""

    number: float = 1.0
    powers: dict[Expr, float] = field(default_factory=dict)
    gates: dict[Literal, None] = field(default_factory=dict)

    def expr(self) -> Expr:
        """The product as an expression."""
        value: Expr = ONE
        for combine, sign in ((mul, 1), (div, -1)):
            for base, power in self.powers.items():
                for factor in _repeated(base, sign * power):
                    value = combine(value, factor)
        value = mul(build.real(self.number), value) if abs(self.number) != 1.0 else value
        return gated(neg(value) if self.number == -1.0 else value, self.gates)

    def split(self, belongs: Callable[[Expr], bool]) -> tuple[Product, Product]:
        """The part made of what belongs, and the rest; the number goes with the first."""
        ours = Product(
            self.number,
            {base: power for base, power in self.powers.items() if belongs(base)},
            {literal: None for literal in self.gates if belongs(literal[0])},
        )
        rest = Product(
            1.0,
            {base: power for base, power in self.powers.items() if base not in ours.powers},
            {literal: None for literal in self.gates if literal not in ours.gates},
        )
        return ours, rest


def gated(value: Expr, gates: Iterable[Literal]) -> Expr:
    """The value where all gates hold, else 0."""
    for condition, holds in gates:
        value = select(condition, value, ZERO) if holds else select(condition, ZERO, value)
    return value


def factored(expr: Expr) -> Product:
    """The factors of an expression."""
    found = Product()
    stack = [(expr, 1.0)]
    while stack:
        node, power = stack.pop()
        match node:
            case Const(value=number) if number != 0 and float(power).is_integer():
                found.number *= float(number) ** power
            case Apply(op=Op.NEG, args=(operand,)) if float(power).is_integer():
                found.number *= (-1.0) ** power
                stack.append((operand, power))
            case Apply(op=Op.ADD, args=(left, right)) if left is right and float(power).is_integer():
                found.number *= 2.0**power
                stack.append((left, power))
            case Apply(op=Op.MUL, args=(left, right)):
                stack += [(right, power), (left, power)]
            case Apply(op=Op.DIV, args=(left, right)):
                stack += [(right, -power), (left, power)]
            case Apply(op=Op.POW, args=(base, Const(value=exponent))) if float(exponent * power).is_integer():
                stack.append((base, power * exponent))
            case Apply(op=Op.SQRT, args=(operand,)) if float(power).is_integer():
                stack.append((operand, power / 2))
            case Apply(op=Op.RSQRT, args=(operand,)) if float(power).is_integer():
                stack.append((operand, -power / 2))
            case Apply(op=Op.WHERE, args=(condition, value, nothing)) if nothing is ZERO and power > 0:
                found.gates.update(dict.fromkeys(_literals(condition, True)))
                stack.append((value, power))
            case Apply(op=Op.WHERE, args=(condition, nothing, value)) if nothing is ZERO and power > 0:
                found.gates.update(dict.fromkeys(_literals(condition, False)))
                stack.append((value, power))
            case _:
                found.powers[node] = found.powers.get(node, 0.0) + power
    found.powers = {base: power for base, power in found.powers.items() if power != 0}
    return found


def _literals(condition: Expr, holds: bool) -> Iterator[Literal]:
    """The conditions that must all hold or fail for this one to."""
    match condition:
        case Apply(op=Op.NOT, args=(opposite,)):
            yield from _literals(opposite, not holds)
        case Apply(op=Op.AND | Op.OR as op, args=args) if holds == (op is Op.AND):
            for part in args:
                yield from _literals(part, holds)
        case _:
            yield condition, holds


def _repeated(base: Expr, power: float) -> list[Expr]:
    """The factors of a power above 0, one by one: squares of divisors would leave the range of floats sooner."""
    return [call(Op.SQRT, base)] * (power % 1 == 0.5 and power > 0) + [base] * math.floor(max(power, 0.0))


def proportion(part: Expr, whole: Expr, *, regular: bool = True) -> Expr | None:
    """κ of the row alone with part = κ * whole; `None` where none is seen.

    A regular κ divides by nothing but what the whole divides by: no more can go wrong in it, and a factor of 0 in the
    whole cannot hide what the part is. It has the gates of the row the part has.
    """
    match part, whole:
        case _ if part is ZERO:
            return ZERO
        case _ if part is whole:
            return ONE
        case Apply(op=Op.NEG, args=(operand,)), _:
            found = proportion(operand, whole, regular=regular)
            return None if found is None else neg(found)
        case Apply(op=Op.WHERE, args=(which, *ours)), Apply(op=Op.WHERE, args=(other, *theirs)) if which is other:
            return _in_branches(ours, theirs, regular)
        case Apply(op=Op.ADD | Op.SUB as op, args=args), _:
            parts = [proportion(arg, whole, regular=regular) for arg in args]
            if parts[0] is not None and parts[1] is not None:
                return (add if op is Op.ADD else sub)(parts[0], parts[1])
    return _quotient(factored(part), factored(whole), regular)


def _in_branches(ours: list[Expr], theirs: list[Expr], regular: bool) -> Expr | None:
    """The proportion both branches have; a branch of 0 has any."""
    pairs = [pair for pair in zip(ours, theirs, strict=True) if pair != (ZERO, ZERO)]
    found = [proportion(mine, its, regular=regular) for mine, its in pairs]
    return found[0] if len(set(found)) == 1 else None


def _quotient(part: Product, whole: Product, regular: bool) -> Expr | None:
    powers = {
        base: part.powers.get(base, 0.0) - whole.powers.get(base, 0.0) for base in {**part.powers, **whole.powers}
    }
    powers = {base: power for base, power in powers.items() if power != 0}
    divides = [base for base, power in powers.items() if power < 0 and whole.powers.get(base, 0.0) >= 0]
    gates = {literal: None for literal in part.gates if is_row(literal[0])}
    shut = [literal for literal in whole.gates if literal not in part.gates]
    extra = [literal for literal in part.gates if literal not in whole.gates and literal not in gates]
    if (divides and regular) or shut or extra or not all(map(is_row, powers)):
        return None
    return Product(part.number / whole.number, powers, gates).expr()

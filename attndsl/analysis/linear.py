"""Integer expressions as integer-linear forms.

In: an integer expression. Out: `Linear`, a sum of opaque terms with integer coefficients, in which everything that
cancels has cancelled; and back to an expression that reads well. Products of sums are multiplied out by sympy, which
only ever sees integers and is imported when the first such product is met.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce

from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import Coordinate

MAX_PRODUCT = 256
"""Terms up to which a product of two sums is multiplied out; a larger one stays one opaque term."""

MAX_DEGREE = 64
"""Factors up to which a product is looked into."""

MAX_NUMBER = 2**127
"""Coefficients beyond it (repeated squaring reaches any size) make the node that has them an opaque term."""

COORDINATES: dict[Expr, int] = {build.coord(coordinate): rank for rank, coordinate in enumerate(Coordinate)}

Form = tuple[dict[Expr, int], int]
"""Coefficients by term in the order the terms were first written, and the constant."""


@dataclass(frozen=True, slots=True)
class Linear:
    """`constant` plus the sum of coefficient times term: coordinates first, the others in order of first writing.

    Coefficients are not zero and terms are distinct. The order does not depend on the names of parameters.
    """

    terms: tuple[tuple[Expr, int], ...]
    constant: int = 0

    @staticmethod
    def of(coefficients: Mapping[Expr, int], constant: int) -> Linear:
        """The form with these coefficients."""
        present = [(term, coefficient) for term, coefficient in coefficients.items() if coefficient != 0]
        present.sort(key=lambda pair: COORDINATES.get(pair[0], len(COORDINATES)))
        return Linear(tuple(present), constant)

    def coefficient(self, term: Expr) -> int:
        """The coefficient of a term, 0 where it is absent."""
        return next((coefficient for known, coefficient in self.terms if known is term), 0)

    def without(self, term: Expr) -> Linear:
        """The form less one term."""
        return Linear(tuple(pair for pair in self.terms if pair[0] is not term), self.constant)

    def plus(self, other: Linear | int) -> Linear:
        """The sum."""
        if isinstance(other, int):
            return Linear(self.terms, self.constant + other)
        return Linear.of(*_sum((dict(self.terms), self.constant), (dict(other.terms), other.constant)))

    def times(self, factor: int) -> Linear:
        """The form scaled by an integer other than 0."""
        return Linear(tuple((term, coefficient * factor) for term, coefficient in self.terms), self.constant * factor)

    @property
    def gcd(self) -> int:
        """The greatest common divisor of the coefficients; 0 for a constant."""
        return math.gcd(*(coefficient for _, coefficient in self.terms))


@lru_cache(maxsize=4096)
def linear(expr: Expr, expand: bool = True) -> Linear:
    """The linear form of an integer expression; `expand=False` keeps every product of two sums as one opaque term."""
    forms: dict[Expr, Form] = {}
    stack = [expr]
    while stack:
        node = stack[-1]
        waiting = [part for part in _parts(node) if part not in forms]
        if waiting:
            stack.extend(reversed(waiting))
            continue
        if node not in forms:
            form = _form(node, forms, expand)
            small = all(abs(number) < MAX_NUMBER for number in (*form[0].values(), form[1]))
            forms[node] = form if small else ({node: 1}, 0)
        stack.pop()
    return Linear.of(*forms[expr])


def to_expr(form: Linear) -> Expr:
    """The form as one would write it: `q_idx - window + 1`, `q_idx // 64 * 64 + 63`, `3 - h`."""
    ahead = [_scaled(term, coefficient) for term, coefficient in form.terms if coefficient > 0]
    behind = [(term, coefficient) for term, coefficient in form.terms if coefficient < 0]
    constant = form.constant
    if not ahead and (constant > 0 or not behind):
        ahead, constant = [build.integer(constant)], 0
    if not ahead:
        term, coefficient = behind.pop(0)
        ahead = [build.apply(Op.NEG, term) if coefficient == -1 else _scaled(term, coefficient)]
    total = reduce(lambda left, right: build.apply(Op.ADD, left, right), ahead)
    for term, coefficient in behind:
        total = build.apply(Op.SUB, total, _scaled(term, -coefficient))
    if constant != 0:
        total = build.apply(Op.ADD if constant > 0 else Op.SUB, total, build.integer(abs(constant)))
    return total


def _scaled(term: Expr, coefficient: int) -> Expr:
    return term if coefficient == 1 else build.apply(Op.MUL, term, build.integer(coefficient))


def _parts(node: Expr) -> tuple[Expr, ...]:
    """The operands through which a node is linear; none for an opaque node."""
    match node:
        case Apply(op=Op.ADD | Op.SUB | Op.MUL | Op.NEG | Op.BIT_NOT, args=args):
            return args
        case Apply(op=Op.SHL, args=(base, Const())):
            return (base,)
        case _:
            return ()


def _form(node: Expr, forms: Mapping[Expr, Form], expand: bool) -> Form:
    match node:
        case Const(value=value):
            return {}, int(value)
        case Apply(op=Op.ADD, args=(left, right)):
            return _sum(forms[left], forms[right])
        case Apply(op=Op.SUB, args=(left, right)):
            return _sum(forms[left], _times(forms[right], -1))
        case Apply(op=Op.NEG, args=(arg,)):
            return _times(forms[arg], -1)
        case Apply(op=Op.BIT_NOT, args=(arg,)):
            return _sum(_times(forms[arg], -1), ({}, -1))
        case Apply(op=Op.SHL, args=(base, Const(value=count))) if 0 <= count < 64:
            return _times(forms[base], 1 << int(count))
        case Apply(op=Op.MUL, args=(left, right)):
            return _product(node, forms[left], forms[right], expand)
        case _:
            return {node: 1}, 0


def _sum(left: Form, right: Form) -> Form:
    coefficients = dict(left[0])
    for term, coefficient in right[0].items():
        coefficients[term] = coefficients.get(term, 0) + coefficient
    return coefficients, left[1] + right[1]


def _times(form: Form, factor: int) -> Form:
    return {term: coefficient * factor for term, coefficient in form[0].items()}, form[1] * factor


def _product(node: Expr, left: Form, right: Form, expand: bool) -> Form:
    if not any(left[0].values()):
        return _times(right, left[1])
    if not any(right[0].values()):
        return _times(left, right[1])
    if not expand or (len(left[0]) + 1) * (len(right[0]) + 1) > MAX_PRODUCT:
        return {node: 1}, 0
    return _multiplied_out(left, right)


def _multiplied_out(left: Form, right: Form) -> Form:
    """The polynomial product, its monomials as products of opaque factors in one order."""
    factors = sorted(_factors([*left[0], *right[0]]), key=lambda factor: COORDINATES.get(factor, len(COORDINATES)))
    form: dict[Expr, int] = {}
    constant = 0
    for exponents, coefficient in _polynomial(left, right, factors):
        powers = [factor for factor, exponent in zip(factors, exponents, strict=True) for _ in range(exponent)]
        if powers:
            form[reduce(lambda a, b: build.apply(Op.MUL, a, b), powers)] = coefficient
        else:
            constant = coefficient
    return form, constant


def _polynomial(left: Form, right: Form, factors: list[Expr]) -> list[tuple[tuple[int, ...], int]]:
    """Exponents and coefficients of the product."""
    sides = [
        {**{_exponents(term, factors): number for term, number in form.items()}, (0,) * len(factors): constant}
        for form, constant in (left, right)
    ]
    if all(len(form) == 1 and constant == 0 for form, constant in (left, right)):
        (ahead, first), (behind, second) = (next(iter(side.items())) for side in sides)
        return [(tuple(map(operator.add, ahead, behind)), first * second)]

    from sympy import ZZ
    from sympy.polys.rings import ring

    polynomials, *_ = ring([f"x{index}" for index in range(len(factors))], ZZ)
    product = polynomials.from_dict(sides[0]) * polynomials.from_dict(sides[1])
    return [(exponents, int(coefficient)) for exponents, coefficient in product.terms()]


def _factors(terms: Iterable[Expr]) -> dict[Expr, None]:
    """The distinct factors of monomials, in order of first writing."""
    return {factor: None for term in terms for factor in _flat(term)}


def _flat(monomial: Expr) -> list[Expr]:
    factors: list[Expr] = []
    stack = [monomial]
    while stack:
        if len(stack) + len(factors) > MAX_DEGREE:
            return [monomial]
        match stack.pop():
            case Apply(op=Op.MUL, args=(left, right)):
                stack += [right, left]
            case factor:
                factors.append(factor)
    return factors


def _exponents(monomial: Expr, factors: list[Expr]) -> tuple[int, ...]:
    present = _flat(monomial)
    return tuple(present.count(factor) for factor in factors)

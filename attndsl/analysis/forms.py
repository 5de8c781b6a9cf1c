"""Integer expressions as linear forms: a constant plus integer multiples of other expressions.

In: expressions and the integers known at a call (scalars, lengths). Out: a `Form` for each integer node, in which
`q_idx - kv_idx` keeps its correlation however it is spelled. What is not linear is a term of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder

MAX_TERMS = 12
"""A sum with more terms is a term of its own: forms stay small in programs that are long sums."""


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """`constant + sum(coefficient * term)`; no coefficient is 0."""

    terms: Mapping[Expr, int]
    constant: int

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def plus(self, other: Form, factor: int = 1) -> Form:
        """The form plus a multiple of another."""
        terms = dict(self.terms)
        for term, coefficient in other.terms.items():
            total = terms.get(term, 0) + factor * coefficient
            if total:
                terms[term] = total
            else:
                terms.pop(term, None)
        return Form(terms, self.constant + factor * other.constant)

    def times(self, factor: int) -> Form:
        """The form times a constant."""
        if factor == 0:
            return Form({}, 0)
        return Form({term: factor * coefficient for term, coefficient in self.terms.items()}, factor * self.constant)

    def shares_terms(self, other: Form) -> bool:
        """Whether some term occurs in both: only then do the two correlate."""
        return any(term in other.terms for term in self.terms)


def forms_below(roots: tuple[Expr, ...], known: Mapping[Expr, int]) -> dict[Expr, Form]:
    """The form of every integer node below the roots."""
    forms: dict[Expr, Form] = {}
    for node in postorder(*roots):
        if node.dtype.is_int:
            form = Form({}, known[node]) if node in known else _form(node, forms)
            forms[node] = form if form is not None and len(form.terms) <= MAX_TERMS else Form({node: 1}, 0)
    return forms


def _form(node: Expr, forms: Mapping[Expr, Form]) -> Form | None:
    match node:
        case Const(value=value):
            return Form({}, int(value))
        case Apply(op=Op.ADD, args=(left, right)):
            return forms[left].plus(forms[right])
        case Apply(op=Op.SUB, args=(left, right)):
            return forms[left].plus(forms[right], -1)
        case Apply(op=Op.NEG, args=(operand,)):
            return forms[operand].times(-1)
        case Apply(op=Op.BIT_NOT, args=(operand,)):
            return Form({}, -1).plus(forms[operand], -1)
        case Apply(op=Op.MUL, args=(left, right)) if forms[left].is_constant:
            return forms[right].times(forms[left].constant)
        case Apply(op=Op.MUL, args=(left, right)) if forms[right].is_constant:
            return forms[left].times(forms[right].constant)
        case Apply(op=Op.SHL, args=(left, right)) if forms[right].is_constant and 0 <= forms[right].constant < 64:
            return forms[left].times(1 << forms[right].constant)
        case _:
            return None

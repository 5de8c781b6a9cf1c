"""What is known to hold on the pairs in question, as bounds on linear forms.

In: conjuncts taken as true (a mask's, an enclosing `where`'s). Out: facts, which narrow the interval of any expression
whose form contains one of theirs: under `kv_idx <= q_idx` the difference `q_idx - kv_idx` is not negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attndsl.analysis.forms import Form
from attndsl.ir.nodes import Apply, Expr
from attndsl.ir.ops import Op

NEGATED = {Op.LT: Op.GE, Op.LE: Op.GT, Op.GT: Op.LE, Op.GE: Op.LT, Op.EQ: Op.NE, Op.NE: Op.EQ}


@dataclass(frozen=True, slots=True, eq=False)
class Fact:
    """`form` lies between the bounds; `None` is no bound. The form's own constant is 0."""

    form: Form
    lo: int | None
    hi: int | None


def literals(assumed: tuple[Expr, ...]) -> Iterator[tuple[Expr, bool]]:
    """The booleans known when all of the assumptions hold, each with its truth."""
    stack = [(node, True) for node in reversed(assumed)]
    while stack:
        node, truth = stack.pop()
        yield node, truth
        match node:
            case Apply(op=Op.NOT, args=(operand,)):
                stack.append((operand, not truth))
            case Apply(op=Op.AND, args=args) if truth:
                stack.extend((arg, True) for arg in args)
            case Apply(op=Op.OR, args=args) if not truth:
                stack.extend((arg, False) for arg in args)


def facts_of(known: Mapping[Expr, bool], forms: Mapping[Expr, Form]) -> tuple[Fact, ...]:
    """The integer comparisons among the known booleans, as facts."""
    found = [fact for node, truth in known.items() for fact in _facts(node, truth, forms)]
    return tuple(fact for fact in found if fact.form.terms)


def _facts(node: Expr, truth: bool, forms: Mapping[Expr, Form]) -> Iterator[Fact]:
    match node:
        case Apply(op=op, args=(left, right)) if op in NEGATED and left.dtype.is_int:
            relation = op if truth else NEGATED[op]
            if relation in (Op.GT, Op.GE):
                relation, left, right = {Op.GT: Op.LT, Op.GE: Op.LE}[relation], right, left
            if relation is not Op.NE:
                yield from _bounded(relation, left, right, forms)


def _bounded(relation: Op, left: Expr, right: Expr, forms: Mapping[Expr, Form]) -> Iterator[Fact]:
    """The facts in `left < right`, `left <= right` or `left == right`."""
    difference = forms[left].plus(forms[right], -1)
    most = -difference.constant - (relation is Op.LT)
    yield Fact(Form(difference.terms, 0), most if relation is Op.EQ else None, most)
    match left:
        case Apply(op=Op.ABS, args=(operand,)):
            # abs(e) <= r bounds e and -e alike.
            for sign in (1, -1):
                part = forms[operand].times(sign).plus(forms[right], -1)
                yield Fact(Form(part.terms, 0), None, -part.constant - (relation is Op.LT))

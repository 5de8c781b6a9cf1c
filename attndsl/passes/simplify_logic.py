"""Logic is reduced to `and`, `or` and comparisons."""

from __future__ import annotations

from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import rewrite_variant
from attndsl.ir.variant import Variant
from attndsl.passes.conditions import DUAL, OPPOSITE, choice, is_junction, negation

REFLEXIVE = frozenset({Op.EQ, Op.LE, Op.GE})

NEUTRAL = {Op.AND: build.TRUE, Op.OR: build.FALSE}
ABSORBING = {Op.AND: build.FALSE, Op.OR: build.TRUE}

MAX_CHAIN = 32
"""Terms up to which a chain of `and`s or `or`s is searched for what repeats: the search is quadratic."""


def simplify_logic(variant: Variant) -> Variant:
    """Remove repetitions and constants from conditions, `where` on bools, and `not` above comparisons of integers.

    before: `mask not (kv_idx > q_idx or h == 0) and (h < 4 if h < 8 else false)`
    after:  `mask kv_idx <= q_idx and h != 0 and (h < 8 and h < 4)`
    """
    return rewrite_variant(variant, _simplify)


def _simplify(node: Expr) -> Expr | None:
    match node:
        case Apply(op=Op.NOT, args=(arg,)):
            changed = negation(arg)
            return None if changed is node else changed
        case Apply(op=Op.AND | Op.OR):
            return _junction(node)
        case Apply(op=Op.XOR, args=(left, right)):
            return _unequal(left, right)
        case Apply(op=Op.WHERE, args=(Apply(op=Op.NOT, args=(condition,)), yes, no)):
            return build.apply(Op.WHERE, condition, no, yes)
        case Apply(op=Op.WHERE, args=(condition, yes, no)) if yes.dtype.is_bool:
            return choice(condition, yes, no)
        case Apply(op=Op.TO_BOOL, args=(arg,)) if arg.dtype.is_int:
            return build.apply(Op.NE, arg, build.integer(0))
        case Apply(op=op, args=(left, right)) if op in OPPOSITE:
            return _comparison(op, left, right)
        case _:
            return None


def _comparison(op: Op, left: Expr, right: Expr) -> Expr | None:
    if left.dtype.is_float:
        return None
    if left is right:
        return build.boolean(op in REFLEXIVE)
    if left.dtype.is_bool:
        unequal = _unequal(left, right)
        return unequal if unequal is None or op is Op.NE else negation(unequal)
    match op, left, right:
        case (Op.EQ | Op.NE, Apply(op=Op.TO_INT, args=(flag,)), Const(value=value)) if flag.dtype.is_bool:
            return _counted(op, flag, int(value))
        case (Op.EQ | Op.NE, Const(value=value), Apply(op=Op.TO_INT, args=(flag,))) if flag.dtype.is_bool:
            return _counted(op, flag, int(value))
        case _:
            return None


def _counted(op: Op, flag: Expr, value: int) -> Expr:
    """`int(flag) == value` or `int(flag) != value`, as logic."""
    if value not in (0, 1):
        return build.boolean(op is Op.NE)
    return flag if (op is Op.EQ) == (value == 1) else negation(flag)


def _unequal(left: Expr, right: Expr) -> Expr | None:
    """Whether two bools differ, where that is simpler to say."""
    if left is right:
        return build.FALSE
    for constant, other in ((left, right), (right, left)):
        if isinstance(constant, Const):
            return negation(other) if constant.value else other
    return None


def _junction(node: Apply) -> Expr | None:
    op = node.op
    for constant, other in (node.args, node.args[::-1]):
        if constant is ABSORBING[op]:
            return constant
        if constant is NEUTRAL[op] or constant is other:
            return other
    terms, repeated = _terms(op, node)
    if len(terms) > MAX_CHAIN:
        return None
    opposites = {negation(term) for term in terms if not is_junction(term)}
    if not opposites.isdisjoint(terms):
        return ABSORBING[op]
    kept = _without_absorbed(DUAL[op], terms, opposites)
    return _joined(op, kept) if repeated or kept != list(terms) else None


def _terms(op: Op, root: Expr) -> tuple[dict[Expr, None], bool]:
    """The distinct terms of nested `op`s, left to right, and whether any was written twice."""
    seen: set[Expr] = set()
    terms: dict[Expr, None] = {}
    repeated = False
    stack = [root]
    while stack and len(terms) <= MAX_CHAIN:
        node = stack.pop()
        if node in seen:
            repeated = True
            continue
        seen.add(node)
        if isinstance(node, Apply) and node.op is op:
            stack.extend(reversed(node.args))
        else:
            terms[node] = None
    return terms, repeated


def _without_absorbed(dual: Op, terms: dict[Expr, None], opposites: set[Expr]) -> list[Expr]:
    """`x and (x or y)` is `x`; `x and (not x or y)` is `x and y`; and so with `and` and `or` exchanged."""
    kept: list[Expr] = []
    for term in terms:
        parts, _ = _terms(dual, term)
        if not is_junction(term) or len(parts) > MAX_CHAIN:
            kept.append(term)
        elif not any(part in terms for part in parts):
            left = [part for part in parts if part not in opposites]
            kept.append(term if len(left) == len(parts) else _joined(dual, left))
    return kept


def _joined(op: Op, terms: list[Expr]) -> Expr:
    return build.conjunction(terms) if op is Op.AND else build.disjunction(terms)

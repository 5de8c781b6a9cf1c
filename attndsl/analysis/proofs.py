"""What is proven about a variant, and what a kernel may leave out because of it.

In: a mask and a score after the passes. Out: `Proof`s. A proof may need facts about a call: booleans over lengths,
integer and float scalars and `q_idx`, which stands for every position of a query; the launcher evaluates them on the
host. Proofs are taken only on facts that ordinary calls fulfil, so that no such call loses its fast kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from attndsl.analysis.bounds import KeyRange, conjuncts, disjuncts, key_ranges
from attndsl.analysis.finite import finite_facts
from attndsl.analysis.intervals import Box, Known, evaluate_exactly, whole
from attndsl.analysis.linear import Linear, linear, to_expr
from attndsl.analysis.values import Truth
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, rewrite, substitute
from attndsl.ir.types import Coordinate

COMPARISONS = frozenset({Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE})
ABOUT_A_CALL = frozenset({build.Q, build.Q_LEN, build.KV_LEN})


class Claim(Enum):
    """What is proven, in words."""

    LIVE_ROW = "every query has a live key"
    LIVE_START = "every query sees key 0"
    INT32 = "integers fit in 32 bits"
    IN_BOUNDS = "captured reads are in bounds at every pair"
    NATURAL = "operands are never negative in"
    SCALE = "the scale is positive"
    DEAD_BRANCH = "the score is -inf unless"


class Condition(Enum):
    """What the launcher checks beside the facts that are expressions; the value says it in words."""

    INT32 = "lengths, integers and element offsets below 2**31"
    IN_BOUNDS = "indices within their tensors"
    NATURAL = "q_offset >= 0, no divisor <= 0"
    POSITIVE_SCALE = "scale > 0"


Fact = Expr | Condition


@dataclass(frozen=True, slots=True)
class Proof:
    """`claim`, of what it is `about`, holds in every call in which the `facts` do.

    `why` says how it is known, `effect` what a kernel makes of it.
    """

    claim: Claim
    facts: tuple[Fact, ...]
    why: str
    effect: str
    about: str = ""


@lru_cache(maxsize=256)
def row_proofs(mask: Expr, score: Expr) -> tuple[Proof, ...]:
    """What is proven about the rows of every call in which the facts hold."""
    row = no_empty_row(mask, score)
    return tuple(proof for proof in (row, first_key_seen(mask, row)) if proof is not None)


def no_empty_row(mask: Expr, score: Expr) -> Proof | None:
    """That every query has a live key: by the ranges of the mask, or because a query sees itself."""
    finite = finite_facts(score)
    if finite is None:
        return None
    ranges = [facts for keys in key_ranges(mask) if keys.is_exact for facts in _accepted(_range_conditions(keys))]
    if ranges:
        why = "the first key of a range is not beyond its last"
        return Proof(Claim.LIVE_ROW, (*_any_of(ranges), *finite), why, _NO_DIVISOR_GUARD)
    for facts in _accepted(_diagonal_conditions(mask)):
        return Proof(Claim.LIVE_ROW, (*facts, *finite), "a query sees the key at its own position", _NO_DIVISOR_GUARD)
    return None


_NO_DIVISOR_GUARD = "no guard on the divisor"


def first_key_seen(mask: Expr, row: Proof | None) -> Proof | None:
    """That key 0 is live for every query, on no more facts than that some key is."""
    if row is None:
        return None
    at_first = substitute(mask, {build.K: build.integer(0)})
    conditions = [*map(_simplified, conjuncts(rewrite(at_first, _folded))), *_at_least(_last_key(), 0)]
    for facts in _accepted(conditions):
        if set(facts) <= set(row.facts):
            why = "the mask is true there, so the first tile makes the maximum finite"
            return Proof(Claim.LIVE_START, row.facts, why, "no guard on the running maximum")
    return None


def holds(fact: Expr, box: Box, known: Known) -> bool:
    """Whether ranges prove an integer fact for every query of a call."""
    truth = evaluate_exactly((fact,), box, known)[fact]
    assert isinstance(truth, Truth)
    return not bool(truth.can_be_false.any())


def is_about_floats(fact: Expr) -> bool:
    """Whether a fact compares floats: ranges say nothing of it, its scalars alone decide."""
    return any(node.dtype.is_float for node in postorder(fact))


def _range_conditions(keys: KeyRange) -> list[Expr]:
    """The range of every query has a key in it: each of its first keys is at most each of its last ones."""
    lower = [build.integer(0), *_split(keys.lower, Op.MAX)]
    upper = [_last_key(), *_split(keys.upper, Op.MIN)]
    ends = (condition for low in lower for high in upper for condition in _at_least(high, low))
    return [*ends, *map(_simplified, keys.gates)]


def _diagonal_conditions(mask: Expr) -> list[Expr]:
    """Every query sees the key at its own position, which is one of the keys."""
    on_it = rewrite(substitute(mask, {build.K: build.Q}), _folded)
    return [*map(_simplified, conjuncts(on_it)), *_at_least(build.Q, 0), *_at_least(_last_key(), build.Q)]


def _last_key() -> Expr:
    return build.apply(Op.SUB, build.KV_LEN, build.integer(1))


def _split(ends: Iterable[Expr], op: Op) -> Iterator[Expr]:
    """The operands of a maximum of lower ends, or a minimum of upper ones, each an end of its own."""
    for end in ends:
        if isinstance(end, Apply) and end.op is op:
            yield from _split(end.args, op)
        else:
            yield end


def _at_least(high: Expr, low: Expr | int) -> Iterator[Expr]:
    yield _simplified(build.apply(Op.GE, high, build.integer(low) if isinstance(low, int) else low))


def _folded(node: Expr) -> Expr | None:
    """Integers that are numbers whatever the coordinates, as they are on a diagonal: `(q_idx - q_idx) % d`."""
    if isinstance(node, Const) or not isinstance(node, Apply) or not node.dtype.is_int:
        return None
    match node:
        case Apply(op=Op.MOD | Op.FLOORDIV | Op.ABS, args=(Const(value=0), *_)):
            return build.integer(0)
        case _:
            form = linear(node)
            return build.integer(form.constant) if not form.terms else None


def _simplified(condition: Expr) -> Expr:
    """A condition with what cancels gone, decided where nothing is left."""
    match condition:
        case Apply(op=Op.AND):
            terms = [term for term in map(_simplified, conjuncts(condition)) if term is not build.TRUE]
            return build.FALSE if build.FALSE in terms else build.conjunction(terms)
        case Apply(op=Op.OR):
            terms = [term for term in map(_simplified, disjuncts(condition)) if term is not build.FALSE]
            return build.TRUE if build.TRUE in terms else build.disjunction(terms)
        case Apply(op=op, args=(left, right)) if op in COMPARISONS and left.dtype.is_int:
            return _compared(op, linear(left).plus(linear(right).times(-1)))
        case _:
            return condition


def _compared(op: Op, difference: Linear) -> Expr:
    """`difference op 0`, as one would write it."""
    match op:
        case Op.LT:
            return _compared(Op.GE, difference.times(-1).plus(-1))
        case Op.LE:
            return _compared(Op.GE, difference.times(-1))
        case Op.GT:
            return _compared(Op.GE, difference.plus(-1))
    if not difference.terms:
        number = difference.constant
        return build.boolean({Op.GE: number >= 0, Op.EQ: number == 0, Op.NE: number != 0}[op])
    if op is Op.GE:
        return _not_negative(difference)
    return build.apply(op, to_expr(difference), build.integer(0))


def _not_negative(form: Linear) -> Expr:
    """`form >= 0`: `window >= 1`, `q_idx <= kv_len - 1`, `q_len <= kv_len + q_idx`."""
    size = form.gcd
    form = Linear(tuple((term, number // size) for term, number in form.terms), form.constant // size)
    ahead = Linear(tuple(pair for pair in form.terms if pair[1] > 0))
    behind = Linear(tuple(pair for pair in form.terms if pair[1] < 0)).times(-1)
    if behind.terms:
        return build.apply(Op.LE, to_expr(behind), to_expr(ahead.plus(form.constant)))
    return build.apply(Op.GE, to_expr(ahead), build.integer(-form.constant))


def _accepted(conditions: Iterable[Expr]) -> Iterator[tuple[Expr, ...]]:
    """The conditions as facts, once, if they are about a call and every ordinary call fulfils them."""
    facts = tuple(dict.fromkeys(_about_a_call(fact) for fact in conditions if fact is not build.TRUE))
    if all(map(_is_ordinary, facts)):
        yield facts


def _about_a_call(condition: Expr) -> Expr:
    """The alternatives of a condition that one call decides as a whole; false where there are none."""
    return build.disjunction([choice for choice in disjuncts(condition) if all(map(_is_known, postorder(choice)))])


def _is_known(node: Expr) -> bool:
    is_scalar = isinstance(node, Scalar) and node.dtype.is_int
    return is_scalar or isinstance(node, Apply | Const) or node in ABOUT_A_CALL


def _is_ordinary(fact: Expr) -> bool:
    """Whether calls with positive scalars and one length for queries and keys fulfil a fact, by ranges."""
    names = {node.name for node in postorder(fact) if isinstance(node, Scalar)}
    return fact is not build.FALSE and all(
        holds(fact, _ordinary_call(length), Known(dict.fromkeys(names, number)))
        for length in (1, 1000)
        for number in (1, 64)
    )


def _ordinary_call(length: int) -> Box:
    return whole(
        {
            Coordinate.Q_IDX: (0, length - 1),
            Coordinate.Q_LEN: (length, length),
            Coordinate.KV_LEN: (length, length),
        }
    )


def _any_of(alternatives: list[tuple[Expr, ...]]) -> tuple[Expr, ...]:
    """The facts of at least one alternative: what all have in common, and an `or` of the rest."""
    common = tuple(fact for fact in alternatives[0] if all(fact in other for other in alternatives))
    rests = [tuple(fact for fact in facts if fact not in common) for facts in alternatives]
    if not all(rests):
        return common
    choice = build.disjunction([build.conjunction(rest) for rest in rests])
    return (*common, *conjuncts(choice))

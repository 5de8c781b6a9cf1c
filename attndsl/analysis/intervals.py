"""Abstract interpretation: what integer and boolean expressions can be on each of many sets of pairs at once.

In: expressions, a `Box` (the ranges of the coordinates, one per tile), the scalars and tensor summaries of a call, and
conjuncts to take as true. Out: an `Interval` or a `Truth` for every node. Sound always: a tile on which the mask cannot
be true has no live pair, one on which it cannot be false has no dead pair. Floats are enclosed (`reals`) where integers
or booleans are made of them.

Nothing wraps: a first pass over the hull of all tiles in Python integers finds the largest number that occurs, and the
tiles are done in int64 only where that leaves room. Intervals are narrowed by what is known of remainders
(`congruences`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from attndsl.analysis import reals
from attndsl.analysis import values as v
from attndsl.analysis.assumptions import Fact, facts_of, literals
from attndsl.analysis.congruences import MAX_MODULUS, Congruence, congruences_below, of_form
from attndsl.analysis.forms import Form, forms_below
from attndsl.analysis.real_summaries import RealSummary
from attndsl.analysis.reals import REAL, Reals, is_enclosed
from attndsl.analysis.summaries import Summary
from attndsl.analysis.transfer import INTEGER, LOGIC
from attndsl.analysis.values import Interval, Truth, Value
from attndsl.ir.nodes import Apply, Const, Coord, Expr, Load, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Coordinate

COMPARISONS = frozenset({Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE})
LINEAR = frozenset({Op.ADD, Op.SUB, Op.NEG, Op.BIT_NOT, Op.MUL, Op.SHL})
ROOM = 2**61
"""int64 arithmetic is used only where no number exceeds this; the rest of the bits is slack for one more operation."""

INT64, UNLIMITED = np.dtype(np.int64), np.dtype(object)


@dataclass(frozen=True, slots=True)
class Box:
    """The range of every coordinate, as arrays that broadcast to [B', H', Tq, Tk]."""

    ranges: Mapping[Coordinate, Interval]

    def hull(self) -> Box:
        """The one box around all, in Python integers."""
        return Box({coordinate: _hull(interval) for coordinate, interval in self.ranges.items()})

    def unlimited(self) -> Box:
        """The same boxes in Python integers."""
        return Box({c: Interval(i.lo.astype(object), i.hi.astype(object)) for c, i in self.ranges.items()})


def whole(lo_hi: Mapping[Coordinate, tuple[int, int]]) -> Box:
    """One box from plain integers, in Python integers."""
    return Box({c: _between(lo, hi) for c, (lo, hi) in lo_hi.items()})


@dataclass(frozen=True, slots=True)
class Known:
    """What a call knows: scalars by name, and summaries by name of the integer and bool tensors, and of those float
    tensors that are looked into."""

    scalars: Mapping[str, int | float] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    reals: Mapping[str, RealSummary] = field(default_factory=dict)


def evaluate(roots: tuple[Expr, ...], box: Box, known: Known, assume: tuple[Expr, ...] = ()) -> dict[Expr, Value]:
    """The abstract value of every node below the roots, on pairs on which the assumptions hold."""
    return Evaluation(roots, box, known, assume).of(box)


class Evaluation:
    """An evaluation of many parts of one box, which is measured once."""

    def __init__(self, roots: tuple[Expr, ...], box: Box, known: Known, assume: tuple[Expr, ...] = ()) -> None:
        self._fits = _Measure(box.hull(), known).of(roots, assume) <= ROOM
        self._roots, self._known, self._assume = roots, known, assume

    def of(self, part: Box) -> dict[Expr, Value]:
        """The value of every node below the roots on a part of the box."""
        if not self._fits:
            return evaluate_exactly(self._roots, part.unlimited(), self._known, self._assume)
        return _interpreted(part, self._known, INT64, self._roots, self._assume)


def evaluate_exactly(
    roots: tuple[Expr, ...], box: Box, known: Known, assume: tuple[Expr, ...] = ()
) -> dict[Expr, Value]:
    """The same over boxes of Python integers, in which nothing can wrap."""
    return _interpreted(box, known, UNLIMITED, roots, assume)


def _interpreted(
    box: Box, known: Known, dtype: np.dtype[Any], roots: tuple[Expr, ...], assume: tuple[Expr, ...]
) -> dict[Expr, Value]:
    interpreter = _Interpreter(box, known, dtype)
    interpreter.narrow(roots, assume)
    interpreter.run(roots)
    return interpreter.values


@lru_cache(maxsize=1024)
def _below(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Everything below the roots, operands first."""
    return tuple(postorder(*roots))


@dataclass(frozen=True, slots=True)
class _Learnt:
    """The forms and congruences of everything below some roots; of the assumptions, their facts, the terms of these
    and the truth of every boolean they settle."""

    forms: Mapping[Expr, Form] = field(default_factory=dict)
    congruences: Mapping[Expr, Congruence] = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()
    terms: tuple[Expr, ...] = ()
    settled: Mapping[Expr, bool] = field(default_factory=dict)


@lru_cache(maxsize=256)
def _learnt(roots: tuple[Expr, ...], assume: tuple[Expr, ...], scalars: tuple[tuple[str, int | float], ...]) -> _Learnt:
    everything, numbers = (*roots, *assume), dict(scalars)
    constants: dict[Expr, int] = {
        node: int(numbers[node.name])
        for node in postorder(*everything)
        if isinstance(node, Scalar) and node.dtype.is_int and node.name in numbers
    }
    forms = forms_below(everything, constants)
    settled = dict(literals(assume))
    facts = facts_of(settled, forms)
    terms = tuple(dict.fromkeys(term for fact in facts for term in fact.form.terms))
    return _Learnt(forms, congruences_below(everything, forms), facts, terms, settled)


class _Interpreter:
    """One interpretation: fills `values` node by node, operands first."""

    def __init__(self, box: Box, known: Known, dtype: np.dtype[Any]) -> None:
        self.box = box
        self.known = known
        self.dtype = dtype
        self.values: dict[Expr, Value] = {}
        self.learnt = _Learnt()
        self.facts: tuple[Fact, ...] = ()
        self._narrower: dict[Expr, Interval] = {}
        self._assumed: Mapping[Expr, bool] = {}
        self._reals: dict[Expr, Reals] = {}

    def narrow(self, roots: tuple[Expr, ...], assume: tuple[Expr, ...]) -> None:
        """Restrict what follows to pairs on which the assumptions hold."""
        self.learn(roots, assume)
        for fact in self.learnt.facts:
            for term in fact.form.terms:
                self._narrower[term] = self._narrowed(term, fact)
        self.facts, self._assumed = self.learnt.facts, self.learnt.settled
        # What was computed without the assumptions is done again; the terms of facts are needed whatever the roots are.
        self.values = dict(self._narrower)
        self._reals.clear()

    def run(self, roots: tuple[Expr, ...]) -> None:
        """Interpret everything below the roots."""
        for node in _below(roots):
            if node not in self.values:
                self.values[node] = self._interpreted(node)

    def learn(self, roots: tuple[Expr, ...], assume: tuple[Expr, ...]) -> None:
        """What the program says whatever the box, and the values of the terms of facts."""
        self.learnt = _learnt(roots, assume, tuple(self.known.scalars.items()))
        self.run(self.learnt.terms)

    def _narrowed(self, term: Expr, fact: Fact) -> Interval:
        """The interval of one term of a fact, from the others'."""
        current = self._narrower.get(term) or self._integer(term)
        coefficient = fact.form.terms[term]
        rest = self._span(fact.form.plus(Form({term: coefficient}, 0), -1))
        # c*t <= hi - min(rest) and c*t >= lo - max(rest); dividing by a negative c swaps the two.
        most = None if fact.hi is None else fact.hi - rest.lo
        least = None if fact.lo is None else fact.lo - rest.hi
        if coefficient < 0:
            least, most = (None if most is None else -most), (None if least is None else -least)
        for end in (least, most):
            if end is not None:
                self._note(Interval(end, end))
        size = abs(coefficient)
        lo = current.lo if least is None else -(-least // size)
        return v.meet(current, lo, current.hi if most is None else most // size)

    def _interpreted(self, node: Expr) -> Value:
        value = self._value(node)
        if isinstance(value, Interval):
            narrower = self._narrower.get(node)
            if narrower is not None:
                value = v.meet(value, narrower.lo, narrower.hi)
            self._note(value)
            value = self._sharpened(value, self.learnt.congruences[node])
        truth = self._assumed.get(node)
        return value if truth is None else v.verdict(truth)

    def _value(self, node: Expr) -> Value:
        match node:
            case Const(value=value, dtype=dtype) if dtype.is_bool:
                return v.verdict(bool(value))
            case Const(value=value, dtype=dtype) if dtype.is_int:
                return v.constant(int(value), self.dtype)
            case Scalar(name=name, dtype=dtype) if dtype.is_int:
                return v.constant(int(self.known.scalars[name]), self.dtype)
            case Coord(coordinate=coordinate):
                return self.box.ranges[coordinate]
            case Load() if not node.dtype.is_float:
                return self._loaded(node)
            case Apply(op=op, args=args):
                return self._applied(node, op, args)
            case _:
                return None

    def _loaded(self, node: Load) -> Value:
        found = self.known.summaries[node.tensor].range(tuple(map(self._integer, node.indices)))
        if node.dtype.is_bool:
            return Truth(found.hi != 0, found.lo == 0)
        lo = found.lo.astype(self.dtype)
        return Interval(lo, lo if found.is_point else found.hi.astype(self.dtype))

    def _applied(self, node: Apply, op: Op, args: tuple[Expr, ...]) -> Value:
        if op in COMPARISONS:
            return self._compared(op, *args)
        if op is Op.WHERE:
            return v.select(self._truth(args[0]), self.values[args[1]], self.values[args[2]])
        if node.dtype.is_bool:
            return self._is_nonzero(args[0]) if op is Op.TO_BOOL else LOGIC[op](*map(self._truth, args))
        if not node.dtype.is_int:
            return None
        if op is Op.TO_INT:
            return self._to_int(args[0])
        value = INTEGER[op](*map(self._integer, args))
        return self._correlated(value, node, args) if op in LINEAR else value

    def _correlated(self, value: Interval, node: Expr, args: tuple[Expr, ...]) -> Interval:
        """The operand-wise interval narrowed by the form's: they differ only where operands share terms."""
        forms = self.learnt.forms
        form = forms[node]
        if len(args) == 2 and forms[args[0]].shares_terms(forms[args[1]]) and node not in form.terms:
            span = self._span(form)
            value = v.meet(value, span.lo, span.hi)
        return self._by_facts(value, form)

    def _sharpened(self, value: Interval, known: Congruence) -> Interval:
        """The interval from the first to the last number with the remainder that is known."""
        if known.modulus <= 1 or value.is_point:
            return value
        self._note_number(known.modulus)
        inside = known.within(value)
        return v.meet(value, inside.lo, inside.hi)

    def _compared(self, op: Op, left: Expr, right: Expr) -> Truth:
        if left.dtype.is_bool:
            differ = v.logical_xor(self._truth(left), self._truth(right))
            return differ if op is Op.NE else v.logical_not(differ)
        if left.dtype.is_float:
            return reals.compare(op, self._real(left), self._real(right))
        if op in (Op.EQ, Op.NE):
            found = self._same_remainder(left, right)
            if found is not None:
                return found if op is Op.EQ else v.logical_not(found)
        form = self.learnt.forms[left].plus(self.learnt.forms[right], -1)
        return v.compare(op, of_form(form, self.learnt.congruences).within(self._difference(left, right, form)))

    def _difference(self, left: Expr, right: Expr, form: Form) -> Interval:
        """The interval of `left - right`, whose form is given."""
        difference = v.sub(self._integer(left), self._integer(right))
        self._note(difference)
        if self.learnt.forms[left].shares_terms(self.learnt.forms[right]):
            span = self._span(form)
            difference = v.meet(difference, span.lo, span.hi)
        return self._by_facts(difference, form)

    def _same_remainder(self, left: Expr, right: Expr) -> Truth | None:
        """`x % n == r` and `x % n == y % n`: whether n divides `x - r`, or `x - y`; `None` for other comparisons."""
        for side, other in ((left, right), (right, left)):
            match side, other:
                case Apply(op=Op.MOD, args=(x, n)), Apply(op=Op.MOD, args=(y, m)) if n is m:
                    return self._divides(n, x, y)
                case Apply(op=Op.MOD, args=(x, n)), _ if self.learnt.forms[other].is_constant:
                    return self._divides(n, x, other)
        return None

    def _divides(self, n: Expr, x: Expr, y: Expr) -> Truth | None:
        """Whether a known positive number n divides `x - y`; a y that is a number must be a remainder."""
        divisor, form = self.learnt.congruences[n], self.learnt.forms[x].plus(self.learnt.forms[y], -1)
        if not divisor.is_number or not 0 < divisor.residue <= MAX_MODULUS:
            return None
        if self.learnt.forms[y].is_constant and not 0 <= self.learnt.forms[y].constant < divisor.residue:
            return None
        known = of_form(form, self.learnt.congruences)
        multiples = known.and_also(Congruence(divisor.residue, 0))
        if multiples is None:
            return v.verdict(False)
        if known.modulus % divisor.residue == 0:
            return v.verdict(True)
        return self._contains(self._difference(x, y, form), known, multiples)

    def _contains(self, value: Interval, known: Congruence, multiples: Congruence) -> Truth:
        """Whether an integer of an interval, all of them `known`, is one of the `multiples` among these."""
        self._note_number(multiples.modulus)
        first = value.lo + (multiples.residue - value.lo) % multiples.modulus
        inside = known.within(value)
        can_be_true = np.asarray(first <= value.hi, bool)
        return Truth(can_be_true, ~can_be_true | np.asarray(inside.lo != inside.hi, bool))

    def _by_facts(self, value: Interval, form: Form) -> Interval:
        """The interval narrowed by every fact whose form is part of this one: form = m * fact + rest."""
        for fact in self.facts:
            factors = {
                form.terms[term] // coefficient
                for term, coefficient in fact.form.terms.items()
                if term in form.terms and form.terms[term] % coefficient == 0
            }
            for factor in factors:
                rest = self._span(form.plus(fact.form, -factor))
                least, most = (fact.lo, fact.hi) if factor > 0 else (fact.hi, fact.lo)
                lo = value.lo if least is None else rest.lo + factor * least
                hi = value.hi if most is None else rest.hi + factor * most
                self._note(Interval(lo, hi))
                value = v.meet(value, lo, hi)
        return value

    def _span(self, form: Form) -> Interval:
        """The extremes of a linear form, each term at the end that counts."""
        total = v.constant(form.constant, self.dtype)
        self._note(total)
        for term, coefficient in form.terms.items():
            total = v.add(total, v.scale(self._narrower.get(term) or self._integer(term), coefficient))
            self._note(total)
        return total

    def _real(self, root: Expr) -> Reals:
        """A float, whose integers and booleans are known already."""
        if not is_enclosed(root):
            return reals.ANYTHING
        for node in _below((root,)):
            if node.dtype.is_float and node not in self._reals:
                self._reals[node] = self._enclosed(node)
        return self._reals[root]

    def _enclosed(self, node: Expr) -> Reals:
        match node:
            case Const(value=value):
                return reals.number(float(value))
            case Scalar(name=name):
                return reals.number(float(self.known.scalars[name])) if name in self.known.scalars else reals.ANYTHING
            case Load(tensor=tensor, indices=indices):
                found = self.known.reals.get(tensor)
                return reals.ANYTHING if found is None else found.range(tuple(map(self._integer, indices)))
            case Apply(op=Op.WHERE, args=(condition, yes, no)):
                return reals.select(self._truth(condition), self._reals[yes], self._reals[no])
            case Apply(op=Op.TO_FLOAT, args=(operand,)) if operand.dtype.is_int:
                return reals.of_integers(self._integer(operand))
            case Apply(op=Op.TO_FLOAT, args=(operand,)) if operand.dtype.is_bool:
                return reals.of_truth(self._truth(operand))
            case Apply(op=Op.TO_FLOAT, args=(operand,)):
                return self._reals[operand]
            case Apply(op=Op.MUL, args=(left, right)) if left is right:
                return reals.square(self._reals[left])
        assert isinstance(node, Apply), node
        return REAL[node.op](*(self._reals[arg] for arg in node.args))

    def _to_int(self, operand: Expr) -> Interval:
        if operand.dtype.is_bool:
            return v.counted(self._truth(operand), self.dtype)
        return reals.to_integers(self._real(operand), self.dtype)

    def _is_nonzero(self, operand: Expr) -> Truth:
        if operand.dtype.is_bool:
            return self._truth(operand)
        if operand.dtype.is_int:
            return v.compare(Op.NE, self._integer(operand))
        return reals.compare(Op.NE, self._real(operand), reals.number(0.0))

    def _integer(self, node: Expr) -> Interval:
        value = self.values[node]
        assert isinstance(value, Interval), node
        return value

    def _truth(self, node: Expr) -> Truth:
        value = self.values[node]
        assert isinstance(value, Truth), node
        return value

    def _note_number(self, number: int) -> None:
        """Meet a number; only a measurement remembers it."""

    def _note(self, value: Interval) -> None:
        """Meet the ends of an interval; only a measurement remembers them."""


class _Measure(_Interpreter):
    """An interpretation of one box, in Python integers, that remembers the largest number it meets."""

    def __init__(self, box: Box, known: Known) -> None:
        super().__init__(box, known, UNLIMITED)
        self._peak = 0

    def of(self, roots: tuple[Expr, ...], assume: tuple[Expr, ...]) -> int:
        """The largest number a narrowed interpretation of any part of the box could meet; nothing is narrowed here."""
        self.learn(roots, assume)
        self.facts = self.learnt.facts
        self.run((*roots, *assume))
        for fact in self.facts:
            for term in fact.form.terms:
                self._note(self._narrowed(term, fact))
        return self._peak

    def _note_number(self, number: int) -> None:
        self._peak = max(self._peak, number)

    def _note(self, value: Interval) -> None:
        self._peak = max(self._peak, abs(value.lo.item()), abs(value.hi.item()))


def _hull(interval: Interval) -> Interval:
    return _between(*interval.extremes)


def _between(lo: int, hi: int) -> Interval:
    return Interval(v.constant(lo, UNLIMITED).lo, v.constant(hi, UNLIMITED).lo)

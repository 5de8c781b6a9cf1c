"""The weight of a pair as a sum of products: what is known of a row after all keys, times what each key adds.

In: a weight over row values. Out: `factor * value` terms whose values read neither sums nor roots, so that the output
can be summed while those are; `None` where the weight cannot be taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

from attndsl.analysis.arithmetic import ONE, ZERO, add, div, mul, neg, select
from attndsl.analysis.axes import axes_below
from attndsl.ir.nodes import Apply, Expr, RowValue, children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis

MAX_TERMS = 8
"""Far more than a kernel keeps accumulators; products of sums end here."""

Pair = tuple[Expr, Expr]
"""A factor of the row and a value of the pair."""


def taken_apart(weight: Expr, late: frozenset[str]) -> tuple[Pair, ...] | None:
    """The terms of a weight; `late` are the row values known only after all keys."""
    pairs = _Split(weight, late).pairs(weight)
    return None if pairs is None else _merged(_hoisted(*pair) for pair in pairs)


class _Split:
    """The terms of every node below a root, bottom up."""

    def __init__(self, root: Expr, late: frozenset[str]) -> None:
        self._axes = axes_below(root)
        self._late: set[Expr] = set()
        self._pairs: dict[Expr, tuple[Pair, ...] | None] = {}
        for node in postorder(root):
            if _reads_late(node, late, self._late):
                self._late.add(node)
            if node.dtype.is_float:
                pairs = self._of(node)
                self._pairs[node] = None if pairs is None or len(pairs) > MAX_TERMS else pairs

    def pairs(self, node: Expr) -> tuple[Pair, ...] | None:
        return self._pairs[node]

    def _of(self, node: Expr) -> tuple[Pair, ...] | None:
        if node not in self._late:
            return ((ONE, node),)
        if self._is_row(node):
            return ((node, ONE),)
        match node:
            case Apply(op=Op.ADD | Op.SUB as op, args=(left, right)):
                first, second = self._pairs[left], self._pairs[right]
                if first is None or second is None:
                    return None
                return (*first, *(second if op is Op.ADD else _each(second, lambda f, v: (f, neg(v)))))
            case Apply(op=Op.NEG, args=(operand,)):
                return _mapped(self._pairs[operand], lambda f, v: (f, neg(v)))
            case Apply(op=Op.MUL, args=(left, right)):
                return self._products(left, right)
            case Apply(op=Op.DIV, args=(left, right)):
                return self._quotients(left, right)
            case Apply(op=Op.WHERE, args=(condition, yes, no)):
                return self._branches(condition, yes, no)
            case _:
                return None

    def _is_row(self, node: Expr) -> bool:
        return Axis.K not in self._axes[node]

    def _products(self, left: Expr, right: Expr) -> tuple[Pair, ...] | None:
        first, second = self._pairs[left], self._pairs[right]
        if first is None or second is None:
            return None
        return tuple((mul(f, g), mul(v, w)) for (f, v), (g, w) in product(first, second))

    def _quotients(self, left: Expr, right: Expr) -> tuple[Pair, ...] | None:
        if self._is_row(right):
            return _mapped(self._pairs[left], lambda f, v: (div(f, right), v))
        if right in self._late:
            return None
        return _mapped(self._pairs[left], lambda f, v: (f, div(v, right)))

    def _branches(self, condition: Expr, yes: Expr, no: Expr) -> tuple[Pair, ...] | None:
        first, second = self._pairs[yes], self._pairs[no]
        if first is None or second is None:
            return None
        if self._is_row(condition):
            taken = _each(first, lambda f, v: (select(condition, f, ZERO), v))
            other = _each(second, lambda f, v: (select(condition, ZERO, f), v))
        elif condition not in self._late:
            taken = _each(first, lambda f, v: (f, select(condition, v, ZERO)))
            other = _each(second, lambda f, v: (f, select(condition, ZERO, v)))
        else:
            return None
        return tuple(pair for pair in (*taken, *other) if ZERO not in pair)


def _reads_late(node: Expr, late: frozenset[str], below: set[Expr]) -> bool:
    if isinstance(node, RowValue):
        return node.name in late
    return any(child in below for child in children(node))


def _each(pairs: tuple[Pair, ...], change: Callable[[Expr, Expr], Pair]) -> tuple[Pair, ...]:
    return tuple(change(factor, value) for factor, value in pairs)


def _mapped(pairs: tuple[Pair, ...] | None, change: Callable[[Expr, Expr], Pair]) -> tuple[Pair, ...] | None:
    return None if pairs is None else _each(pairs, change)


def _hoisted(factor: Expr, value: Expr) -> Pair:
    """What a product has of the row alone moves to the factor: once a row instead of once a pair.

    Maxima stay: `exp(s) * exp(-m)` must not overflow.
    """
    axes = axes_below(value)

    def is_hoistable(node: Expr) -> bool:
        return Axis.K not in axes[node] and not any(isinstance(part, RowValue) for part in postorder(node))

    while True:
        match value:
            case _ if value is not ONE and is_hoistable(value):
                return mul(factor, value), ONE
            case Apply(op=Op.NEG, args=(operand,)):
                factor, value = neg(factor), operand
            case Apply(op=Op.MUL, args=(left, right)) if is_hoistable(left):
                factor, value = mul(factor, left), right
            case Apply(op=Op.MUL, args=(left, right)) if is_hoistable(right):
                factor, value = mul(factor, right), left
            case Apply(op=Op.DIV, args=(left, right)) if is_hoistable(right):
                factor, value = div(factor, right), left
            case _:
                return factor, value


def _merged(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Terms of one value are one term."""
    factors: dict[Expr, Expr] = {}
    for factor, value in pairs:
        factors[value] = add(factors[value], factor) if value in factors else factor
    return tuple((factor, value) for value, factor in factors.items())

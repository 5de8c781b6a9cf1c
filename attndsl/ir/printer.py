"""Programs as text of the language; parsing the text gives the same nodes back.

In: a variant or an expression of nodes as front ends build them. Out: text, the same on every run and linear in the
number of nodes: what is used more than once gets a `let`, and so does what would nest too deep to read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, count

from attndsl.ir import build
from attndsl.ir.binding import open_nodes
from attndsl.ir.nodes import Apply, Const, Coord, Expr, Input, Load, Reduce, RowValue, Scalar, Solve, children
from attndsl.ir.ops import CALLS, Form, Op, facts
from attndsl.ir.order import GridOrder
from attndsl.ir.rewrite import postorder, uses
from attndsl.ir.types import Coordinate, Flow, Reduction
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant

ATOM = 100
SIGN = facts(Op.NEG).binding
POWER = facts(Op.POW).binding
COMPARISON = facts(Op.LT).binding
CONDITIONAL = 5

MAX_NESTING = 32
"""Levels inside one another before a `let`."""

AXES = ("u", "t", "y", "x")
"""Of a printed grid, as many of the last ones as it has."""

BOUND = ("t", "u")
"""What a row solve calls the value it looks for: the first of these that no parameter has."""

MAX_WIDTH = 100
"""A longer mask is printed as several items."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """Printed text, how tightly it holds together, and how many levels are nested in it."""

    text: str
    binding: int = ATOM
    nesting: int = 0

    def within(self, binding: int) -> str:
        """The text where something at least as tight is wanted."""
        return self.text if self.binding >= binding else f"({self.text})"


def print_variant(variant: Variant) -> str:
    """`attention name(parameters) { items }`, what is trivial left out."""
    items = list(_items(variant))
    taken = {param.name for param in variant.params}
    printer = _Printer([root for _, root in items], taken)
    lines = [line for word, root in items for line in printer.item(word, root)]
    params = ", ".join(map(_param, variant.params))
    if variant.order is not None:
        lines.insert(0, _order(variant.order, {*taken, *_RESERVED}))
    body = "".join(f"\n    {line}" for line in lines) + ("\n" if lines else "")
    return f"attention {variant.name}({params}) {{{body}}}\n"


def print_expr(expr: Expr) -> str:
    """An expression; lines of `let` before it if it shares parts."""
    taken = {name for node in postorder(expr) if (name := _name(node)) is not None}
    return "\n".join(_Printer([expr], taken).expression(expr))


def _items(variant: Variant) -> Iterator[tuple[str, Expr]]:
    """The expressions that say something; of a softmax only its sink."""
    for requirement in variant.requirements:
        yield f"require {json.dumps(requirement.message, ensure_ascii=False)}", requirement.condition
    if variant.mask is not build.TRUE:
        yield "mask", variant.mask
    if variant.score is not build.SCORE:
        yield "score", variant.score
    sink = _sink(variant.normalizer)
    if sink is not None:
        yield "sink", sink
    elif variant.normalizer is not _softmax():
        yield "normalizer", variant.normalizer
    if variant.weight is not build.WEIGHT:
        yield "weight", variant.weight


class _Printer:
    """Prints expressions that share nodes; `let`s appear before the first item that needs them.

    What is shared inside the body of a row solve becomes a `def`, a function of what the solve looks for.
    """

    def __init__(self, roots: list[Expr], taken: Collection[str]) -> None:
        self._uses = uses(roots)
        self._open = open_nodes(*roots)
        self._inner = _inner_solves(roots)
        self._bound = next(name for name in chain(BOUND, _fresh_names(taken, "t")) if name not in taken)
        self._phrases: dict[Expr, Phrase] = {build.THRESHOLD: Phrase(self._bound)}
        self._names = _fresh_names({*taken, *_RESERVED, self._bound})

    def item(self, word: str, root: Expr) -> list[str]:
        """The lines of an item."""
        *lets, text = self.expression(root)
        word, _, message = word.partition(" ")
        if message:
            return [*lets, f"{word:<10}  {text}, {message}"]
        if word == "sink":
            return [*lets, f"{'normalizer':<10}  softmax(sink = {text})"]
        if word == "mask" and len(text) > MAX_WIDTH:
            return [*lets, *(f"{word:<10}  {term}" for term in self._terms(root))]
        return [*lets, f"{word:<10}  {text}"]

    def expression(self, root: Expr) -> list[str]:
        """The `let`s an expression needs that are not printed yet, and its text."""
        lines = []
        for node in postorder(root):
            if node in self._phrases:
                continue
            phrase = self._phrase(node)
            shared = self._uses[node] > 1 and not _is_short(node)
            if shared or phrase.nesting > MAX_NESTING or node in self._inner:
                name, word = next(self._names), "let"
                if node in self._open:
                    name, word = f"{name}({self._bound})", "def"
                lines.append(f"{word} {name} = {phrase.text}")
                phrase = Phrase(name)
            self._phrases[node] = phrase
        return [*lines, self._phrases[root].text]

    def _phrase(self, node: Expr) -> Phrase:
        parts = [self._phrases[child] for child in children(node)]
        return _solve(self._bound, parts) if isinstance(node, Solve) else _phrase(node, parts)

    def _terms(self, root: Expr) -> list[str]:
        """The terms of `a and b and c`, which mask items of their own conjoin in the same order."""
        terms = []
        while isinstance(root, Apply) and root.op is Op.AND and self._phrases[root].binding < ATOM:
            root, last = root.args
            terms.append(self._phrases[last].text)
        return [self._phrases[root].text, *reversed(terms)]


def _phrase(node: Expr, parts: list[Phrase]) -> Phrase:
    """One node, its operands printed."""
    nesting = 1 + max((part.nesting for part in parts), default=-1)
    texts = [part.text for part in parts]
    match node:
        case Const():
            text = _literal(node)
            return Phrase(text, SIGN if text.startswith("-") else ATOM)
        case Load(tensor=name):
            return Phrase(f"{name}[{', '.join(texts)}]" if parts else name, ATOM, nesting)
        case Reduce(reduction=reduction):
            return Phrase(f"{reduction.value}({texts[0]})", ATOM, nesting)
        case RowValue(name=name):
            return Phrase(name, ATOM)
        case Apply(op=Op.WHERE):
            condition, yes, no = parts
            tight = CONDITIONAL + 1
            text = f"{yes.within(tight)} if {condition.within(tight)} else {no.text}"
            return Phrase(text, CONDITIONAL, nesting)
        case Apply(op=op):
            return _operation(op, parts, nesting)
        case _:
            return Phrase(_name(node) or "")


def _solve(bound: str, parts: list[Phrase]) -> Phrase:
    """`row_solve(t: body, total = ..., lower = ..., upper = ...)`."""
    body, total, lower, upper = (part.text for part in parts)
    text = f"row_solve({bound}: {body}, total = {total}, lower = {lower}, upper = {upper})"
    return Phrase(text, ATOM, 1 + max(part.nesting for part in parts))


def _inner_solves(roots: list[Expr]) -> set[Expr]:
    """The row solves that the body of another one reads: they are named before it."""
    bodies = [node.body for node in postorder(*roots) if isinstance(node, Solve)]
    return {node for node in postorder(*bodies) if isinstance(node, Solve)}


def _operation(op: Op, parts: list[Phrase], nesting: int) -> Phrase:
    row = facts(op)
    match row.form:
        case Form.CALL:
            return Phrase(f"{row.text}({', '.join(part.text for part in parts)})", ATOM, nesting)
        case Form.PREFIX:
            gap = " " if row.text.isalpha() else ""
            return Phrase(f"{row.text}{gap}{parts[0].within(row.binding)}", row.binding, nesting)
        case Form.INFIX:
            left, right = parts
            wanted_left, wanted_right = _operand_bindings(row.binding)
            text = f"{left.within(wanted_left)} {row.text} {right.within(wanted_right)}"
            if left.binding == row.binding == wanted_left:  # the chain goes on: no deeper, only longer
                nesting = max(left.nesting, right.nesting + 1)
            return Phrase(text, row.binding, nesting)


def _operand_bindings(binding: int) -> tuple[int, int]:
    """How tight the operands of an infix operator must be to stand without parentheses."""
    if binding == COMPARISON:  # `a < b < c` means something else
        return binding + 1, binding + 1
    if binding == POWER:  # from the right, and a sign may follow
        return binding + 1, SIGN
    return binding, binding + 1


def _is_short(node: Expr) -> bool:
    """Whether a name would say less than the node itself: leaves, and leaves cast or negated."""
    if isinstance(node, Apply) and len(node.args) == 1:
        return not children(node.args[0])
    return not children(node)


def _literal(const: Const) -> str:
    if const.dtype.is_bool:
        return "true" if const.value else "false"
    value = const.value
    if isinstance(value, float) and not math.isfinite(value):
        sign = "-" if math.copysign(1.0, value) < 0 else ""
        return sign + ("nan" if math.isnan(value) else "inf")
    return repr(value)


def _name(node: Expr) -> str | None:
    """The name a leaf is printed as; for a load, that of its tensor."""
    match node:
        case Coord(coordinate=coordinate):
            return coordinate.value
        case Input(flow=flow):
            return flow.value
        case Scalar(name=name) | Load(tensor=name):
            return name
        case _:
            return None


def _param(param: Param) -> str:
    match param:
        case TensorParam(name=name, dtype=dtype, dims=dims):
            kind = "tensor" if dtype.is_float else f"{dtype.word} tensor"
            return f"{name}: {kind}[{', '.join(dims)}]"
        case ScalarParam(name=name, dtype=dtype, default=default):
            if default is None:
                return f"{name}: {dtype.word}"
            value = build.real(default) if dtype.is_float else build.integer(int(default))
            return f"{name}: {dtype.word} = {_literal(value)}"


def _order(order: GridOrder, taken: Collection[str]) -> str:
    """A grid that says how tokens are kept, under a name no `let` has; what its axes are called says nothing."""
    name = next(name for name in ("g" * repeat for repeat in count(1)) if name not in taken)
    sizes = zip(AXES[-len(order.sizes) :], order.sizes, strict=True)
    axes = ", ".join(f"{axis} = {size}" for axis, size in sizes)
    return f"{'grid':<10}  {name}({axes}) tile ({', '.join(map(str, order.tile))})"


def _softmax(sink: Expr | None = None) -> Expr:
    """The softmax of the language, which is printed by its name."""
    shift = build.row(Reduction.MAX, build.SCORE)
    weight = build.apply(Op.EXP, build.apply(Op.SUB, build.SCORE, shift))
    total: Expr = build.row(Reduction.SUM, weight)
    if sink is not None:
        total = build.apply(Op.ADD, build.apply(Op.EXP, build.apply(Op.SUB, sink, shift)), total)
    return build.apply(Op.DIV, weight, total)


def _sink(normalizer: Expr) -> Expr | None:
    """The sink, if a normalizer is a softmax with one."""
    match normalizer:
        case Apply(args=(_, Apply(args=(Apply(op=Op.EXP, args=(Apply(args=(sink, _)),)), _)))):
            return sink if sink.dtype.is_float and _softmax(sink) is normalizer else None
        case _:
            return None


def _fresh_names(taken: Collection[str], letter: str = "d") -> Iterator[str]:
    return (name for number in count() if (name := f"{letter}{number}") not in taken)


_RESERVED = frozenset({"row_solve", *CALLS, *(word.value for kind in (Coordinate, Flow, Reduction) for word in kind)})

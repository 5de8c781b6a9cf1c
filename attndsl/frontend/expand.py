"""Syntax trees of expressions to typed nodes: operators built, functions expanded where they are called.

In: the tree of an expression and the frame it stands in. Out: a node, or `None` where a mistake was reported, so that
one mistake is not reported again for everything built on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lark import Token, Tree

from attndsl.diagnostics import ProgramError, Source, Span, fail
from attndsl.frontend import prelude
from attndsl.frontend.builder import Builder
from attndsl.frontend.calls import bind
from attndsl.frontend.declarations import Declarations
from attndsl.frontend.layout import Layout, coordinate
from attndsl.frontend.lookup import Frame, Names
from attndsl.frontend.normalizers import REQUIREMENTS, softmax
from attndsl.frontend.scope import FUNCTIONS, REDUCTIONS, Def, Scope, Stage, Value, suggestion
from attndsl.frontend.syntax import MAX_NESTING, Branch, Syntax, span_of, stretch, too_deep
from attndsl.ir import build
from attndsl.ir.nodes import Expr

MAX_CALLS = 64
"""Functions that call functions that call ...: each level takes a few frames of the Python stack."""

MAX_STEPS = 100_000
"""Expressions looked at inside expanded functions, over a whole text."""

MAX_DIGITS = 80

SOLVE = "`row_solve(t: max(score - t, 0.0), total = 1.0, lower = row_max(score) - 1.0, upper = row_max(score))`"
NESTED = "a `row_solve` stands in the body of another"


class Expressions:
    """Reads the expressions of one attention; `called` collects the functions it met.

    `sound` are the functions whose expansion ends; `steps` counts what the whole text has expanded.
    """

    def __init__(self, builder: Builder, source: Source, scope: Scope, sound: set[Def], steps: Iterator[int]) -> None:
        self.called: set[Def] = set()
        self._builder = builder
        self._reporter = builder.reporter
        self._source = source
        self._scope = scope
        self._names = Names(builder, scope)
        self._sound = sound
        self._steps = steps
        self._expanded: dict[tuple[Def, Stage, bool, tuple[Value, ...]], Value] = {}

    def read(self, tree: Syntax, frame: Frame) -> Value:
        """The value of an expression, bottom-up and without the Python stack."""
        values: list[Value] = []
        stack: list[tuple[Syntax, Frame, int, int | None]] = [(tree, frame, 0, None)]
        while stack:
            node, within, depth, arity = stack.pop()
            if arity is not None:
                first = len(values) - arity
                values[first:] = [self._combine(node, values[first:], within)]
                continue
            if depth > MAX_NESTING:
                raise too_deep(span_of(self._source, node))
            self._count(node, within)
            parts = _operands(node)
            stack.append((node, within, depth, len(parts)))
            stack.extend((part, within, depth + 1, None) for part in reversed(parts))
            if node.data == "solve":
                stack[-1] = (parts[0], _solving(node, within), depth + 1, None)
        return values.pop()

    def check_uncalled(self, function: Def) -> None:
        """Reports what is wrong in a function whatever its arguments are."""
        self.read(function.body, Frame(Stage.LET, function, dict.fromkeys(function.params)))

    def _count(self, node: Syntax, frame: Frame) -> None:
        if frame.function is not None and next(self._steps) >= MAX_STEPS:
            message = f"functions expand to more than {MAX_STEPS} expressions"
            help_ = "each call with new arguments is a copy of the function: call it less often, or index a table"
            raise fail(ProgramError, "expansion-too-large", message, span_of(self._source, node), help=help_)

    def _combine(self, tree: Syntax, values: list[Value], frame: Frame) -> Value:
        """The value of a node from those of its operands; none if that was a mistake."""
        mistakes = len(self._reporter)
        value = self._value(tree, values, frame, span_of(self._source, tree))
        return value if len(self._reporter) == mistakes else None

    def _value(self, tree: Syntax, values: list[Value], frame: Frame, span: Span) -> Value:
        match tree:
            case Tree(data="name", children=[Token() as name]):
                if self._names.is_unknown(str(name), frame) and (found := prelude.find(name)) is not None:
                    return self._from_library(*found, [], [], frame, span)
                return self._names.value(str(name), span, frame)
            case Tree(data="index"):
                return self._names.element(_indexed(tree), values, span, frame)
            case Tree(data="call"):
                return self._call(tree, values, frame, span)
            case Tree(data="attribute"):
                return self._attribute(tree, values, frame, span)
            case Tree(data="solve"):
                return self._solve(tree, values, frame, span)
        operands = _known(values)
        return None if operands is None else self._operator(tree, operands, span)

    def _operator(self, tree: Syntax, operands: list[Expr], span: Span) -> Value:
        match tree:
            case Tree(data="number", children=[Token() as number]):
                return self._number("", number, span)
            case Tree(data="prefix", children=[Token(type="MINUS"), Tree(data="number", children=[Token() as number])]):
                return self._number("-", number, span)
            case Tree(data="prefix", children=[symbol, _]):
                return self._builder.prefix(str(symbol), operands[0], span)
            case Tree(data="conditional"):
                return self._builder.where(operands[1], operands[0], operands[2], span)
            case Tree(data="comparison"):
                return self._comparison(tree, operands)
            case _:
                return self._chain(tree, operands)

    def _chain(self, tree: Syntax, operands: list[Expr]) -> Expr:
        """`a + b - c`, from the left."""
        value = operands[0]
        for position, operand in enumerate(operands[1:], start=1):
            span = stretch(self._source, tree, 0, 2 * position)
            value = self._builder.infix(str(tree.children[2 * position - 1]), value, operand, span)
        return value

    def _comparison(self, tree: Syntax, operands: list[Expr]) -> Expr:
        """`a < b <= c` is `a < b and b <= c`."""
        value: Value = None
        for position in range(1, len(operands)):
            left, right = operands[position - 1 : position + 1]
            span = stretch(self._source, tree, 2 * position - 2, 2 * position)
            link = self._builder.infix(str(tree.children[2 * position - 1]), left, right, span)
            whole = stretch(self._source, tree, 0, 2 * position)
            value = link if value is None else self._builder.infix("and", value, link, whole)
        return operands[0] if value is None else value

    def _number(self, sign: str, token: Token, span: Span) -> Value:
        if token.type == "FLOAT":
            return self._builder.literal(float(sign + token), span)
        if len(token) > MAX_DIGITS:  # before Python refuses to convert it
            self._reporter.error("integer-too-large", f"an integer of {len(token)} digits needs over 64 bits", span)
            return None
        base = {"0x": 16, "0b": 2}.get(token[:2].lower(), 10)
        return self._builder.literal(int(sign + token, base), span)

    def _call(self, tree: Syntax, values: list[Value], frame: Frame, span: Span) -> Value:
        name = str(tree.children[0])
        names = [_argument_name(argument) for argument in tree.children[1:]]
        function = self._scope.function(name, frame.function)
        if function is not None:
            self.called.add(function)
            bound = bind(self._reporter, name, function.params, names, values, span)
            return None if bound is None else self._expand(function, bound, span, frame)
        layout = self._scope.grid(name, frame.function)
        if layout is not None:
            message = f"`{name}(...)` is a place on a grid, not a number"
            example = f"name one of its coordinates: `{name}(q_idx).{layout.axes[-1]}`"
            self._reporter.error("grid-without-axis", message, span, help=example)
            return None
        if name not in FUNCTIONS and (found := prelude.find(name)) is not None:
            return self._from_library(*found, names, values, frame, span)
        if name not in FUNCTIONS:
            library = prelude.offered(frame.stage)
            known = FUNCTIONS | library | self._scope.functions(frame.function) | self._scope.grids.keys()
            help_ = suggestion(name, known)
            self._reporter.error("unknown-function", f"there is no function `{name}`", span, help=help_)
            return None
        return self._builtin(name, names, values, frame, span)

    def _from_library(
        self,
        library: prelude.Library,
        function: Def,
        names: list[str | None],
        values: list[Value],
        frame: Frame,
        span: Span,
    ) -> Value:
        """A function of the library, read where it is written."""
        name = function.name
        if frame.stage not in (library.stage, Stage.LET):
            message = f"a {frame.stage.value} does not have `{name}`"
            help_ = f"`{name}` exists in `{library.stage.value}` items"
            self._reporter.error("wrong-stage", message, span, help=help_)
            return None
        bound = bind(self._reporter, name, function.params, names, values, span)
        if bound is None:
            return None
        if name in REQUIREMENTS:
            REQUIREMENTS[name](self._builder, bound, span)
        known = library.functions
        there = Expressions(self._builder, library.source, Scope(known), set(known.values()), self._steps)
        return there._expand(function, bound, span, frame)

    def _solve(self, tree: Syntax, values: list[Value], frame: Frame, span: Span) -> Value:
        """`row_solve(t: body, total = ..., lower = ..., upper = ...)`."""
        name, bound = tree.children[:2]
        assert isinstance(bound, Token)
        if name != "row_solve":
            message = f"`{name}` does not look for a `{bound}`"
            self._reporter.error("not-a-solve", message, span, help=f"only `row_solve` does: {SOLVE}")
            return None
        if not self._names.offered("row_solve", span, frame):
            return None
        if frame.is_solved:
            self._reporter.error("nested-solve", NESTED, span, help="name it before: `let tau = row_solve(...)`")
            return None
        names = [_argument_name(argument) for argument in tree.children[3:]]
        parts = bind(self._reporter, "row_solve", ("total", "lower", "upper"), names, values[1:], span)
        if not self._is_free(bound) or parts is None:
            return None
        body, total, lower, upper = values[0], parts["total"], parts["lower"], parts["upper"]
        if body is None or total is None or lower is None or upper is None:
            return None
        return self._builder.solve(body, total, lower, upper, span)

    def _is_free(self, bound: Token) -> bool:
        """Whether a name may stand for what a solve looks for; it may hide any but the words of the language."""
        return Declarations(self._source, self._reporter).accepts(bound, "threshold", ())

    def _attribute(self, tree: Syntax, values: list[Value], frame: Frame, span: Span) -> Value:
        """`g(q_idx).y`: a coordinate; nothing else has attributes."""
        layout = self._called_grid(tree, frame)
        if layout is None:
            help_ = "only places on a grid have coordinates: `grid g(y = 16, x = 16)`, then `g(q_idx).y`"
            self._reporter.error("not-a-grid", f"`.{tree.children[1]}` of something that is no grid", span, help=help_)
            return None
        call = tree.children[0]
        assert isinstance(call, Tree)
        names = [_argument_name(argument) for argument in call.children[1:]]
        bound = bind(self._reporter, str(call.children[0]), ("index",), names, values, span)
        index = None if bound is None else bound["index"]
        return None if index is None else coordinate(self._builder, layout, str(tree.children[1]), index, span)

    def _called_grid(self, tree: Syntax, frame: Frame) -> Layout | None:
        match tree.children[0]:
            case Tree(data="call", children=[name, *_]):
                return self._scope.grid(str(name), frame.function)
            case _:
                return None

    def _builtin(self, name: str, names: list[str | None], values: list[Value], frame: Frame, span: Span) -> Value:
        if name not in (*REDUCTIONS, "row_solve", "softmax"):
            if any(names):
                message = f"`{name}` takes its arguments by position"
                self._reporter.error("unknown-argument", message, span, help="leave the names of the arguments out")
            operands = _known(values)
            return None if operands is None else self._builder.call(name, operands, span)
        if not self._names.offered(name, span, frame) or _known(values) is None:
            return None
        if name == "row_solve":
            self._reporter.error("wrong-arity", "`row_solve` names what it looks for", span, help=f"write {SOLVE}")
            return None
        params = ("sink",) if name == "softmax" else ("x",)
        bound = bind(self._reporter, name, params, names, values, span) if values or name in REDUCTIONS else {}
        match bound:
            case None:
                return None
            case {"x": operand} if operand is not None:
                return self._builder.row(REDUCTIONS[name], operand, span)
            case _:
                return softmax(self._builder, bound.get("sink"), span)

    def _expand(self, function: Def, bound: dict[str, Value], span: Span, frame: Frame) -> Value:
        """The body of a function with its arguments in place, once for the same arguments in the same stage."""
        arguments = tuple(bound[name] for name in function.params)
        if function not in self._sound or None in arguments:
            return None
        if frame.level >= MAX_CALLS:
            message = f"functions call each other more than {MAX_CALLS} levels deep"
            raise fail(ProgramError, "nesting-too-deep", message, span, help="put the steps into one function")
        key = (function, frame.stage, frame.is_solved, arguments)
        if key not in self._expanded:
            inner = Frame(frame.stage, function, bound, frame.level + 1, frame.is_solved)
            self._expanded[key] = self.read(function.body, inner)
        return self._expanded[key]


def _known(values: Sequence[Value]) -> list[Expr] | None:
    """The values, unless a mistake left one without meaning."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _operands(tree: Syntax) -> list[Syntax]:
    """The expressions to read before a node, left to right."""
    match tree:
        case Tree(data="prefix", children=[Token(type="MINUS"), Tree(data="number")]):
            return []  # the sign belongs to the literal: 2 ** 63 alone would not fit
        case Tree(data="index"):
            return _indices(tree)
        case Tree(data="call"):
            return [_argument(child) for child in tree.children if isinstance(child, Tree)]
        case Tree(data="solve"):
            return [_argument(child) for child in tree.children[2:] if isinstance(child, Tree)]
        case Tree(data="attribute", children=[Tree(data="call") as call, _]):
            return _operands(call)
        case Tree(data="attribute"):
            return []
        case _:
            return [child for child in tree.children if isinstance(child, Tree)]


def _solving(tree: Syntax, frame: Frame) -> Frame:
    """The frame of the body of a row solve: its name stands for what is looked for."""
    return replace(frame, arguments={**frame.arguments, str(tree.children[1]): build.THRESHOLD}, is_solved=True)


def _indices(tree: Syntax) -> list[Syntax]:
    """The positions of `t[i][j, k]`: i, j, k."""
    groups: list[list[Syntax]] = []
    base: Branch = tree
    while isinstance(base, Tree) and base.data == "index":
        groups.append([child for child in base.children[1:] if isinstance(child, Tree)])
        base = base.children[0]
    return [index for group in reversed(groups) for index in group]


def _indexed(tree: Syntax) -> str | None:
    """The name that `t[i][j]` indexes, if it is one."""
    base: Branch = tree
    while isinstance(base, Tree) and base.data == "index":
        base = base.children[0]
    return str(base.children[0]) if isinstance(base, Tree) and base.data == "name" else None


def _argument(tree: Syntax) -> Syntax:
    match tree:
        case Tree(data="named", children=[_, Tree() as value]):
            return value
        case _:
            return tree


def _argument_name(argument: Branch) -> str | None:
    match argument:
        case Tree(data="named", children=[name, _]):
            return str(name)
        case _:
            return None

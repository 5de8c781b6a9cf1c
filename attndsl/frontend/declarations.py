"""Declarations of the text language: functions and parameters, and the clashes of their names.

In: syntax trees of declarations. Out: `Def`s and `Param`s; clashes and unknown types are reported.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from lark import Token, Tree

from attndsl.diagnostics import Reporter, Source
from attndsl.frontend.layout import MAX_LENGTH, Layout, problem_of, problems_of_tile
from attndsl.frontend.scope import COORDINATES, FLOWS, FUNCTIONS, RESERVED, Def
from attndsl.frontend.syntax import Syntax, children_of, span_of, token_span
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam

SCALARS = {"int": DType.I64, "float": DType.F32}
TENSORS = {
    "tensor": DType.F32,
    "float tensor": DType.F32,
    "int tensor": DType.I64,
    "bool tensor": DType.BOOL,
}


MAX_DIGITS = 20
"""Of the size of an axis, before Python refuses to convert it."""


MAX_RANK = 64
"""Of a tensor, torch's own limit."""


class Declarations:
    """Reads the declarations of one text."""

    def __init__(self, source: Source, reporter: Reporter) -> None:
        self._source = source
        self._reporter = reporter

    def functions(self, trees: Iterable[Syntax], shared: Mapping[str, Def] | None = None) -> dict[str, Def]:
        """The functions of a text or, where there are `shared` ones, of one attention."""
        found: dict[str, Def] = {}
        for tree in trees:
            name = name_of(tree)
            other = "a function of the whole text" if shared is not None and name in shared else None
            if self.accepts(name, "def", found, other):
                span = token_span(self._source, name)
                found[str(name)] = Def(str(name), self._names(tree), part(tree, -1), span, shared is not None)
        return found

    def parameter(self, tree: Syntax, declared: Container[str]) -> Param | None:
        """One parameter of an attention, its default still to be read."""
        name = name_of(tree)
        if not self.accepts(name, "parameter", declared):
            return None
        type_ = children_of(tree, "type")[0]
        words = " ".join(str(child) for child in type_.children if isinstance(child, Token))
        dims = children_of(type_, "dims")
        if words in TENSORS and dims and len(dims[0].children) > MAX_RANK:
            self._too_many_dimensions(name, type_, len(dims[0].children))
            return None
        if words in TENSORS and dims:
            return TensorParam(str(name), TENSORS[words], tuple(map(str, dims[0].children)))
        if words in SCALARS and not dims:
            return ScalarParam(str(name), SCALARS[words])
        self._unknown_type(type_, words)
        return None

    def _too_many_dimensions(self, name: Token, type_: Syntax, count: int) -> None:
        message = f"`{name}` has {count} dimensions, a tensor has at most {MAX_RANK}"
        self._reporter.error("too-many-dimensions", message, span_of(self._source, type_))

    def grid(self, tree: Syntax) -> Layout:
        """A grid: its axes and their sizes. A mistake leaves one that what follows can be read with."""
        sizes: dict[str, int] = {}
        for axis in children_of(tree, "axis"):
            name, size = axis.children
            assert isinstance(name, Token)
            assert isinstance(size, Token)
            if name in sizes:
                self._reporter.error("duplicate-axis", f"there are two axes `{name}`", token_span(self._source, name))
            sizes[str(name)] = _size(size)
        problem = problem_of(tuple(sizes), tuple(sizes.values()))
        if problem is not None:
            help_ = "write `grid g(t = 8, y = 16, x = 16)`"
            self._reporter.error("grid-size", problem, span_of(self._source, tree), help=help_)
            return Layout(tuple(sizes), (1,) * len(sizes))
        return Layout(tuple(sizes), tuple(sizes.values()), self._tile(tree, sizes))

    def _tile(self, tree: Syntax, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
        """The tiles in which the tokens of a grid are kept; none where it does not say."""
        for given in children_of(tree, "tile"):
            tile = tuple(_size(size) for size in given.children if isinstance(size, Token))
            problems = problems_of_tile(tuple(sizes), tuple(sizes.values()), tile)
            for problem in problems:
                help_ = f"write one divisor for each of the axes {', '.join(f'`{axis}`' for axis in sizes)}"
                self._reporter.error("grid-tile", problem, span_of(self._source, given), help=help_)
            return None if problems else tile
        return None

    def accepts(self, name: Token, what: str, declared: Container[str], other: str | None = None) -> bool:
        """Whether a name is free for a declaration; `other` is what else in sight has it."""
        if name in RESERVED:
            message = f"`{name}` is {_kind(name)} and cannot name a {what}"
            help_ = f"choose another name, e.g. `{name}_`"
            self._reporter.error("reserved-name", message, token_span(self._source, name), help=help_)
            return False
        if name in declared or other is not None:
            message = f"`{name}` is already {other}" if other is not None else f"there are two {what}s `{name}`"
            self._reporter.error(f"duplicate-{what}", message, token_span(self._source, name))
            return False
        return True

    def _names(self, tree: Syntax) -> tuple[str, ...]:
        """The parameters of a function: they may hide coordinates, which are then its own."""
        found: list[str] = []
        for name in (child for names in children_of(tree, "names") for child in names.children):
            assert isinstance(name, Token)
            if name in COORDINATES or name in FLOWS or self.accepts(name, "parameter", found):
                found.append(str(name))
        return tuple(found)

    def _unknown_type(self, tree: Syntax, words: str) -> None:
        help_ = "write `int`, `float`, `tensor[H]`, `int tensor[B, N]` or `bool tensor[N]`"
        if words in TENSORS:
            message, help_ = f"`{words}` needs its dimensions", f"write `{words}[H]`, or `{words}[]` for one element"
        elif words == "bool":
            message, help_ = "a parameter cannot be a bool", "write `int` and compare with 0, or `bool tensor[]`"
        elif words in SCALARS:
            message, help_ = f"`{words}` is a single number", "write `int tensor[B, N]`, or `tensor[H]` for floats"
        else:
            message = f"`{words}` is not a type"
        self._reporter.error("parameter-type", message, span_of(self._source, tree), help=help_)


def _size(token: Token) -> int:
    return int(token, 0) if len(token) <= MAX_DIGITS else MAX_LENGTH + 1


def name_of(tree: Syntax) -> Token:
    """The name a declaration begins with."""
    name = tree.children[0]
    assert isinstance(name, Token)
    return name


def part(tree: Syntax, index: int) -> Syntax:
    """A child that is a tree by the grammar."""
    child = tree.children[index]
    assert isinstance(child, Tree)
    return child


def _kind(name: str) -> str:
    if name in COORDINATES:
        return "a coordinate"
    if name in FLOWS:
        return "the value of a stage"
    return "a function of the language" if name in FUNCTIONS else "a literal"

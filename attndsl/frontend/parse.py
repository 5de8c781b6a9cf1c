"""Text to variants: `.attn` files and strings, all mistakes of a text reported together.

In: text. Out: one `Variant` for each `attention`, in order. Nothing is executed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial, reduce
from itertools import count
from os import PathLike, fspath

from lark import Token, Tree

from attndsl.diagnostics import ProgramError, Reporter, Source, Span, fail
from attndsl.frontend.builder import Builder
from attndsl.frontend.declarations import Declarations, name_of, part
from attndsl.frontend.expand import Expressions
from attndsl.frontend.layout import keep_order
from attndsl.frontend.lookup import Frame
from attndsl.frontend.normalizers import softmax
from attndsl.frontend.requirements import add_requirement
from attndsl.frontend.scope import Def, Scope, Stage, without_recursion
from attndsl.frontend.syntax import MAX_BYTES, Syntax, children_of, span_of, syntax_tree, token_span, too_large
from attndsl.ir import build
from attndsl.ir.nodes import Const, Expr
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant


def read(path: str | PathLike[str]) -> tuple[Variant, ...]:
    """The variants of a file."""
    name = fspath(path)
    with open(name, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise too_large(Source(name, ""))
    if (offset := data.find(b"\0")) >= 0:
        help_ = "this is not a text file, or not one in UTF-8: save it as UTF-8"
        raise fail(ProgramError, "nul-byte", f"`{name}` has a NUL byte at offset {offset}", help=help_)
    try:
        return parse(data.decode("utf-8").removeprefix("\N{BYTE ORDER MARK}"), name)
    except UnicodeDecodeError as error:
        message = f"`{name}` is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise fail(ProgramError, "not-utf-8", message, help="save the file as UTF-8") from None


def parse(text: str, name: str = "<text>") -> tuple[Variant, ...]:
    """The variants of a text; `name` is what diagnostics call it."""
    source = Source(name, text.replace("\r\n", "\n").replace("\r", "\n"))
    tree = syntax_tree(source)
    return _Text(source, tree).variants()


class _Text:
    """What the attentions of one text share."""

    def __init__(self, source: Source, tree: Syntax) -> None:
        self.source = source
        self.reporter = Reporter()
        self.declarations = Declarations(source, self.reporter)
        self.functions = self.declarations.functions(children_of(tree, "function"))
        self.sound = without_recursion(self.functions, self.reporter)
        self.called: set[Def] = set()
        self._steps = count()
        self._attentions = children_of(tree, "attention")

    def variants(self) -> tuple[Variant, ...]:
        found: dict[str, Variant] = {}
        for tree in self._attentions:
            name = name_of(tree)
            if name in found:
                span = token_span(self.source, name)
                self.reporter.error("duplicate-attention", f"there are two attentions `{name}`", span)
            found[str(name)] = _Attention(self, tree).variant()
        self._check_uncalled()
        if not found:
            message, help_ = f"`{self.source.name}` defines no attention", "write `attention name() { ... }`"
            self.reporter.error("no-attention", message, help=help_)
        self.reporter.check()
        return tuple(found.values())

    def expressions(self, builder: Builder, scope: Scope) -> Expressions:
        """A reader of expressions in a scope of this text."""
        return Expressions(builder, self.source, scope, self.sound, self._steps)

    def with_default(self, param: Param, tree: Syntax) -> Param:
        """The parameter with the default its declaration gives, a literal of its type."""
        if len(tree.children) == 2:
            return param
        default = part(tree, 2)
        value = self.expressions(Builder(self.reporter), Scope()).read(default, Frame(Stage.MASK))
        match param, value:
            case _, None:
                return param
            case ScalarParam(dtype=DType.I64), Const(dtype=DType.I64, value=number):
                return replace(param, default=number)
            case ScalarParam(dtype=DType.F32), Const(dtype=DType.I64 | DType.F32, value=number):
                return replace(param, default=float(number))
        self._wrong_default(param, span_of(self.source, default))
        return param

    def _wrong_default(self, param: Param, span: Span) -> None:
        help_ = "tensors are given when the attention is called" if isinstance(param, TensorParam) else None
        wanted = "a tensor has none" if help_ is not None else f"expected a literal {param.dtype.word}"
        self.reporter.error("default-type", f"wrong default of `{param.name}`: {wanted}", span, help=help_)

    def _check_uncalled(self) -> None:
        expressions = self.expressions(Builder(self.reporter), Scope(self.functions))
        for function in self.functions.values():
            if function not in self.called:
                expressions.check_uncalled(function)


class _Attention:
    """Reads one attention."""

    def __init__(self, text: _Text, tree: Syntax) -> None:
        self._text = text
        self._tree = tree
        self._builder = Builder(text.reporter)
        self._own = text.declarations.functions(children_of(tree, "function"), text.functions)
        lets = frozenset(str(name_of(child)) for child in children_of(tree, "let"))
        self._scope = Scope(text.functions, self._own, later=lets)
        text.sound |= without_recursion(self._own, text.reporter)
        self._expressions = text.expressions(self._builder, self._scope)
        self._items: dict[Stage, list[Expr]] = {stage: [] for stage in Stage}

    def variant(self) -> Variant:
        for group in children_of(self._tree, "parameters"):
            for tree in children_of(group, "parameter"):
                self._parameter(tree)
        for tree in children_of(self._tree, "grid"):
            self._grid(tree)
        for child in self._tree.children:
            match child:
                case Tree(data="let"):
                    self._let(child)
                case Tree(data="require"):
                    self._require(child)
                case Tree(data="item"):
                    self._item(child)
        for function in self._own.values():
            if function not in self._expressions.called:
                self._expressions.check_uncalled(function)
        self._text.called |= self._expressions.called
        return self._finished()

    def _finished(self) -> Variant:
        conditions = self._items[Stage.MASK]
        weights = self._items[Stage.NORMALIZER] or [softmax(self._builder)]
        return Variant(
            name=str(name_of(self._tree)),
            params=tuple(self._scope.params.values()),
            score=self._composed(Stage.SCORE, build.SCORE),
            mask=reduce(partial(self._builder.infix, "and"), conditions) if conditions else build.TRUE,
            normalizer=weights[0],
            weight=self._composed(Stage.WEIGHT, build.WEIGHT),
            origins=self._builder.origins,
            requirements=tuple(self._builder.requirements.values()),
            order=self._builder.order,
        )

    def _composed(self, stage: Stage, start: Expr) -> Expr:
        """The items of a stage one after the other, each over the value so far."""
        value = start
        for item in self._items[stage]:
            value = self._builder.substitute(item, start, value)
        return value

    def _parameter(self, tree: Syntax) -> None:
        name = str(name_of(tree))
        param = self._text.declarations.parameter(tree, self._scope.params)
        if param is not None:
            self._scope.params[name] = self._text.with_default(param, tree)
        elif name not in self._scope.params:
            self._scope.lets[name] = None

    def _let(self, tree: Syntax) -> None:
        name = name_of(tree)
        value = self._expressions.read(part(tree, 1), Frame(Stage.LET))
        if self._text.declarations.accepts(name, "let", self._scope.lets, self._other(name)):
            self._scope.lets[str(name)] = value

    def _other(self, name: str) -> str | None:
        """What a new name of the body would hide."""
        if name in self._scope.params:
            return "a parameter"
        return "a grid" if name in self._scope.grids else None

    def _grid(self, tree: Syntax) -> None:
        name = name_of(tree)
        other = "a parameter" if name in self._scope.params else None
        other = "a function" if self._scope.function(str(name), None) is not None else other
        layout = self._text.declarations.grid(tree)
        if self._text.declarations.accepts(name, "grid", self._scope.grids, other):
            self._scope.grids[str(name)] = layout
            keep_order(self._builder, layout, span_of(self._text.source, tree))

    def _require(self, tree: Syntax) -> None:
        condition, message = part(tree, 0), tree.children[1]
        assert isinstance(message, Token)
        value = self._expressions.read(condition, Frame(Stage.REQUIREMENT))
        if value is not None:
            add_requirement(self._builder, value, _spoken(self._text, message), span_of(self._text.source, condition))

    def _item(self, tree: Syntax) -> None:
        word, expression = name_of(tree), part(tree, 1)
        stage = Stage(str(word))
        value = self._expressions.read(expression, Frame(stage))
        if stage is Stage.NORMALIZER and self._items[stage]:
            message = "there are two normalizers"
            self._text.reporter.error("duplicate-normalizer", message, token_span(self._text.source, word))
        if value is not None:
            span = span_of(self._text.source, expression)
            finish = self._builder.mask if stage is Stage.MASK else partial(self._builder.score, what=stage.value)
            self._items[stage].append(finish(value, span))


def _spoken(text: _Text, token: Token) -> str:
    """The string a token stands for, its escapes being those of JSON."""
    try:
        return str(json.loads(token))
    except ValueError:
        message = f"{token} has an escape that means nothing"
        help_ = 'write `\\\\` for a backslash, `\\"` for a quote and `\\n` for a line break'
        text.reporter.error("bad-string", message, token_span(text.source, token), help=help_)
        return ""

"""Text to syntax tree: limits that keep hostile text cheap, lark, and lark's errors in human words.

In: a `Source`. Out: the tree of `grammar.lark` with a position on every node, or one diagnostic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from lark import Lark, Token, Tree, UnexpectedInput, UnexpectedToken
from lark.lexer import PatternStr

from attndsl.diagnostics import DiagnosticError, ProgramError, Source, Span, fail

Syntax = Tree[Token]
Branch = Token | Syntax

MAX_BYTES = 2**20
MAX_TOKENS = 100_000
MAX_NESTING = 200

_WORDS = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|\w+|[^\s\w]')
_CLOSED_BY = {"(": ")", "[": "]", "{": "}"}

_EXPRESSION = frozenset({"NAME", "INT", "FLOAT", "LPAR", "MINUS", "PLUS", "TILDE", "NOT"})
_ARITHMETIC = frozenset({"PLUS", "MINUS", "TIMES", "POWER", "SHIFT", "PIPE", "CARET", "AMPERSAND"})
_OPERATOR = _ARITHMETIC | {"COMPARE", "AND", "OR", "_IF", "DOT"}
_PHRASES = {
    "$END": "the end of the text",
    "STRING": 'a message in `"`',
    "NAME": "a name",
    "INT": "an integer",
    "_ELSE": "`else`",
}

_HELP = {
    "=": "write `==` to compare; an assignment is an item of its own: `let name = ...`",
    "!": "write `not` for negation and `!=` for different",
    "&": "write `and`",
    "|": "write `or`",
    "?": "write `a if condition else b`",
    ";": "items need no separators: begin the next one",
}


def syntax_tree(source: Source) -> Syntax:
    """The tree of a text."""
    unclosed = _check_limits(source)
    try:
        return _parser().parse(source.text)
    except UnexpectedInput as error:
        raise _syntax_error(source, error, unclosed) from None


def span_of(source: Source, tree: Syntax) -> Span:
    """Where a tree was written."""
    meta = tree.meta
    return Span(source, meta.line, meta.column, meta.end_line, meta.end_column)


def stretch(source: Source, tree: Syntax, first: int, last: int) -> Span:
    """From one child of a tree to another, parentheses included."""
    start, end = _outer(source, tree.children[first]), _outer(source, tree.children[last])
    return Span(source, start.line, start.column, end.end_line, end.end_column)


def _outer(source: Source, branch: Branch) -> Span:
    if isinstance(branch, Token):
        return token_span(source, branch)
    meta = branch.meta
    line, column = getattr(meta, "container_line", meta.line), getattr(meta, "container_column", meta.column)
    end_line = getattr(meta, "container_end_line", meta.end_line)
    return Span(source, line, column, end_line, getattr(meta, "container_end_column", meta.end_column))


def token_span(source: Source, token: Token) -> Span:
    """Where a token was written."""
    line, column = token.line or 1, token.column or 1
    return Span(source, line, column, token.end_line or line, token.end_column or column + len(token))


def position(source: Source, offset: int, length: int = 1) -> Span:
    """A stretch of one line, from its offset in the text."""
    line = source.text.count("\n", 0, offset) + 1
    column = offset - source.text.rfind("\n", 0, offset)
    return Span(source, line, column, line, column + length)


def children_of(tree: Syntax, kind: str) -> list[Syntax]:
    """The subtrees of one kind, in order."""
    return [child for child in tree.children if isinstance(child, Tree) and child.data == kind]


@cache
def _parser() -> Lark:
    grammar = files("attndsl.frontend").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", propagate_positions=True, maybe_placeholders=False)


def _check_limits(source: Source) -> list[int]:
    """Refuses what would take long; returns the offsets of brackets nobody closes."""
    if len(source.text) > MAX_BYTES:
        raise too_large(source)
    unclosed: list[int] = []
    for count, match in enumerate(_WORDS.finditer(source.text)):
        word = match.group()
        if count == MAX_TOKENS:
            raise too_large(source, position(source, match.start()))
        if word in _CLOSED_BY:
            unclosed.append(match.start())
        elif unclosed and word == _CLOSED_BY[source.text[unclosed[-1]]]:
            unclosed.pop()
        if len(unclosed) > MAX_NESTING:
            raise too_deep(position(source, match.start()))
    return unclosed


def too_large(source: Source, span: Span | None = None) -> DiagnosticError:
    """The error for a text beyond the limits."""
    message = f"`{source.name}` is larger than {MAX_BYTES // 2**20} MiB or {MAX_TOKENS} words and symbols"
    return fail(ProgramError, "text-too-large", message, span, help="put large data into a tensor parameter")


def too_deep(span: Span) -> DiagnosticError:
    """The error for expressions inside expressions inside ..."""
    message = f"the text is nested more than {MAX_NESTING} levels deep"
    return fail(ProgramError, "nesting-too-deep", message, span, help="name inner parts with `let` or `def`")


def _syntax_error(source: Source, error: UnexpectedInput, unclosed: list[int]) -> DiagnosticError:
    found, span, help_ = _unexpected(source, error)
    state = getattr(error, "interactive_parser", None)
    expected = _in_words(state.accepts()) if state is not None else []
    message = f"unexpected {found}" + (f", expected {', '.join(expected)}" if expected else "")
    notes = []
    if unclosed and found in ("end of text", "`}`", "`]`", "`)`"):
        opening = position(source, unclosed[-1])
        notes.append(f"the `{source.text[unclosed[-1]]}` at {opening} is never closed")
    return fail(ProgramError, "syntax-error", message, span, *notes, help=help_)


def _unexpected(source: Source, error: UnexpectedInput) -> tuple[str, Span, str | None]:
    """What was met, where, and what to write instead."""
    if isinstance(error, UnexpectedToken):
        if error.token.type == "$END":
            return "end of text", position(source, len(source.text.rstrip())), None
        return f"`{error.token}`", token_span(source, error.token), _HELP.get(str(error.token))
    offset = error.pos_in_stream or 0
    char = source.text[offset]
    found = f"`{char}`" if char.isprintable() else f"character U+{ord(char):04X}"
    return found, position(source, offset), _HELP.get(char)


def _in_words(accepted: Iterable[str]) -> list[str]:
    """What the parser accepts, as people say it."""
    names = set(accepted)
    words = set()
    if names >= {"INT", "LPAR"}:
        words.add("an expression")
        names -= _EXPRESSION
    if "TIMES" in names:
        words.add("an operator")
        names -= _OPERATOR
    return sorted(words | {_in_word(name) for name in names})


def _in_word(name: str) -> str:
    if name in _PHRASES:
        return _PHRASES[name]
    pattern = _parser().get_terminal(name).pattern
    spelling = pattern.value if isinstance(pattern, PatternStr) else pattern.value.removesuffix(r"\b")
    return f"`{spelling}`"

"""Where in a user's Python a value is being computed: frames in, `Span`s out.

The interpreter knows the exact stretch of source of every instruction (`co_positions`); what is here finds the user's
frame, turns byte columns into character columns, and does it once per code object.
"""

from __future__ import annotations

import ast
import dis
import linecache
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType

from attndsl.diagnostics import Source, Span

OWN_PACKAGES = ("attndsl.frontend", "torch")


def user_frame(outermost: CodeType) -> FrameType | None:
    """The innermost frame below `outermost` that is neither torch's nor a front end's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not outermost:
        if not _is_own(frame):
            return frame
        frame = frame.f_back
    return None


def _is_own(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__") or ""
    return any(module == package or module.startswith(package + ".") for package in OWN_PACKAGES)


def span_of(frame: FrameType) -> Span | None:
    """The stretch of source the frame is executing; none where there is no source."""
    spans = _spans(_Code(frame.f_code))
    index = frame.f_lasti // 2
    return spans[index] if 0 <= index < len(spans) else None


def opcode_of(frame: FrameType) -> tuple[str, str]:
    """The name and the printed argument of the instruction the frame is executing."""
    return _opcodes(_Code(frame.f_code)).get(frame.f_lasti, ("", ""))


def node_of(span: Span) -> tuple[ast.AST | None, ast.AST | None]:
    """The outermost syntax node written exactly at a span, and its parent."""
    wanted = (span.line, span.column, span.end_line, span.end_column)
    for node, parent in _family(_tree(span.source)):
        found = node_span(span.source, node)
        if found is not None and (found.line, found.column, found.end_line, found.end_column) == wanted:
            return node, parent
    return None, None


def node_span(source: Source, node: ast.AST) -> Span | None:
    """Where a syntax node stands."""
    match node:
        case ast.stmt() | ast.expr() | ast.arg() if node.end_lineno is not None and node.end_col_offset is not None:
            lines = _lines(source)
            first = _character(lines, node.lineno, node.col_offset)
            last = _character(lines, node.end_lineno, node.end_col_offset)
            return Span(source, node.lineno, first, node.end_lineno, last)
        case _:
            return None


def literal_first(span: Span) -> bool:
    """Whether a comparison is written with a number first: `0 == x`."""
    match _expression(span):
        case ast.Compare(left=ast.Constant() | ast.UnaryOp(operand=ast.Constant())):
            return True
        case _:
            return False


def indexed_name(span: Span) -> str | None:
    """What is indexed there: `weight` in `layer.weight[h]`."""
    match _expression(span):
        case ast.Subscript(value=ast.Attribute(attr=name) | ast.Name(id=name)):
            return name
        case _:
            return None


@lru_cache(maxsize=1024)
def _expression(span: Span) -> ast.expr | None:
    """The expression written at a span."""
    lines = list(_lines(span.source)[span.line - 1 : span.end_line])
    lines[-1] = lines[-1][: span.end_column - 1]
    lines[0] = lines[0][span.column - 1 :]
    try:
        return ast.parse(f"({chr(10).join(lines)})", mode="eval").body
    except SyntaxError:
        return None


def argument_span(code: CodeType, name: str) -> Span | None:
    """Where a function declares an argument."""
    source = source_of(code)
    if source is None:
        return None
    node = _definition(source, code)
    if node is None:
        return None
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return next((node_span(source, argument) for argument in arguments if argument.arg == name), None)


def definition_span(code: CodeType) -> Span | None:
    """Where a function is written."""
    source = source_of(code)
    node = _definition(source, code) if source is not None else None
    return node_span(source, node) if source is not None and node is not None else None


def source_of(code: CodeType) -> Source | None:
    """The file a function was written in; none for code without source."""
    lines = linecache.getlines(code.co_filename)
    return _source(code.co_filename, "".join(lines)) if lines else None


class _Code:
    """A code object by what it was compiled from: equality of code objects ignores the file and the columns."""

    __slots__ = ("_key", "code")

    def __init__(self, code: CodeType) -> None:
        self.code = code
        self._key = (code, code.co_filename, code.co_linetable)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and self._key == other._key


@lru_cache(maxsize=4096)
def _spans(code: _Code) -> tuple[Span | None, ...]:
    source = source_of(code.code)
    if source is None:
        return ()
    lines = _lines(source)
    return tuple(_span(source, lines, *position) for position in code.code.co_positions())


def _span(
    source: Source,
    lines: tuple[str, ...],
    line: int | None,
    end_line: int | None,
    column: int | None,
    end_column: int | None,
) -> Span | None:
    if line is None or end_line is None or column is None or end_column is None or end_line > len(lines):
        return None
    return Span(source, line, _character(lines, line, column), end_line, _character(lines, end_line, end_column))


def _character(lines: tuple[str, ...], line: int, offset: int) -> int:
    """The 1-based column in characters of a column in utf-8 bytes."""
    text = lines[line - 1] if line <= len(lines) else ""
    return 1 + (offset if text.isascii() else len(text.encode()[:offset].decode(errors="ignore")))


@lru_cache(maxsize=1024)
def _opcodes(code: _Code) -> dict[int, tuple[str, str]]:
    return {step.offset: (step.opname, step.argrepr) for step in dis.get_instructions(code.code)}


@lru_cache(maxsize=256)
def _source(name: str, text: str) -> Source:
    return Source(name, text)


@lru_cache(maxsize=256)
def _lines(source: Source) -> tuple[str, ...]:
    return tuple(source.text.split("\n"))


@lru_cache(maxsize=16)
def _tree(source: Source) -> ast.AST:
    try:
        return ast.parse(source.text)
    except SyntaxError:  # a file that was edited since it was imported, or a notebook with magics
        return ast.Module(body=[], type_ignores=[])


def _family(root: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    queue: list[tuple[ast.AST, ast.AST | None]] = [(root, None)]
    for node, parent in queue:
        yield node, parent
        queue.extend((child, node) for child in ast.iter_child_nodes(node))


def _definition(source: Source, code: CodeType) -> ast.FunctionDef | ast.Lambda | None:
    """The syntax a code object was compiled from: of several lambdas in a line, the one with the code's columns."""
    nodes = (node for node in ast.walk(_tree(source)) if isinstance(node, ast.FunctionDef | ast.Lambda))
    found = [node for node in nodes if _first_line(node) == code.co_firstlineno]
    columns = [start for line, _, start, end in code.co_positions() if line is not None and start and end]
    if len(found) > 1 and columns:
        within = [node for node in found if node.col_offset <= columns[-1] < (node.end_col_offset or 0)]
        found = sorted(within, key=lambda node: -node.col_offset) or found
    return found[0] if found else None


def _first_line(node: ast.FunctionDef | ast.Lambda) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])

"""Long statements broken into lines as a formatter breaks them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

LINE_LENGTH = 120


def wrapped(line: str, indent: int) -> Iterator[str]:
    """A statement as a formatter breaks it: the address of a read that is too long stands on lines of its own."""
    opening, load, rest = line.partition(" = tl.load(")
    if indent + len(line) <= LINE_LENGTH:
        yield line
        return
    if not load:
        yield from _call(line, indent)
        return
    address, cast, dtype = rest.rpartition(").to(")
    if cast and indent + len(opening + load + address + cast) <= LINE_LENGTH:
        yield opening + load + address + cast
        yield f"    {dtype.removesuffix(')')}"
        yield ")"
        return
    yield opening + load
    if indent + 4 + len(address) <= LINE_LENGTH:
        yield f"    {address}"
    else:
        yield from _terms(address)
    yield cast + dtype


def _call(line: str, indent: int) -> Iterator[str]:
    """A statement that is one call: its arguments on a line of their own, or each on its line."""
    (statement,) = ast.parse(line).body
    if not (isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)):
        yield line
        return
    call = statement.value
    parts: tuple[ast.expr | ast.keyword, ...] = (*call.args, *call.keywords)
    arguments = [line[part.col_offset : part.end_col_offset] for part in parts]
    together = ", ".join(arguments)
    yield line[: call.func.end_col_offset] + "("
    if indent + 4 + len(together) <= LINE_LENGTH:
        yield f"    {together}"
    else:
        yield from (f"    {argument}," for argument in arguments)
    yield ")"


def _terms(address: str) -> Iterator[str]:
    """The summands of an address, each on its line."""
    node, terms = ast.parse(address, mode="eval").body, []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.append(f"    + {ast.unparse(node.right)}")
        node = node.left
    yield f"    {ast.unparse(node)}"
    yield from reversed(terms)

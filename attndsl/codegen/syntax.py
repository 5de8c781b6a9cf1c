"""Spellings of operators as Python syntax trees: precedence is the unparser's business."""

from __future__ import annotations

import ast
from functools import cache


@cache
def _parsed(spelling: str, arity: int) -> ast.expr:
    return ast.parse(spelling.format(*(f"operand_{i}_" for i in range(arity))), mode="eval").body


def filled(spelling: str, *operands: ast.expr) -> ast.expr:
    """A spelling such as `tl.maximum({0}, {1})` with its operands in place, as a syntax tree."""
    return _Fill(list(operands)).visit(_parsed(spelling, len(operands)))  # type: ignore[no-any-return]


class _Fill(ast.NodeTransformer):
    """A copy of a spelling with its operands in place; the cached spelling itself stays as it is."""

    def __init__(self, operands: list[ast.expr]) -> None:
        self._operands = {f"operand_{i}_": operand for i, operand in enumerate(operands)}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._operands.get(node.id, node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        fields = {name: self._copy(value) for name, value in ast.iter_fields(node)}
        return type(node)(**fields)

    def _copy(self, value: object) -> object:
        if isinstance(value, ast.AST):
            return self.visit(value)
        if isinstance(value, list):
            return [self._copy(item) for item in value]
        return value

"""What a user wrote where Python wanted the value of a symbol, and what to write instead.

In: the user's frame. Out: a message and a help for a `control-flow` diagnostic, from the syntax tree where there is
source and from the instruction where there is none.
"""

from __future__ import annotations

import ast
from types import FrameType

from attndsl.diagnostics import Span
from attndsl.frontend.spans import node_of, node_span, opcode_of, span_of

WHERE = "both branches are computed for every pair: write `ad.where(condition, a, b)`"
NO_LOOPS = "a variant has no loops over coordinates; use arithmetic, or capture a table"
CASTS = frozenset({"int", "float", "bool"})
NEAREST = {"min": "ad.minimum", "max": "ad.maximum"}


def explain(frame: FrameType | None) -> tuple[str, Span | None, str]:
    """What needs the value, where, and what to write instead."""
    if frame is None:
        return "Python code", None, WHERE
    span = span_of(frame)
    node, parent = node_of(span) if span is not None else (None, None)
    if node is None or span is None:
        what, help_ = _by_instruction(frame)
        return what, span, help_
    if isinstance(node, ast.Expr):
        node = node.value
    if isinstance(parent, ast.BoolOp):  # the first operand of `and` decides whether the second is looked at
        node, span = parent, node_span(span.source, parent) or span
    if isinstance(node, ast.If | ast.While | ast.Assert | ast.IfExp):
        node, parent = node.test, node
        span = node_span(span.source, node) or span
    what, help_ = _by_syntax(node, parent)
    return what, span, help_


def _by_syntax(node: ast.AST, parent: ast.AST | None) -> tuple[str, str]:
    match node:
        case ast.Compare(ops=[ast.In() | ast.NotIn()]):
            return "`in`", "compare with each: `(x == a) | (x == b)`"
        case ast.Compare(ops=[_, _, *_]) if any(map(_is_bitwise, node.comparators)):
            return "a chained comparison", "`&` and `|` bind tighter than comparisons: put each one in parentheses"
        case ast.Compare(ops=[_, _, *_]):
            return "a chained comparison", f"write `{_unchained(node)}`"
        case ast.BoolOp(op=ast.And()):
            return "`and`", f"write `{_joined(node, '&')}`"
        case ast.BoolOp():
            return "`or`", f"write `{_joined(node, '|')}`"
        case ast.UnaryOp(op=ast.Not()):
            return "`not`", f"write `~({ast.unparse(node.operand)})`"
        case ast.Call():
            return _by_call(node)
        case ast.Subscript():
            return "indexing a Python sequence", "make it a tensor: `torch.tensor(values)[index]`"
        case ast.For() | ast.comprehension() | ast.ListComp() | ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
            return "a loop", NO_LOOPS
    match parent:
        case ast.For() | ast.comprehension():
            return "a loop", NO_LOOPS
        case ast.While():
            return "`while`", NO_LOOPS
        case ast.If():
            return "`if`", WHERE
        case ast.IfExp():
            return "a conditional expression", WHERE
        case ast.Assert():
            return "`assert`", "leave it out, or check parameters where the variant is made"
        case _:
            return "Python code", WHERE


def _by_call(call: ast.Call) -> tuple[str, str]:
    name = ast.unparse(call.func)
    what = f"`{name}(...)`"
    args = ", ".join(map(ast.unparse, call.args))
    if name in CASTS:
        return what, f"write `{_receiver(call)}.{name}()`"
    if name in NEAREST:
        return what, f"write `{NEAREST[name]}({args})`"
    if name.startswith("math."):
        return what, f"write `ad.{name.removeprefix('math.')}({args})`, or compute it with torch"
    if name == "range":
        return what, NO_LOOPS
    if name in ("any", "all"):
        return what, f"join the conditions with `{'|' if name == 'any' else '&'}`"
    return what, "use the functions of `ad` and of torch, which take symbols"


def _receiver(call: ast.Call) -> str:
    operand = call.args[0] if call.args else call
    text = ast.unparse(operand)
    return text if isinstance(operand, ast.Name | ast.Call | ast.Subscript | ast.Attribute) else f"({text})"


def _is_bitwise(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr)


def _unchained(node: ast.Compare) -> str:
    operands = [node.left, *node.comparators]
    pairs = zip(operands, node.ops, operands[1:], strict=False)
    return " & ".join(f"({ast.unparse(ast.Compare(left, [op], [right]))})" for left, op, right in pairs)


def _joined(node: ast.BoolOp, symbol: str) -> str:
    return f" {symbol} ".join(
        value.id if isinstance(value, ast.Name) else f"({ast.unparse(value)})" for value in node.values
    )


def _by_instruction(frame: FrameType) -> tuple[str, str]:
    name, _ = opcode_of(frame)
    if name == "UNARY_NOT":
        return "`not`", "write `~x`"
    if name == "CONTAINS_OP":
        return "`in`", "compare with each: `(x == a) | (x == b)`"
    if name.startswith("CALL"):
        return "a Python function", "use the functions of `ad` and of torch, which take symbols"
    if "JUMP" in name or name == "TO_BOOL":
        return (
            "`if`, `and`, `or` or a chained comparison",
            "write `ad.where(condition, a, b)`, `a & b`, `a | b`, or `(a <= b) & (b <= c)`",
        )
    return "Python code", WHERE

"""Programs as FlexAttention's functions, for a peer that computes the same.

In: an attention. Out: its `score_mod` and `mask_mod` as plain functions, or why FlexAttention has no such program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import torch

import attndsl as ad
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Expr, Load, Scalar, children, postorder
from attndsl.ir.ops import Op, facts
from attndsl.ir.types import DType

LEAVES = {
    build.B: "b",
    build.H: "h",
    build.Q: "q_idx",
    build.K: "kv_idx",
    build.SCORE: "score",
    build.Q_LEN: "q_len",
    build.KV_LEN: "kv_len",
}
INFIX = {Op.AND: "&", Op.OR: "|"}
CLAMPED = {Op.MIN: "max", Op.MAX: "min"}
PREFIX = {Op.NEG: "-", Op.NOT: "~", Op.BIT_NOT: "~"}
TYPES = {DType.F32: "torch.float32", DType.BOOL: "torch.bool"}
(PLAIN,) = parse("attention plain() { score score }")
Mods = tuple[Callable[..., Any] | None, Callable[..., Any] | None]


class NoSuchProgram(Exception):
    """What FlexAttention cannot say."""


def mods_of(attention: ad.Attention, values: Mapping[str, Any], q_len: int, kv_len: int) -> Mods:
    """The functions of a program with these values of its parameters; `NoSuchProgram` says why there are none."""
    variant = attention.variant
    if variant.normalizer is not PLAIN.normalizer:
        raise NoSuchProgram("another normalizer than softmax")
    if variant.weight is not PLAIN.weight:
        raise NoSuchProgram("a change of the normalized weight")
    numbers = {"torch": torch, "q_len": q_len, "kv_len": kv_len}
    given = {f"p_{name}": value for name, value in values.items()} | numbers
    score = None if variant.score is build.SCORE else _function("score, b, h, q_idx, kv_idx", variant.score, given)
    mask = None if variant.mask is build.TRUE else _function("b, h, q_idx, kv_idx", variant.mask, given)
    return score, mask


def _function(arguments: str, root: Expr, given: Mapping[str, Any]) -> Callable[..., Any]:
    names, lines, scope = dict(LEAVES), list[str](), dict(given)
    numbers: set[Expr] = {build.Q_LEN, build.KV_LEN}
    for node in postorder(root):
        if node in names:
            continue
        operands = [names[child] for child in children(node)]
        if isinstance(node, Const | Scalar) or (isinstance(node, Apply) and numbers.issuperset(node.args)):
            numbers.add(node)
            names[node] = _number(node, operands, scope)
        else:
            names[node] = f"v{len(lines)}"
            lines.append(f"    v{len(lines)} = {_text(node, operands, numbers)}")
    exec("\n".join((f"def mod({arguments}):", *lines, f"    return {names[root]}")), scope)
    found: Callable[..., Any] = scope["mod"]
    return found


def _number(node: Expr, operands: list[str], scope: Mapping[str, Any]) -> str:
    """What every pair shares, as a Python number: torch's functions take no numbers alone."""
    match node:
        case Const(value=value):
            pass
        case Scalar(name=name):
            value = scope[f"p_{name}"]
        case _:
            value = eval(_text(node, [f"torch.tensor({operand})" for operand in operands], set()), dict(scope)).item()
    return f"({value!r})".replace("inf", "float('inf')")


def _text(node: Expr, operands: list[str], numbers: Set[Expr]) -> str:
    match node:
        case Load(tensor=tensor):
            return f"p_{tensor}[{', '.join(operands)}]"
        case Apply(op=Op.TO_FLOAT | Op.TO_INT | Op.TO_BOOL):
            return f"torch.as_tensor({operands[0]}).to({TYPES.get(node.dtype, 'torch.int64')})"
        case Apply(op=op, args=args) if op in CLAMPED and not numbers.isdisjoint(args):
            (_, other), (_, number) = sorted(zip(args, operands, strict=True), key=lambda one: one[0] in numbers)
            return f"torch.clamp({other}, {CLAMPED[op]}={number})"
        case Apply(op=op) if op in PREFIX:
            return f"{PREFIX[op]}{operands[0]}"
        case Apply(op=Op.BIT_LENGTH):
            raise NoSuchProgram("torch has no `bit_length`")
        case Apply(op=op) if len(operands) == 2 and not facts(op).text.isalpha():
            return f"{operands[0]} {facts(op).text} {operands[1]}"
        case Apply(op=op):
            spelling = INFIX.get(op)
            return f" {spelling} ".join(operands) if spelling else f"torch.{facts(op).torch}({', '.join(operands)})"
        case _:
            raise NoSuchProgram(f"`{type(node).__name__}`")

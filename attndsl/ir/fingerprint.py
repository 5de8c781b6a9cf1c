"""A stable hash of a program's structure.

In: a variant, after the passes. Out: the same text for programs that differ only in the names of parameters and of the
variant, in defaults, in unused parameters and in where they were written.
"""

from __future__ import annotations

import hashlib
import struct

from attndsl.ir.nodes import Apply, Const, Coord, Expr, Input, Load, Reduce, RowValue, Scalar, Solve, children
from attndsl.ir.rewrite import postorder
from attndsl.ir.variant import Variant

FORMAT = "attndsl-1"
"""Part of every hash: change it when the meaning of a line below changes."""


def fingerprint(variant: Variant) -> str:
    """sha256, in hex, of the order of tokens and the four expressions, nodes and parameters numbered by first use."""
    numbers: dict[Expr, int] = {}
    params: dict[str, int] = {}
    digest = hashlib.sha256(FORMAT.encode())
    for node in postorder(*variant.roots):
        operands = " ".join(str(numbers[child]) for child in children(node))
        digest.update(f"\n{_head(node, params)} {node.dtype.value} {operands}".encode())
        numbers[node] = len(numbers)
    digest.update(f"\nroots {' '.join(str(numbers[root]) for root in variant.roots)}".encode())
    if variant.order is not None:
        digest.update(f"\norder {variant.order.sizes} {variant.order.tile}".encode())
    return digest.hexdigest()


def _head(node: Expr, params: dict[str, int]) -> str:
    """What a node is, apart from its operands and type. Enums by name: their values shift when a member is added."""
    match node:
        case Const(value=float(value)):
            return f"const {struct.pack('>d', value).hex()}"
        case Const(value=value):
            return f"const {int(value)}"
        case Coord(coordinate=coordinate):
            return f"coord {coordinate.name}"
        case Input(flow=flow):
            return f"input {flow.name}"
        case Scalar(name=name):
            return f"scalar {params.setdefault(name, len(params))}"
        case Load(tensor=tensor):
            return f"load {params.setdefault(tensor, len(params))}"
        case Apply(op=op):
            return f"apply {op.name}"
        case Reduce(reduction=reduction):
            return f"reduce {reduction.name}"
        case Solve():
            return "solve"
        case RowValue(name=name):
            return f"row {name}"

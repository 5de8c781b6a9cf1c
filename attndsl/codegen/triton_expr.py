"""Expressions as Triton: built as Python syntax trees and unparsed, so that no precedence is decided here."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

from attndsl.analysis.axes import axes_of
from attndsl.codegen.placement import Scope, scope_of
from attndsl.codegen.powers import small_exponent
from attndsl.codegen.syntax import filled
from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Coord, Expr, Input, Load, Reduce, RowValue, Scalar, Solve
from attndsl.ir.ops import Op, facts
from attndsl.ir.types import DType


@dataclass(frozen=True, slots=True)
class LoadStyle:
    """How captured tensors are read: `clamped` reads may lie outside and are pulled in, others are proven inside."""

    clamped: bool
    unclamped: frozenset[Expr] = frozenset()


@dataclass(slots=True)
class TritonPrinter:
    """Prints expressions over names. `helpers` collects the helper functions the printed text calls."""

    index: DType
    names: Mapping[Expr, str]
    symbols: Mapping[str, str]
    cheap_division: frozenset[Expr] = frozenset()
    helpers: set[str] = field(default_factory=set)

    def text(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle) -> str:
        """The value of a statement: its operands by their names, itself written out."""
        return ast.unparse(self._tree(node, names, loads, at_root=True))

    def named(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle) -> str:
        """One expression, by its name where it has one."""
        return ast.unparse(self._tree(node, names, loads))

    def _tree(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle, at_root: bool = False) -> ast.expr:
        name = None if at_root else names.get(node, self.names.get(node))
        if name is not None:
            return ast.Name(name)
        match node:
            case Const():
                return self._constant(node)
            case Load():
                return self._load(node, names, loads)
            case Apply():
                operands = [self._tree(arg, names, loads) for arg in node.args]
                return self._operator(node, operands)
            case Coord() | Input() | Scalar() | Reduce() | Solve() | RowValue():
                raise VerifyError(f"{node} has no name in the kernel")

    def _constant(self, node: Const) -> ast.expr:
        value = node.value
        if isinstance(value, float) and math.isnan(value):
            return ast.Name("NAN")
        if isinstance(value, float) and math.isinf(value):
            return ast.Name("INF") if value > 0 else ast.UnaryOp(ast.USub(), ast.Name("INF"))
        if not isinstance(value, bool) and (value < 0 or math.copysign(1.0, value) < 0):
            return ast.UnaryOp(ast.USub(), ast.Constant(-value))
        return ast.Constant(value)

    def _operator(self, node: Apply, operands: list[ast.expr]) -> ast.expr:
        row, exponent = facts(node.op), small_exponent(node)
        spelling = row.triton
        if exponent is not None:
            spelling = f"_small_pow({{0}}, {exponent})"
        elif node in self.cheap_division:
            spelling = f"{{0}} {row.text} {{1}}"
        elif row.triton_int is not None and node.args[-1].dtype.is_int:
            spelling = row.triton_int
        spelling = spelling.replace("INDEX", f"tl.{'int32' if self.index is DType.I32 else 'int64'}")
        if spelling.startswith("_"):
            self.helpers.add(spelling.partition("(")[0])
        return filled(spelling, *operands)

    def _load(self, node: Load, names: Mapping[Expr, str], loads: LoadStyle) -> ast.expr:
        clamp = loads.clamped and node not in loads.unclamped
        tensor = self.symbols[node.tensor]
        base: list[ast.expr] = [ast.Name(tensor)]
        offsets: list[ast.expr] = []
        for axis, index in enumerate(node.indices):
            position = self._tree(index, names, loads)
            if clamp:
                position = filled(f"tl.minimum(tl.maximum({{0}}, 0), size_{tensor}_{axis} - 1)", position)
            is_scalar = scope_of(axes_of(index)) is Scope.PROGRAM
            (base if is_scalar else offsets).append(filled(f"{{0}} * stride_{tensor}_{axis}", position))
        # Offsets are added up before the pointer, which is twice as wide.
        value = filled("tl.load({0})", _sum([*base, *([_sum(offsets)] if offsets else [])]))
        match node.dtype:
            case DType.F32:
                return filled("{0}.to(tl.float32)", value)
            case DType.BOOL:
                return filled("{0}.to(tl.int1)", value)
            case _:
                return filled(f"{{0}}.to(tl.{'int32' if self.index is DType.I32 else 'int64'})", value)


def _sum(terms: Sequence[ast.expr]) -> ast.expr:
    return reduce(lambda left, right: ast.BinOp(left, ast.Add(), right), terms)


@dataclass(slots=True)
class KernelPrinter(TritonPrinter):
    """Prints expressions of a kernel: exponentials of a score less a row value as `exp2`, with the scale where it
    joins the exponent. `rows` are the names of row values as they are kept, one element a row."""

    score: Expr = build.SCORE
    rows: Mapping[str, str] = field(default_factory=dict)
    across: str = "[:, None]"
    scales_late: bool = False

    def _tree(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle, at_root: bool = False) -> ast.expr:
        match node:
            case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(left, RowValue(name=name))),)) if (
                at_root or node not in names
            ):
                if self.scales_late and left is self.score:
                    row = self.rows.get(name, name)
                    text = f"tl.exp2(s * qk_scale - ({row} * LOG2E){self.across})"
                    return ast.parse(text, mode="eval").body
                difference = self._tree(node.args[0], names, loads)
                scaled = ast.BinOp(difference, ast.Mult(), ast.Name("LOG2E"))
                return ast.Call(ast.parse("tl.exp2", mode="eval").body, [scaled], [])
            case _:
                return TritonPrinter._tree(self, node, names, loads, at_root)

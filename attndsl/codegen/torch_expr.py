"""Expressions as plain torch, for people to read: built as Python syntax trees, like those in Triton.

In: expressions, and the names of their leaves. Out: lines that name what is shared or long, and the text of each value.
What the printed text calls is defined in `attndsl.dense` and `attndsl.guarded`, and copied from there.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from attndsl.codegen.syntax import filled
from attndsl.codegen.triton_layout import LINE_LENGTH, wrapped
from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.binding import open_nodes
from attndsl.ir.nodes import Apply, Const, Expr, Load, Reduce, Scalar, Solve, children, postorder
from attndsl.ir.ops import Op, facts
from attndsl.ir.types import Reduction

WIDTH = 84
"""Longer values are taken apart: each line stays within the width of a page, names included."""

INDENT = 4
"""Of the functions the lines stand in."""

INFIX = frozenset({Op.ADD, Op.SUB, Op.LT, Op.LE, Op.GT, Op.GE, Op.EQ, Op.NE, Op.XOR, Op.BIT_AND, Op.BIT_OR, Op.BIT_XOR})
INFIX |= {Op.SHL, Op.SHR}
"""What torch writes as the language does, and differentiates into finite factors."""

SPELLINGS = {
    Op.AND: "{0} & {1}",
    Op.OR: "{0} | {1}",
    Op.NEG: "-{0}",
    Op.NOT: "~{0}",
    Op.BIT_NOT: "~{0}",
    Op.ABS: "torch.abs({0})",
    Op.WHERE: "torch.where({0}, {1}, {2})",
    Op.BIT_LENGTH: "bit_length({0})",
    Op.TO_BOOL: "{0} != 0",
    Op.TO_INT: "{0}.to(torch.int64)",
    Op.TO_FLOAT: "{0}.to(at.dtype)",
}
REDUCTIONS = {Reduction.MAX: "row_max", Reduction.SUM: "row_sum"}
LOCAL = frozenset({"floor_divide", "remainder"})
"""Functions of the operator table that are attndsl's own."""

FUNCTIONAL = frozenset({"gelu", "silu"})


@dataclass(slots=True)
class TorchPrinter:
    """Prints values one after the other; `names` are the leaves and, as they come, the values that have a name."""

    names: dict[Expr, str]
    tensors: Mapping[str, str]
    lines: list[str] = field(default_factory=list)
    _temporaries: int = 0

    def values(self, roots: Sequence[Expr], longest: int | None = None) -> list[str]:
        """The texts of values, named where they are longer than `longest`; the lines before them are in `lines`."""
        trees: dict[Expr, ast.expr] = {}
        steps = self._steps(roots)
        uses = Counter([*roots, *(child for node in steps for child in children(node))])

        def tree_of(node: Expr) -> ast.expr:
            return ast.Name(self.names[node]) if node in self.names else trees[node]

        for node in steps:
            if isinstance(node, Solve):
                trees[node] = self._solved(node, tree_of)
                continue
            tree = self._shortened(node, [tree_of(child) for child in children(node)])
            trees[node] = self._named(node, tree) if uses[node] > 1 and not isinstance(node, Const) else tree
        trees |= {root: tree_of(root) for root in roots}
        for root in roots:
            if longest is not None and not isinstance(trees[root], ast.Name) and _length(trees[root]) > longest:
                trees[root] = self._named(root, trees[root])
        return [ast.unparse(trees[root]) for root in roots]

    def _steps(self, roots: Sequence[Expr]) -> list[Expr]:
        """What is to be printed, operands first: nothing below what has a name."""
        steps: dict[Expr, None] = {}
        stack = [(root, False) for root in reversed(roots)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                steps[node] = None
            elif node not in self.names and node not in steps:
                stack.append((node, True))
                stack += ((child, False) for child in reversed(_read_by(node)))
        return list(steps)

    def _solved(self, node: Solve, tree_of: Callable[[Expr], ast.expr]) -> ast.Name:
        """The threshold of each row: the sums of its rows become a function of it, and of all else they read."""
        read = [leaf for leaf in _read_by(node)[3:] if not isinstance(leaf, Const)]
        for leaf in read:
            if leaf not in self.names:
                self._named(leaf, tree_of(leaf))
        given = [self.names[leaf] for leaf in read]
        names: dict[Expr, str] = {build.THRESHOLD: "threshold", **{leaf: self.names[leaf] for leaf in read}}
        inner = TorchPrinter(names, {}, _temporaries=self._temporaries)
        (body,) = inner.values((node.body,))
        ends = (ast.unparse(_as_tensors([end], [tree_of(end)])[0]) for end in (node.total, node.lower, node.upper))
        function, name = f"sums_{self._temporaries}", f"value_{self._temporaries}"
        self._temporaries += 1
        listed = f"({', '.join(given)}{',' * (len(given) == 1)})"
        self.lines += (
            "",
            *_signature(function, ("threshold", *given)),
            *(f"    {line}" for line in inner.lines),
            f"    return row_sum({body}, live)",
            "",
            *wrapped(f"{name} = solve_rows({function}, {listed}, {', '.join(ends)}, live)", INDENT),
        )
        self.names[node] = name
        return ast.Name(name)

    def _shortened(self, node: Expr, operands: list[ast.expr]) -> ast.expr:
        """The value of a node; its longest operands become names until it fits on a line."""
        while True:
            tree = self._tree(node, operands)
            lengths = [0 if isinstance(operand, ast.Name | ast.Constant) else _length(operand) for operand in operands]
            if _length(tree) <= WIDTH or not any(lengths):
                return tree
            longest = lengths.index(max(lengths))
            operands[longest] = self._named(children(node)[longest], operands[longest])

    def _named(self, node: Expr, tree: ast.expr) -> ast.Name:
        name = f"value_{self._temporaries}"
        self._temporaries += 1
        self.lines.append(f"{name} = {ast.unparse(tree)}")
        self.names[node] = name
        return ast.Name(name)

    def _tree(self, node: Expr, operands: list[ast.expr]) -> ast.expr:
        match node:
            case Const(value=value):
                return constant(value)
            case Load(tensor=tensor):
                listed = ", ".join(f"{{{place}}}" for place in range(len(operands)))
                return filled(f"_gather({self.tensors[tensor]}, [{listed}])", *operands)
            case Reduce(reduction=reduction):
                return filled(f"{REDUCTIONS[reduction]}({{0}}, live)", *operands)
            case Apply():
                return _operator(node, operands)
            case _:
                raise VerifyError(f"{node} has no name in torch")


def _signature(function: str, names: Sequence[str]) -> list[str]:
    """The head of a function of tensors."""
    arguments = [f"{name}: Tensor" for name in names]
    whole = f"def {function}({', '.join(arguments)}) -> Tensor:"
    if INDENT + len(whole) <= LINE_LENGTH:
        return [whole]
    return [f"def {function}(", *(f"    {argument}," for argument in arguments), ") -> Tensor:"]


def _read_by(node: Expr) -> tuple[Expr, ...]:
    """What is computed before a node; of a solve, its total, its ends, and what its body reads but the threshold."""
    if not isinstance(node, Solve):
        return children(node)
    unbound = open_nodes(node.body)
    body = [step for step in postorder(node.body) if step in unbound]
    read = dict.fromkeys(child for step in body for child in children(step) if child not in unbound)
    return (node.total, node.lower, node.upper, *read)


def constant(value: float) -> ast.expr:
    """A number; infinities and NaN have names."""
    if isinstance(value, float) and not math.isfinite(value):
        text = "torch.nan" if math.isnan(value) else "torch.inf" if value > 0 else "-torch.inf"
        return ast.parse(text, mode="eval").body
    if not isinstance(value, bool) and (value < 0 or math.copysign(1.0, value) < 0):
        return ast.UnaryOp(ast.USub(), ast.Constant(-value))
    return ast.Constant(value)


def _operator(node: Apply, operands: list[ast.expr]) -> ast.expr:
    """An operator; numbers are tensors where torch would not make them ones."""
    op, args = node.op, node.args
    is_operator = op in INFIX or _is_plain(node)
    branches = args[1:] if op is Op.WHERE else args
    if all(isinstance(branch, Const) for branch in branches) or not (op in SPELLINGS or is_operator):
        operands = _as_tensors(args, operands)
    elif op is Op.WHERE:
        operands = [*_as_tensors(args[:1], operands[:1]), *operands[1:]]
    if op in SPELLINGS:
        return filled(SPELLINGS[op], *operands)
    if is_operator:
        return filled(f"{{0}} {facts(op).text} {{1}}", *operands)
    function = facts(op).torch
    home = "" if function in LOCAL else "functional." if function in FUNCTIONAL else "torch."
    listed = ", ".join(f"{{{place}}}" for place in range(len(operands)))
    if node.dtype.is_float:
        return filled(f"call({home}{function}, [{listed}])", *operands)
    return filled(f"{home}{function}({listed})", *operands)


def _is_plain(node: Apply) -> bool:
    """Whether infix writes an operator that other operands would need care with: gradients stay 0 where nothing flows
    back, and nothing is divided by 0."""
    last = node.args[-1]
    match node.op:
        case Op.MUL:
            return not node.dtype.is_float or any(map(_is_finite, node.args))
        case Op.DIV:
            return isinstance(last, Scalar) or (isinstance(last, Const) and last.value != 0)
        case Op.FLOORDIV | Op.MOD:
            return not node.dtype.is_float and isinstance(last, Const) and last.value != 0
        case _:
            return False


def _is_finite(node: Expr) -> bool:
    """Whether a factor is a number nobody differentiates by, and never infinite."""
    match node:
        case Const(value=value):
            return math.isfinite(value)
        case Scalar():
            return True
        case Apply(op=Op.TO_FLOAT, args=(arg,)):
            return not arg.dtype.is_float
        case _:
            return False


def _as_tensors(args: Sequence[Expr], operands: Sequence[ast.expr]) -> list[ast.expr]:
    pairs = zip(args, operands, strict=True)
    return [_tensor(operand) if isinstance(arg, Const) else operand for arg, operand in pairs]


def _tensor(operand: ast.expr) -> ast.expr:
    return filled("at.number({0})", operand)


def _length(tree: ast.expr) -> int:
    return len(ast.unparse(tree))

"""The one place where what users write becomes typed nodes: coercions, spans, errors.

Both front ends call it with the symbols and function names of the language; it picks the operator by the operands'
types, promotes, remembers where each node was written and reports mistakes. A mistake yields a placeholder of a fitting
type so that the stage goes on and everything is reported together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from attndsl.diagnostics import Reporter, Span
from attndsl.ir import build
from attndsl.ir.binding import open_nodes, varies_along_keys
from attndsl.ir.nodes import Apply, Const, Expr, Load, children, with_children
from attndsl.ir.ops import CALLS, FLOAT, Op, facts
from attndsl.ir.order import GridOrder
from attndsl.ir.requirement import Requirement
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import Origins, TensorParam

E = TypeVar("E", bound=Expr)

INT64 = range(-(2**63), 2**63)
MAX_DEPTH = 400
MAX_POWER = 64

ARITHMETIC = {"+": Op.ADD, "-": Op.SUB, "*": Op.MUL, "/": Op.DIV, "//": Op.FLOORDIV, "%": Op.MOD}
COMPARISON = {"<": Op.LT, "<=": Op.LE, ">": Op.GT, ">=": Op.GE, "==": Op.EQ, "!=": Op.NE}
LOGIC = {"and": Op.AND, "or": Op.OR}
BITWISE = {"&": (Op.AND, Op.BIT_AND), "|": (Op.OR, Op.BIT_OR), "^": (Op.XOR, Op.BIT_XOR)}
SHIFT = {"<<": Op.SHL, ">>": Op.SHR}


class Builder:
    """Builds one program; `origins`, `requirements`, `orders` and `reporter` hold what it learnt on the way."""

    def __init__(self, reporter: Reporter | None = None) -> None:
        self.reporter = reporter if reporter is not None else Reporter()
        self.origins = Origins()
        self.requirements: dict[tuple[Expr, str], Requirement] = {}
        self.orders: dict[GridOrder, None] = {}
        self._depth: dict[Expr, int] = {}

    @property
    def order(self) -> GridOrder | None:
        """How kernels keep tokens, if grids of the program say."""
        return next(iter(self.orders), None)

    def literal(self, value: bool | float, span: Span | None = None) -> Expr:
        """A constant: `true`, `3` or `3.0`."""
        if isinstance(value, bool):
            return self._written(build.boolean(value), span)
        if isinstance(value, int):
            if value not in INT64:
                self.reporter.error("integer-too-large", f"`{value}` does not fit in 64 bits", span)
                value = 0
            return self._written(build.integer(value), span)
        return self._written(build.real(value), span)

    def infix(self, symbol: str, left: Expr, right: Expr, span: Span | None = None) -> Expr:
        """`left symbol right`, with Python's meaning of the symbol."""
        if symbol in ARITHMETIC:
            return self._arithmetic(symbol, left, right, span)
        if symbol in COMPARISON:
            return self._comparison(symbol, left, right, span)
        if symbol in LOGIC:
            return self._logic(LOGIC[symbol], symbol, (left, right), span)
        if symbol in BITWISE:
            return self._bitwise(symbol, left, right, span)
        if symbol in SHIFT:
            return self._shift(symbol, left, right, span)
        return self._power(left, right, span)

    def prefix(self, symbol: str, operand: Expr, span: Span | None = None) -> Expr:
        """`-x`, `+x`, `~x` or `not x`. The minus of a literal is part of the literal."""
        if symbol == "not" or (symbol == "~" and operand.dtype.is_bool):
            return self._logic(Op.NOT, symbol, (operand,), span)
        if symbol == "~":
            if not operand.dtype.is_int:
                return self._mistyped(symbol, (operand,), "an integer or a bool", build.integer(0), span)
            return self._apply(Op.BIT_NOT, (operand,), span)
        numbers = self._numbers(symbol, (operand,), span)
        if numbers is None:
            return build.real(0.0)
        if symbol == "+":
            return numbers[0]
        if isinstance(numbers[0], Const):
            return self.literal(-numbers[0].value, span)
        return self._apply(Op.NEG, numbers, span)

    def call(self, name: str, args: Sequence[Expr], span: Span | None = None) -> Expr:
        """A function of the language by its name: `exp(x)`, `where(c, a, b)`, `clamp(x, low, high)`, `min(a, b, c)`."""
        if name in ("min", "max") and len(args) >= 2:
            return self._fold(CALLS[name], name, args, span)
        if name == "clamp" and len(args) == 3:
            return self.call("min", (self.call("max", args[:2], span), args[2]), span)
        if name == "clamp":
            self.reporter.error("wrong-arity", f"`clamp` takes 3 argument(s), got {len(args)}", span)
            return build.real(0.0)
        op = CALLS.get(name)
        if op is None:
            known = ", ".join(f"`{known}`" for known in sorted({*CALLS, "clamp"}))
            self.reporter.error("unknown-function", f"there is no function `{name}`", span, f"known are {known}")
            return build.real(0.0)
        if len(args) != facts(op).arity:
            wanted = "at least 2" if name in ("min", "max") else facts(op).arity
            self.reporter.error("wrong-arity", f"`{name}` takes {wanted} argument(s), got {len(args)}", span)
            return build.real(0.0)
        if op is Op.WHERE:
            return self.where(args[0], args[1], args[2], span)
        if op in (Op.TO_BOOL, Op.TO_INT, Op.TO_FLOAT):
            return self.cast(op, args[0], span)
        return self._function(op, name, args, span)

    def where(self, condition: Expr, yes: Expr, no: Expr, span: Span | None = None) -> Expr:
        """`yes if condition else no`; the branches promote to one type."""
        if not condition.dtype.is_bool:
            help_ = "compare it with something, or write `bool(...)`"
            return self._mistyped("where", (condition,), "a bool condition", yes, span, help_)
        if yes.dtype.is_bool and no.dtype.is_bool:
            return self._apply(Op.WHERE, (condition, yes, no), span)
        branches = self._numbers("where", (yes, no), span)
        return build.real(0.0) if branches is None else self._apply(Op.WHERE, (condition, *branches), span)

    def cast(self, op: Op, operand: Expr, span: Span | None = None) -> Expr:
        """`bool(x)`, `int(x)` (towards zero) or `float(x)`; a cast to the type a value has is the value."""
        target = {Op.TO_BOOL: DType.BOOL, Op.TO_INT: DType.I64, Op.TO_FLOAT: DType.F32}[op]
        if operand.dtype is target:
            return operand
        if op is Op.TO_FLOAT and isinstance(operand, Const):
            return self.literal(float(operand.value), span)
        return self._apply(op, (operand,), span)

    def load(self, tensor: TensorParam, indices: Sequence[Expr], span: Span | None = None) -> Expr:
        """`tensor[i, j]`: one integer index for each dimension."""
        fitting = True
        if len(indices) != tensor.rank:
            fitting = False
            self.reporter.error(
                "tensor-rank",
                f"`{tensor.name}` has {tensor.rank} dimension(s) but is indexed by {len(indices)}",
                span,
                help=f"give one index for each dimension: `{tensor.name}[{', '.join(tensor.dims)}]`",
            )
        for position, index in enumerate(indices):
            if not index.dtype.is_int:
                fitting = False
                self.reporter.error(
                    "index-not-integer",
                    f"index {position} of `{tensor.name}` has type {index.dtype.value}, expected an integer",
                    self.origins.first(index) or span,
                    help="compute positions with integers, or round and write `int(...)`",
                )
        if not fitting:
            return {DType.BOOL: build.FALSE, DType.I64: build.integer(0)}.get(tensor.dtype, build.real(0.0))
        return self._written(build.load(tensor.name, tuple(indices), tensor.dtype), span)

    def row(self, reduction: Reduction, operand: Expr, span: Span | None = None) -> Expr:
        """`row_max(x)` or `row_sum(x)` over the live keys of the row."""
        numbers = self._numbers(reduction.value, (operand,), span)
        if numbers is None:
            return build.SCORE
        if numbers[0] in open_nodes(numbers[0]):
            message = f"`{reduction.value}` of what a `row_solve` looks for"
            self.reporter.error("nested-solve", message, span, help="take it before, of values that are known")
            return self._float(numbers[0])
        return self._written(build.row(reduction, self._float(numbers[0])), span)

    def solve(self, body: Expr, total: Expr, lower: Expr, upper: Expr, span: Span | None = None) -> Expr:
        """The least t at which the row's sum of `body` is <= `total`; the body reads t as `build.THRESHOLD`."""
        numbers = [self._numbers("row_solve", (part,), span) for part in (body, total, lower, upper)]
        mistakes = len(self.reporter)
        if body not in open_nodes(body):
            message, help_ = "`row_solve` does not use what it looks for", "use it: `max(score - t, 0.0)`"
            self.reporter.error("solve-without-threshold", message, span, help=help_)
        for name, part in (("total", total), ("lower", lower), ("upper", upper)):
            if varies_along_keys(part):
                message = f"`{name}` of `row_solve` differs from key to key"
                help_ = "it is one value to a row: a number, `row_max(...)`, `row_sum(...)`"
                self.reporter.error("solve-not-of-row", message, self.origins.first(part) or span, help=help_)
        parts = [self._float(number[0]) for number in numbers if number is not None]
        if len(self.reporter) > mistakes or len(parts) < len(numbers):
            return build.SCORE
        return self._written(build.solve(*parts), span)

    def substitute(self, root: Expr, old: Expr, new: Expr) -> Expr:
        """The expression with one node replaced by another; what is rebuilt keeps its spans."""
        moves = {old: new}
        for node in postorder(root):
            if node not in moves:
                moved = with_children(node, tuple(moves[child] for child in children(node)))
                if moved is not node:
                    self._written(moved, None)
                    self.origins.add(moved, *self.origins.of(node))
                moves[node] = moved
        return moves[root]

    def mask(self, value: Expr, span: Span | None = None) -> Expr:
        """A finished mask."""
        if value.dtype.is_bool:
            return value
        self.reporter.error(
            "mask-not-boolean",
            f"mask has type {value.dtype.value}, expected bool",
            span or self.origins.first(value),
            help="compare the positions, e.g. `kv_idx <= q_idx`",
        )
        return build.TRUE

    def score(self, value: Expr, span: Span | None = None, what: str = "score") -> Expr:
        """A finished score (or weight, or normalizer)."""
        if value.dtype.is_float:
            return value
        example = "write weights, e.g. `sigmoid(score)`"
        if what != "normalizer":
            example = f"return a changed {what}, e.g. `{what} * 2.0`"
        self.reporter.error(
            f"{what}-not-float",
            f"{what} has type {value.dtype.value}, expected f32",
            span or self.origins.first(value),
            help=f"{example}; a condition belongs in the mask",
        )
        return build.SCORE

    def _arithmetic(self, symbol: str, left: Expr, right: Expr, span: Span | None) -> Expr:
        numbers = self._numbers(symbol, (left, right), span)
        if numbers is None:
            return build.real(0.0)
        op = ARITHMETIC[symbol]
        if op is Op.DIV:
            numbers = tuple(map(self._float, numbers))
        if op in (Op.DIV, Op.FLOORDIV, Op.MOD) and isinstance(numbers[1], Const) and numbers[1].value == 0:
            self.reporter.error(
                "division-by-zero", f"`{symbol}` divides by a constant zero", self.origins.first(right) or span
            )
            return numbers[0]
        return self._apply(op, numbers, span)

    def _comparison(self, symbol: str, left: Expr, right: Expr, span: Span | None) -> Expr:
        if left.dtype.is_bool and right.dtype.is_bool and symbol in ("==", "!="):
            return self._apply(COMPARISON[symbol], (left, right), span)
        numbers = self._numbers(symbol, (left, right), span)
        return build.FALSE if numbers is None else self._apply(COMPARISON[symbol], numbers, span)

    def _logic(self, op: Op, symbol: str, operands: tuple[Expr, ...], span: Span | None) -> Expr:
        if all(operand.dtype.is_bool for operand in operands):
            return self._apply(op, operands, span)
        help_ = "compare the number with something, or write `bool(...)`"
        return self._mistyped(symbol, operands, "bool operands", build.FALSE, span, help_)

    def _bitwise(self, symbol: str, left: Expr, right: Expr, span: Span | None) -> Expr:
        logical, bits = BITWISE[symbol]
        if left.dtype.is_bool and right.dtype.is_bool:
            return self._apply(logical, (left, right), span)
        if left.dtype.is_int and right.dtype.is_int:
            return self._apply(bits, (left, right), span)
        help_ = f"`{symbol}` binds tighter than comparisons: put each comparison in parentheses"
        return self._mistyped(symbol, (left, right), "two bools or two integers", build.FALSE, span, help_)

    def _shift(self, symbol: str, left: Expr, right: Expr, span: Span | None) -> Expr:
        if not (left.dtype.is_int and right.dtype.is_int):
            return self._mistyped(symbol, (left, right), "two integers", build.integer(0), span)
        if isinstance(right, Const) and not 0 <= right.value < 64:
            message = f"`{symbol}` by {right.value}, expected 0 to 63"
            self.reporter.error("shift-out-of-range", message, self.origins.first(right) or span)
            return left
        return self._apply(SHIFT[symbol], (left, right), span)

    def _power(self, left: Expr, right: Expr, span: Span | None) -> Expr:
        numbers = self._numbers("**", (left, right), span)
        if numbers is None:
            return build.real(0.0)
        base, exponent = numbers
        if base.dtype.is_float:
            return self._apply(Op.POW, (base, exponent), span)
        if not (isinstance(exponent, Const) and 0 <= exponent.value <= MAX_POWER):
            self.reporter.error(
                "power-not-constant",
                f"an integer power needs a constant exponent from 0 to {MAX_POWER}",
                span,
                help="write `float(x) ** y`, or `1 << n` for a power of two",
            )
            return base
        result: Expr = build.integer(1)
        for step in range(int(exponent.value)):
            result = base if step == 0 else self._apply(Op.MUL, (result, base), span)
        return result

    def _function(self, op: Op, name: str, args: Sequence[Expr], span: Span | None) -> Expr:
        numbers = self._numbers(name, tuple(args), span)
        if numbers is None:
            return build.real(0.0)
        accepted = facts(op).operands
        if accepted == FLOAT:
            numbers = tuple(map(self._float, numbers))
        if numbers[0].dtype not in accepted:
            return self._mistyped(name, numbers, "an integer", build.integer(0), span)
        return self._apply(op, numbers, span)

    def _fold(self, op: Op, name: str, args: Sequence[Expr], span: Span | None) -> Expr:
        numbers = self._numbers(name, tuple(args), span)
        if numbers is None:
            return build.real(0.0)
        result = numbers[0]
        for number in numbers[1:]:
            result = self._apply(op, (result, number), span)
        return result

    def _numbers(self, what: str, operands: tuple[Expr, ...], span: Span | None) -> tuple[Expr, ...] | None:
        """Numbers of one type: bools refused (a captured bool tensor counts, as in torch), ints promoted."""
        numbers = tuple(self._bool_element(operand) for operand in operands)
        if any(number.dtype.is_bool for number in numbers):
            help_ = "write `int(...)` or `float(...)` to count a bool as 0 or 1, or `where(condition, a, b)`"
            self._mistyped(what, operands, "numbers", operands[0], span, help_)
            return None
        if any(number.dtype.is_float for number in numbers):
            return tuple(map(self._float, numbers))
        return numbers

    def _bool_element(self, operand: Expr) -> Expr:
        if isinstance(operand, Load) and operand.dtype.is_bool:
            return self.cast(Op.TO_INT, operand, self.origins.first(operand))
        return operand

    def _float(self, operand: Expr) -> Expr:
        return self.cast(Op.TO_FLOAT, operand, self.origins.first(operand))

    def _mistyped(
        self,
        what: str,
        operands: tuple[Expr, ...],
        wanted: str,
        placeholder: Expr,
        span: Span | None,
        help: str | None = None,
    ) -> Expr:
        got = " and ".join(operand.dtype.value for operand in operands)
        self.reporter.error("operand-type", f"`{what}` wants {wanted}, got {got}", span, help=help)
        return placeholder

    def _apply(self, op: Op, args: tuple[Expr, ...], span: Span | None) -> Apply:
        return self._written(build.apply(op, *args), span)

    def _written(self, node: E, span: Span | None) -> E:
        self.origins.add(node, span)
        depth = 1 + max((self._depth.get(child, 0) for child in children(node)), default=0)
        self._depth[node] = depth
        if depth > MAX_DEPTH:
            self.reporter.error(
                "program-too-deep",
                f"an expression is nested more than {MAX_DEPTH} operators deep",
                span,
                help="capture a table and index it instead of unrolling a long chain",
            )
            self.reporter.check()
        return node

"""Every operator and everything known about it: one row each, so that a new operator is one row and its tests.

`text` is the spelling in the language (infix, prefix or call), `binding` how tightly it binds there (Python's order,
larger is tighter). `torch` names a function of `attndsl.reference`'s namespace, `triton` is an expression in which
`{0}`, `{1}` stand for the operands and a name starting with `_` for a helper the emitted module defines;
`triton_int` is the spelling on integers where it differs. `cpp` and `cpp_int` are the same in C++, over the functions
of `codegen/templates/cpp_math.h`; `cpp_scalar` is for operands that are all one value and not a vector of lanes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from attndsl.ir.types import DType, Member


class Op(Member):
    ADD = auto()
    SUB = auto()
    MUL = auto()
    DIV = auto()
    FLOORDIV = auto()
    MOD = auto()
    POW = auto()
    NEG = auto()
    ABS = auto()
    MIN = auto()
    MAX = auto()
    LT = auto()
    LE = auto()
    GT = auto()
    GE = auto()
    EQ = auto()
    NE = auto()
    AND = auto()
    OR = auto()
    XOR = auto()
    NOT = auto()
    BIT_AND = auto()
    BIT_OR = auto()
    BIT_XOR = auto()
    BIT_NOT = auto()
    SHL = auto()
    SHR = auto()
    BIT_LENGTH = auto()
    WHERE = auto()
    EXP = auto()
    EXP2 = auto()
    LOG = auto()
    LOG2 = auto()
    SQRT = auto()
    RSQRT = auto()
    SIN = auto()
    COS = auto()
    TAN = auto()
    TANH = auto()
    SIGMOID = auto()
    SILU = auto()
    GELU = auto()
    ERF = auto()
    FLOOR = auto()
    CEIL = auto()
    ROUND = auto()
    TO_BOOL = auto()
    TO_INT = auto()
    TO_FLOAT = auto()


class Form(Enum):
    """How the language writes an operator."""

    INFIX = auto()
    PREFIX = auto()
    CALL = auto()


class Result(Enum):
    """The type of the result: that of the operands, or a fixed one."""

    SAME = auto()
    BOOL = auto()
    INT = auto()
    FLOAT = auto()


NUMBER = frozenset({DType.I64, DType.F32})
INT = frozenset({DType.I64})
FLOAT = frozenset({DType.F32})
BOOL = frozenset({DType.BOOL})
ANY = NUMBER | BOOL


@dataclass(frozen=True, slots=True)
class OpFacts:
    """One row of the table. `operands` are the accepted types, alike for all operands (for `WHERE`: the branches)."""

    text: str
    form: Form
    binding: int
    arity: int
    operands: frozenset[DType]
    result: Result
    torch: str
    triton: str
    exact: Callable[..., Any] | None = None
    triton_int: str | None = None
    commutative: bool = False
    cpp: str = ""
    cpp_int: str | None = None
    cpp_scalar: str | None = None


def _infix(text: str, binding: int, operands: frozenset[DType], result: Result, torch: str, **facts: Any) -> OpFacts:
    facts.setdefault("triton", f"{{0}} {text} {{1}}")
    facts.setdefault("cpp", f"{{0}} {text} {{1}}")
    return OpFacts(text, Form.INFIX, binding, 2, operands, result, torch, **facts)


def _prefix(text: str, binding: int, operands: frozenset[DType], torch: str, **facts: Any) -> OpFacts:
    facts.setdefault("cpp", facts["triton"])
    return OpFacts(text, Form.PREFIX, binding, 1, operands, Result.SAME, torch, **facts)


def _call(text: str, operands: frozenset[DType], triton: str, result: Result = Result.SAME, **facts: Any) -> OpFacts:
    arity = facts.pop("arity", 1)
    facts.setdefault("cpp", f"{text}({{0}})")
    return OpFacts(text, Form.CALL, 100, arity, operands, result, facts.pop("torch", text), triton, **facts)


def _compare(text: str, operands: frozenset[DType], torch: str, exact: Callable[..., Any]) -> OpFacts:
    return _infix(text, 40, operands, Result.BOOL, torch, exact=exact, commutative=text in ("==", "!="))


def _truncate(value: float) -> int:
    return math.trunc(value)


FACTS: dict[Op, OpFacts] = {
    Op.ADD: _infix("+", 80, NUMBER, Result.SAME, "add", exact=operator.add, commutative=True),
    Op.SUB: _infix("-", 80, NUMBER, Result.SAME, "sub", exact=operator.sub),
    Op.MUL: _infix("*", 90, NUMBER, Result.SAME, "mul", exact=operator.mul, commutative=True),
    Op.DIV: _infix("/", 90, FLOAT, Result.SAME, "true_divide", exact=operator.truediv),
    Op.FLOORDIV: _infix(
        "//",
        90,
        NUMBER,
        Result.SAME,
        "floor_divide",
        triton="_floordiv_float({0}, {1})",
        triton_int="_floordiv({0}, {1})",
        cpp="divided_down({0}, {1})",
        cpp_int="floor_divide({0}, {1})",
        exact=operator.floordiv,
    ),
    Op.MOD: _infix(
        "%",
        90,
        NUMBER,
        Result.SAME,
        "remainder",
        triton="_mod_float({0}, {1})",
        triton_int="_mod({0}, {1})",
        cpp="modulo({0}, {1})",
        cpp_int="floor_mod({0}, {1})",
        exact=operator.mod,
    ),
    Op.POW: _infix("**", 98, FLOAT, Result.SAME, "pow", triton="_pow({0}, {1})", cpp="pow({0}, {1})"),
    Op.NEG: _prefix("-", 95, NUMBER, "neg", triton="-{0}", exact=operator.neg),
    Op.ABS: _call("abs", NUMBER, "tl.abs({0})", exact=abs, cpp="fabs({0})", cpp_int="abs({0})"),
    Op.MIN: _call(
        "min",
        NUMBER,
        "_minimum({0}, {1})",
        triton_int="tl.minimum({0}, {1})",
        cpp="minimum({0}, {1})",
        cpp_int="min({0}, {1})",
        torch="minimum",
        arity=2,
        exact=min,
        commutative=True,
    ),
    Op.MAX: _call(
        "max",
        NUMBER,
        "_maximum({0}, {1})",
        triton_int="tl.maximum({0}, {1})",
        cpp="maximum({0}, {1})",
        cpp_int="max({0}, {1})",
        torch="maximum",
        arity=2,
        exact=max,
        commutative=True,
    ),
    Op.LT: _compare("<", NUMBER, "lt", operator.lt),
    Op.LE: _compare("<=", NUMBER, "le", operator.le),
    Op.GT: _compare(">", NUMBER, "gt", operator.gt),
    Op.GE: _compare(">=", NUMBER, "ge", operator.ge),
    Op.EQ: _compare("==", ANY, "eq", operator.eq),
    Op.NE: _compare("!=", ANY, "ne", operator.ne),
    Op.AND: _infix(
        "and",
        20,
        BOOL,
        Result.BOOL,
        "logical_and",
        triton="{0} & {1}",
        exact=operator.and_,
        cpp="{0} & {1}",
        cpp_scalar="{0} && {1}",
    ),
    Op.OR: _infix(
        "or",
        10,
        BOOL,
        Result.BOOL,
        "logical_or",
        triton="{0} | {1}",
        exact=operator.or_,
        cpp="{0} | {1}",
        cpp_scalar="{0} || {1}",
    ),
    Op.XOR: _infix("^", 55, BOOL, Result.BOOL, "logical_xor", exact=operator.xor, commutative=True),
    Op.NOT: _prefix("not", 30, BOOL, "logical_not", triton="~{0}", cpp="!{0}", exact=operator.not_),
    Op.BIT_AND: _infix("&", 60, INT, Result.SAME, "bitwise_and", exact=operator.and_, commutative=True),
    Op.BIT_OR: _infix("|", 50, INT, Result.SAME, "bitwise_or", exact=operator.or_, commutative=True),
    Op.BIT_XOR: _infix("^", 55, INT, Result.SAME, "bitwise_xor", exact=operator.xor, commutative=True),
    Op.BIT_NOT: _prefix("~", 95, INT, "bitwise_not", triton="~{0}", exact=operator.invert),
    Op.SHL: _infix("<<", 70, INT, Result.SAME, "bitwise_left_shift", exact=operator.lshift, cpp="shift_left({0}, {1})"),
    Op.SHR: _infix(
        ">>", 70, INT, Result.SAME, "bitwise_right_shift", exact=operator.rshift, cpp="shift_right({0}, {1})"
    ),
    Op.BIT_LENGTH: _call("bit_length", INT, "_bit_length({0})", exact=int.bit_length),
    Op.WHERE: _call(
        "where",
        ANY,
        "tl.where({0}, {1}, {2})",
        arity=3,
        exact=lambda cond, yes, no: yes if cond else no,
        cpp="select({0}, {1}, {2})",
        cpp_scalar="{0} ? {1} : {2}",
    ),
    Op.EXP: _call("exp", FLOAT, "tl.exp({0})"),
    Op.EXP2: _call("exp2", FLOAT, "tl.exp2({0})"),
    Op.LOG: _call("log", FLOAT, "tl.log({0})"),
    Op.LOG2: _call("log2", FLOAT, "tl.log2({0})"),
    Op.SQRT: _call("sqrt", FLOAT, "tl.sqrt_rn({0})"),
    Op.RSQRT: _call("rsqrt", FLOAT, "tl.rsqrt({0})"),
    Op.SIN: _call("sin", FLOAT, "tl.sin({0})"),
    Op.COS: _call("cos", FLOAT, "tl.cos({0})"),
    Op.TAN: _call("tan", FLOAT, "_tan({0})"),
    Op.TANH: _call("tanh", FLOAT, "_tanh({0})"),
    Op.SIGMOID: _call("sigmoid", FLOAT, "tl.sigmoid({0})"),
    Op.SILU: _call("silu", FLOAT, "_silu({0})"),
    Op.GELU: _call("gelu", FLOAT, "_gelu({0})"),
    Op.ERF: _call("erf", FLOAT, "tl.erf({0})"),
    Op.FLOOR: _call("floor", FLOAT, "tl.floor({0})"),
    Op.CEIL: _call("ceil", FLOAT, "tl.ceil({0})"),
    Op.ROUND: _call("round", FLOAT, "_round({0})"),
    Op.TO_BOOL: _call("bool", ANY, "{0} != 0", Result.BOOL, torch="to_bool", exact=bool, cpp="{0} != 0"),
    Op.TO_INT: _call("int", ANY, "{0}.to(INDEX)", Result.INT, torch="to_int", exact=_truncate, cpp="to_integer({0})"),
    Op.TO_FLOAT: _call(
        "float", ANY, "{0}.to(tl.float32)", Result.FLOAT, torch="to_float", exact=float, cpp="to_real({0})"
    ),
}


def facts(op: Op) -> OpFacts:
    """The row of an operator."""
    return FACTS[op]


CALLS: dict[str, Op] = {row.text: op for op, row in FACTS.items() if row.form is Form.CALL}

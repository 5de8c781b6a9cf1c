"""Expressions as C++: over one key and a vector of queries, so what varies along queries is a vector, the rest is not.

Brackets follow one rule: an operation inside another stands in brackets, except one that continues its left operand
(`a + b + c`) and a sign inside what is no sign (`a - -b`). Calls need none. The functions called are those of
`templates/cpp_math.h` and `templates/cpp_storage.h`.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.codegen.powers import small_exponent
from attndsl.codegen.triton_expr import LoadStyle
from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Const, Coord, Expr, Input, Load, Reduce, RowValue, Scalar, Solve
from attndsl.ir.ops import Op, facts
from attndsl.ir.types import Axis, DType

_SCALARS = {DType.BOOL: "bool", DType.I32: "integer", DType.I64: "integer", DType.F32: "real"}
_VECTORS = {DType.BOOL: "vbool", DType.I32: "vint", DType.I64: "vint", DType.F32: "vreal"}
_READS = {DType.BOOL: "bool", DType.I32: "integer", DType.I64: "integer", DType.F32: "real"}
_CHAINS = frozenset({"+", "-", "*", "&", "|", "^", "&&", "||"})
_SIGN = "sign"
_IN_SUMS = frozenset({None, _SIGN, "+", "-", "*", "/", "%"})
_CALL = re.compile(r"\w+\(")
_OPERATOR = re.compile(r"\{0\} (\S+) ")


@dataclass(frozen=True, slots=True)
class Text:
    """Printed text, and the operator where it lacks brackets it may need: `_SIGN` for a prefix."""

    text: str
    operator: str | None = None

    def inside(self, operator: str = "", first: bool = False) -> str:
        """As an operand of an operation; `first` is the left one of several."""
        continues = first and self.operator == operator and operator in _CHAINS
        is_sign = self.operator == _SIGN != operator
        return self.text if self.operator is None or continues or is_sign else f"({self.text})"


@dataclass(frozen=True, slots=True)
class CppPrinter:
    """Prints expressions over names. `symbols` are the identifiers of captured tensors by parameter.

    `real` is the type of floats, "float" or "double".
    """

    real: str
    names: Mapping[Expr, str]
    symbols: Mapping[str, str]
    cheap_division: frozenset[Expr] = frozenset()

    def text(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle) -> str:
        """The value of a statement: its operands by their names, itself written out."""
        return self._printed(node, names, loads, at_root=True).text

    def named(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle) -> str:
        """One expression, by its name where it has one."""
        return self._printed(node, names, loads).text

    def summand(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle) -> str:
        """The same where a sum goes on after it: in brackets if it binds less tightly."""
        printed = self._printed(node, names, loads)
        return printed.text if printed.operator in _IN_SUMS else f"({printed.text})"

    def type_of(self, node: Expr) -> str:
        """The C++ type of an expression."""
        return (_VECTORS if _is_vector(node) else _SCALARS)[node.dtype]

    def _printed(self, node: Expr, names: Mapping[Expr, str], loads: LoadStyle, at_root: bool = False) -> Text:
        name = None if at_root else names.get(node, self.names.get(node))
        if name is not None:
            return Text(name)
        match node:
            case Const():
                return self._constant(node)
            case Load():
                return Text(self._load(node, names, loads))
            case Apply():
                return self._operation(node, [self._printed(arg, names, loads) for arg in node.args])
            case Coord() | Input() | Scalar() | Reduce() | Solve() | RowValue():
                raise VerifyError(f"{node} has no name in the kernel")

    def _constant(self, node: Const) -> Text:
        match node.value:
            case bool(value):
                return Text("true" if value else "false")
            case int(value) if value == -(2**63):
                return Text(f"{value + 1} - 1", "-")
            case int(value):
                return Text(str(value), _SIGN if value < 0 else None)
            case value:
                return self._float(value)

    def _float(self, value: float) -> Text:
        if math.isnan(value):
            return Text("NAN")
        sign = "-" if math.copysign(1.0, value) < 0 else ""
        size = "INF" if self._is_infinite(value) else f"{abs(value)!r}{'f' if self.real == 'float' else ''}"
        return Text(f"{sign}{size}", _SIGN if sign else None)

    def _is_infinite(self, value: float) -> bool:
        try:
            struct.pack("<f" if self.real == "float" else "<d", value)
        except OverflowError:
            return True
        return math.isinf(value)

    def _operation(self, node: Apply, operands: list[Text]) -> Text:
        power = _shifted_by(node)
        if power is not None:
            spelling = "{0} >> {1}" if node.op is Op.FLOORDIV else "{0} & {1}"
            operands = [operands[0], Text(str(power if node.op is Op.FLOORDIV else (1 << power) - 1))]
        else:
            spelling = self._spelling(node)
        if node.op is Op.WHERE and _is_vector(node.args[0]) and not _is_vector(node.args[1]):
            # Functions over lanes are found by what they choose from.
            operands[1] = Text(f"{_VECTORS[node.dtype]}({operands[1].text})")
        if _CALL.match(spelling):
            return Text(spelling.format(*(operand.text for operand in operands)))
        found = _OPERATOR.match(spelling)
        operator = _SIGN if found is None else found[1]
        parts = (operand.inside(operator, place == 0) for place, operand in enumerate(operands))
        return Text(spelling.format(*parts), operator)

    def _spelling(self, node: Apply) -> str:
        row, exponent = facts(node.op), small_exponent(node)
        if exponent is not None:
            return f"pow_{exponent}({{0}})"
        scalar = not any(map(_is_vector, node.args[:1] if node.op is Op.WHERE else node.args))
        if scalar and row.cpp_scalar is not None:
            return row.cpp_scalar
        if node in self.cheap_division and scalar:
            return f"{{0}} {'/' if node.op is Op.FLOORDIV else '%'} {{1}}"
        return row.cpp_int if row.cpp_int is not None and node.args[-1].dtype.is_int else row.cpp

    def _load(self, node: Load, names: Mapping[Expr, str], loads: LoadStyle) -> str:
        clamp = loads.clamped and node not in loads.unclamped
        tensor = self.symbols[node.tensor]
        fixed: list[str] = []
        moving: list[str] = []
        for axis, index in enumerate(node.indices):
            place = self._printed(index, names, loads)
            if clamp:
                place = Text(f"clamped({place.text}, size_{tensor}_{axis})")
            if _is_vector(index):
                moving.append(f"{place.text}, stride_{tensor}_{axis}")
            else:
                fixed.append(f"{place.inside()} * stride_{tensor}_{axis}")
        kind = _READS[node.dtype]
        if not moving:
            return f"to_{kind}({tensor}[{' + '.join(fixed) or '0'}])"
        return f"{kind}s_{_way(node)}({' + '.join([tensor, *fixed])}, {', '.join(moving)})"


def _is_vector(node: Expr) -> bool:
    """Whether an expression varies along the lanes, which are queries."""
    return Axis.Q in axes_of(node)


def _way(node: Load) -> str:
    """How a read moves along the lanes: by one up or down along a single dimension, or anyhow."""
    moving = [index for index in node.indices if _is_vector(index)]
    return {1: "along", -1: "against", 0: "at"}[_step(moving[0]) if len(moving) == 1 else 0]


def _step(index: Expr) -> int:
    """By how much an index rises from one query to the next, where that is 1 or -1; else 0."""
    match index:
        case Apply(op=Op.ADD, args=(left, right)) if not _is_vector(right):
            return _step(left)
        case Apply(op=Op.ADD, args=(left, right)) if not _is_vector(left):
            return _step(right)
        case Apply(op=Op.SUB, args=(left, right)) if not _is_vector(right):
            return _step(left)
        case Apply(op=Op.SUB, args=(left, right)) if not _is_vector(left):
            return -_step(right)
        case Apply(op=Op.NEG, args=(only,)):
            return -_step(only)
        case _:
            return int(index is build.Q)


def _shifted_by(node: Apply) -> int | None:
    """The exponent of a divisor that is a power of two: dividing by it, rounded down, is a shift whatever the sign."""
    match node:
        case Apply(op=Op.FLOORDIV | Op.MOD, args=(_, Const(value=int(value)))) if (
            value > 0 and value & (value - 1) == 0
        ):
            return value.bit_length() - 1
        case _:
            return None

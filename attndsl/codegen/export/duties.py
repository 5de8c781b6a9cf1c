"""What an exported file looks at before a kernel runs: what a variant asks of calls, reads in bounds, divisors not 0.

In: a program, and what its parameters are called. Out: the conditions in torch, and what to say where one fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attndsl.analysis.obligations import Kind, Obligation, obligations
from attndsl.codegen.export.text import Body, Values, body, quoted
from attndsl.ir import build
from attndsl.ir.nodes import Const, Expr, Load, Scalar, postorder
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_expr
from attndsl.ir.requirement import Requirement
from attndsl.ir.types import DType
from attndsl.ir.variant import Variant


@dataclass(frozen=True, slots=True)
class DutiesText:
    """What must hold of a call's reads and divisions; `are_numbers` where lengths, scalars and sizes decide it."""

    messages: tuple[str, ...]
    anywhere: Body
    reached: Body
    are_numbers: bool


@dataclass(frozen=True, slots=True)
class RequirementsText:
    lines: tuple[str, ...]
    results: tuple[tuple[str, str], ...]


def requirements_text(requirements: Sequence[Requirement], symbols: Mapping[str, str]) -> RequirementsText | None:
    """What a variant asks of calls; nothing where it asks nothing."""
    if not requirements:
        return None
    found = body([one.condition for one in requirements], symbols)
    messages = (quoted(one.message) for one in requirements)
    return RequirementsText(found.lines, tuple(zip(messages, found.results, strict=True)))


def duties_text(program: Variant, symbols: Mapping[str, str]) -> DutiesText | None:
    """What the host must look at; nothing where every read and division holds by itself."""
    shapes = {param.name: (0,) * param.rank for param in program.tensors}
    duties = [duty for duty in obligations(program, shapes) if not _holds_by_itself(duty)]
    if not duties:
        return None
    broken = [_violation(duty) for duty in duties]
    reached = [_and(_reached(duty), violation) for duty, violation in zip(duties, broken, strict=True)]
    sizes = _sizes(duties, symbols)
    are_numbers = not any(isinstance(node, Load) for node in postorder(*reached))
    messages = tuple(quoted(_message(duty)) for duty in duties)
    return DutiesText(messages, _sized(broken, sizes, symbols), _sized(reached, sizes, symbols), are_numbers)


def _sizes(duties: Sequence[Obligation], symbols: Mapping[str, str]) -> dict[Expr, str]:
    """The sizes of tensors that duties read, as torch has them."""
    return {
        _size_leaf(duty.node.tensor, duty.dimension): f"{symbols[duty.node.tensor]}.shape[{duty.dimension}]"
        for duty in duties
        if isinstance(duty.node, Load)
    }


def _sized(roots: Sequence[Expr], sizes: Mapping[Expr, str], symbols: Mapping[str, str]) -> Body:
    """Values that read sizes of tensors."""
    values = Values(symbols)
    used = [leaf for leaf in postorder(*roots) if leaf in sizes]
    for tensor in dict.fromkeys(sizes[leaf].partition(".")[0] for leaf in used):
        values.read(tensor)
    for leaf in used:
        values.name(leaf, sizes[leaf])
    results = values.texts(*roots, short=True)
    return Body(tuple(values.lines), results)


def _holds_by_itself(duty: Obligation) -> bool:
    """Whether the operand is a number that is in range."""
    if not isinstance(duty.operand, Const) or duty.kind is Kind.INDEX:
        return False
    value = int(duty.operand.value)
    return value != 0 if duty.kind is Kind.DIVISOR else 0 <= value < 64


def _size_leaf(tensor: str, dimension: int) -> Scalar:
    """What stands for the size of a tensor."""
    return build.scalar(f"size {tensor} {dimension}", DType.I64)


def _violation(duty: Obligation) -> Expr:
    """True where a duty is broken."""
    if duty.kind is not Kind.INDEX:
        return duty.violation
    assert isinstance(duty.node, Load)
    below = build.apply(Op.LT, duty.operand, build.integer(0))
    above = build.apply(Op.GE, duty.operand, _size_leaf(duty.node.tensor, duty.dimension))
    return build.disjunction([below, above])


def _reached(duty: Obligation) -> Expr:
    """True where the pair is live and the branch is taken."""
    ways = [build.conjunction(list(guards)) if guards else build.TRUE for guards in duty.reached]
    return build.disjunction(ways)


def _and(left: Expr, right: Expr) -> Expr:
    return right if left is build.TRUE else build.apply(Op.AND, left, right)


def _message(duty: Obligation) -> str:
    operand, node = print_expr(duty.operand), print_expr(duty.node)
    match duty.kind:
        case Kind.DIVISOR:
            return f"`{node}` divides by zero"
        case Kind.SHIFT:
            return f"`{node}` shifts by `{operand}`, not 0 to 63"
    assert isinstance(duty.node, Load)
    where = f"index `{operand}` of `{duty.node.tensor}` leaves dimension {duty.dimension}"
    return f"{where} at a live pair: pass a larger tensor, mask the pair, or clamp the index"

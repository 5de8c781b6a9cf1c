"""The rules every program keeps between passes.

In: a variant and the name of what produced it. Out: nothing, or a `VerifyError` that names the producer, lists every
broken rule and prints the program with the offending nodes marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.binding import open_nodes, varies_along_keys
from attndsl.ir.nodes import Apply, Const, Coord, Expr, Input, Load, Reduce, RowValue, Scalar, Solve, children, intern
from attndsl.ir.requirement import Requirement, strangers
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import DType, Flow
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant

INT64 = range(-(2**63), 2**63)
CONSTANTS: dict[DType, type] = {DType.BOOL: bool, DType.I64: int, DType.F32: float}


@dataclass(frozen=True, slots=True)
class Stage:
    """What one of the four expressions may be made of."""

    name: str
    dtype: DType
    flow: Flow | None
    reduces: bool


STAGES = (
    Stage("score", DType.F32, Flow.SCORE, reduces=False),
    Stage("mask", DType.BOOL, None, reduces=False),
    Stage("normalizer", DType.F32, Flow.SCORE, reduces=True),
    Stage("weight", DType.F32, Flow.WEIGHT, reduces=False),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken rule, and the node that breaks it where there is one."""

    message: str
    node: Expr | None = None


def verify(variant: Variant, after: str) -> None:
    """Raise if the variant breaks a rule of the IR; `after` names the pass or front end that made it."""
    faults = [*_param_faults(variant.params)]
    params = {param.name: param for param in variant.params}
    for node in postorder(*variant.roots, *(requirement.condition for requirement in variant.requirements)):
        faults.extend(_node_faults(node, params))
    for requirement in variant.requirements:
        faults.extend(_requirement_faults(requirement))
    for stage, root in zip(STAGES, variant.roots, strict=True):
        faults.extend(_stage_faults(stage, root))
    if faults:
        raise VerifyError(_report(variant, after, faults))


def _param_faults(params: tuple[Param, ...]) -> Iterator[Fault]:
    for name, count in Counter(param.name for param in params).items():
        if count > 1:
            yield Fault(f"{count} parameters are named `{name}`")
    for param in params:
        match param:
            case ScalarParam(dtype=dtype) if dtype not in (DType.I64, DType.F32):
                yield Fault(f"scalar `{param.name}` has type {dtype.value}, expected i64 or f32")
            case ScalarParam(dtype=dtype, default=default) if default is not None:
                if type(default) not in (int, CONSTANTS[dtype]):
                    yield Fault(f"the default of `{param.name}` is {default!r}, expected {dtype.word}")
            case TensorParam(dtype=dtype) if dtype not in CONSTANTS:
                yield Fault(f"tensor `{param.name}` has type {dtype.value}, expected bool, i64 or f32")


def _node_faults(node: Expr, params: dict[str, Param]) -> Iterator[Fault]:
    try:
        if _rebuilt(node) is not node:
            yield Fault("the node is not the one `ir.build` makes of its fields", node)
    except VerifyError as error:
        yield Fault(str(error), node)
    match node:
        case Const(value=value, dtype=DType.I64) if value not in INT64:
            yield Fault(f"constant {value} does not fit in 64 bits", node)
        case Const(value=value, dtype=dtype) if type(value) is not CONSTANTS.get(dtype):
            yield Fault(f"constant {value!r} is typed {dtype.value}", node)
        case Scalar(name=name, dtype=dtype):
            yield from _scalar_faults(node, params.get(name), dtype)
        case Load(tensor=name, dtype=dtype):
            yield from _load_faults(node, params.get(name), dtype)


def _rebuilt(node: Expr) -> Expr:
    """The node the typed constructors make of the same fields: the very same one, for a legal node."""
    match node:
        case Const(value=value, dtype=dtype):
            return intern(Const, value, dtype)
        case Coord(coordinate=coordinate):
            return build.coord(coordinate)
        case Input(flow=flow):
            return intern(Input, flow)
        case Scalar(name=name, dtype=dtype):
            return build.scalar(name, dtype)
        case Load(tensor=tensor, indices=indices, dtype=dtype):
            return build.load(tensor, indices, dtype)
        case Apply(op=op, args=args):
            return build.apply(op, *args)
        case Reduce(reduction=reduction, arg=arg):
            return build.row(reduction, arg)
        case Solve(body=body, total=total, lower=lower, upper=upper):
            return build.solve(body, total, lower, upper)
        case RowValue(name=name):
            return build.row_value(name)


def _scalar_faults(node: Scalar, param: Param | None, dtype: DType) -> Iterator[Fault]:
    if not isinstance(param, ScalarParam):
        yield Fault(f"`{node.name}` is not declared as a scalar", node)
    elif param.dtype is not dtype:
        yield Fault(f"scalar `{node.name}` is declared {param.dtype.value} and used as {dtype.value}", node)


def _load_faults(node: Load, param: Param | None, dtype: DType) -> Iterator[Fault]:
    if not isinstance(param, TensorParam):
        yield Fault(f"`{node.tensor}` is not declared as a tensor", node)
        return
    if param.dtype is not dtype:
        yield Fault(f"tensor `{node.tensor}` is declared {param.dtype.value} and used as {dtype.value}", node)
    if param.rank != len(node.indices):
        yield Fault(f"tensor `{node.tensor}` has {param.rank} dimension(s) and {len(node.indices)} index(es)", node)


def _stage_faults(stage: Stage, root: Expr) -> Iterator[Fault]:
    if root.dtype is not stage.dtype:
        yield Fault(f"the {stage.name} has type {root.dtype.value}, expected {stage.dtype.value}", root)
    for node in postorder(root):
        match node:
            case Input(flow=flow) if flow is not stage.flow and flow is not Flow.THRESHOLD:
                yield Fault(f"the {stage.name} reads the {flow.value}", node)
            case Reduce() | Solve() if not stage.reduces:
                yield Fault(f"the {stage.name} contains {_head(node)}", node)
            case Solve():
                yield from _solve_faults(node)
            case RowValue(name=name):
                yield Fault(f"the {stage.name} reads `{name}`, which only derivations write", node)
    free = open_nodes(root)
    if root in free:
        yield Fault(f"the {stage.name} reads a threshold outside of a row_solve", root)
    for node in free:
        if isinstance(node, Reduce):
            yield Fault(f"{_head(node)} of a threshold", node)


def _solve_faults(node: Solve) -> Iterator[Fault]:
    if node.body not in open_nodes(node.body):
        yield Fault("the body of row_solve does not read its threshold", node.body)
    for name, part in (("total", node.total), ("lower", node.lower), ("upper", node.upper)):
        if varies_along_keys(part):
            yield Fault(f"the {name} of row_solve is not one value to a row", part)


def _requirement_faults(requirement: Requirement) -> Iterator[Fault]:
    condition = requirement.condition
    if not condition.dtype.is_bool:
        yield Fault(f"a requirement has type {condition.dtype.value}, expected bool", condition)
    for leaf in strangers(condition):
        yield Fault(f"a requirement reads {_head(leaf)}", leaf)


def _report(variant: Variant, after: str, faults: list[Fault]) -> str:
    marked = {fault.node: fault.message for fault in reversed(faults) if fault.node is not None}
    lines = [f"`{variant.name}` breaks {len(faults)} rule(s) of the IR after `{after}`"]
    lines.extend(f"  {fault.message}" for fault in faults)
    return "\n".join([*lines, *_marked_text(variant, marked)])


def _marked_text(variant: Variant, marked: dict[Expr, str]) -> list[str]:
    """The program in the language with carets under the marked nodes, or its nodes where it cannot be written so."""
    from attndsl.ir.printer import print_expr, print_variant

    try:
        lines = print_variant(variant).splitlines()
        fragments = [print_expr(node) for node in marked]
    except Exception:  # the printer may fail in any way on a program that breaks the rules
        return _marked_nodes(variant, marked)
    if any(all(fragment not in line for line in lines) for fragment in fragments):
        return _marked_nodes(variant, marked)
    for fragment in fragments:
        at = next(index for index, line in enumerate(lines) if fragment in line)
        lines.insert(at + 1, " " * lines[at].index(fragment) + "^" * len(fragment))
    return lines


def _marked_nodes(variant: Variant, marked: dict[Expr, str]) -> list[str]:
    """One line for each node, its operands by number, the marked ones with what is wrong with them."""
    numbers: dict[Expr, int] = {}
    lines = []
    for node in postorder(*variant.roots):
        numbers[node] = len(numbers)
        operands = ", ".join(f"%{numbers[child]}" for child in children(node))
        note = f"    <-- {marked[node]}" if node in marked else ""
        lines.append(f"  %{numbers[node]}: {node.dtype.value} = {_head(node)}({operands}){note}")
    for stage, root in zip(STAGES, variant.roots, strict=True):
        lines.append(f"  {stage.name} %{numbers[root]}")
    return lines


def _head(node: Expr) -> str:
    match node:
        case Const(value=value):
            return f"const {value!r}"
        case Coord(coordinate=coordinate):
            return coordinate.value
        case Input(flow=flow):
            return flow.value
        case Scalar(name=name):
            return f"scalar {name}"
        case Load(tensor=tensor):
            return f"load {tensor}"
        case Apply(op=op):
            return op.name.lower()
        case Reduce(reduction=reduction):
            return reduction.value
        case Solve():
            return "row_solve"
        case RowValue(name=name):
            return f"row value {name}"

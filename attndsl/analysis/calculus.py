"""Derivatives of expressions, by reverse mode on the shared graph.

In: an expression and the gradient of its value. Out: the gradient of each node asked about, as expressions that reuse
what the forward computes.

A branch that is not taken contributes exactly 0, whatever its values and slopes are there: selecting the gradient on
its way in would not do, since 0 times an infinite slope is NaN. So the conditions of branches (and of `min`, `max`,
`abs`) travel beside the gradient and select once, at the end of the way: the `Flow` of a node has a value that holds
where its gate does and may be anything elsewhere. Where flows of different gates meet, each is selected by what it does
not share with the others, and the gate of the sum is that any of them is open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from attndsl.analysis.arithmetic import ZERO, add, select, total
from attndsl.analysis.derivatives import RULES, Literal
from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Reduce, Solve, children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder

Gate = tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """A gradient: `value` where all of the gate's literals hold, 0 elsewhere."""

    gate: Gate
    value: Expr


def cotangents(root: Expr, seed: Expr, wrt: Iterable[Expr]) -> dict[Expr, Expr]:
    """The gradients of the nodes in `wrt`, each taken for a leaf, when that of the root is `seed`.

    Integers, bools, and nodes the root does not depend on have gradient 0: the constant.
    """
    return pull({root: seed}, wrt)


def pull(seeds: Mapping[Expr, Expr], wrt: Iterable[Expr]) -> dict[Expr, Expr]:
    """The gradients of the nodes in `wrt` when several expressions have gradients: those of the sum of products."""
    leaves = tuple(dict.fromkeys(wrt))
    order = list(postorder(*seeds))
    active = _depending(order, frozenset(leaves))
    arrived: dict[Expr, list[Flow]] = {root: [Flow((), seed)] for root, seed in seeds.items() if seed is not ZERO}
    for node in reversed(order):
        if node in arrived and node in active and node not in leaves:
            flow = joined(arrived.pop(node))
            for operand, part in _through(node, flow, active):
                arrived.setdefault(operand, []).append(part)
    return {leaf: _selected(joined(arrived[leaf])) if leaf in arrived else ZERO for leaf in leaves}


def _depending(order: Sequence[Expr], leaves: frozenset[Expr]) -> set[Expr]:
    """The floats through which the leaves are reached."""
    active: set[Expr] = set()
    for node in order:
        if node.dtype.is_float and (node in leaves or any(child in active for child in children(node))):
            active.add(node)
    return active


def _through(node: Expr, flow: Flow, active: set[Expr]) -> Iterable[tuple[Expr, Flow]]:
    """What flows on to the operands of a node."""
    match node:
        case Apply(op=op, args=args):
            for operand, partial in zip(args, RULES[op], strict=True):
                if partial is not None and operand in active:
                    gate = tuple(dict.fromkeys((*flow.gate, *partial.gate(node))))
                    yield operand, Flow(gate, partial.back(flow.value, node))
        case Reduce() | Solve():
            raise VerifyError(f"a row statistic has no derivative pair by pair: {node}")


def joined(flows: list[Flow]) -> Flow:
    """The sum of gradients, as one."""
    flows = _by_gate(flows)
    while len(flows) > 1:
        pair = next(((x, y) for x, y in combinations(flows, 2) if _opposed(x, y) is not None), None)
        if pair is None:
            return _sum(flows)
        flows = _by_gate([_either(*pair), *(flow for flow in flows if flow not in pair)])
    return flows[0]


def _by_gate(flows: list[Flow]) -> list[Flow]:
    """Flows through the same gate are added."""
    found: dict[frozenset[Literal], Flow] = {}
    for flow in flows:
        key = frozenset(flow.gate)
        found[key] = flow if key not in found else Flow(found[key].gate, add(found[key].value, flow.value))
    return list(found.values())


def _opposed(left: Flow, right: Flow) -> Expr | None:
    """The condition that must hold on one side and fail on the other, where all else is shared."""
    differing = set(left.gate) ^ set(right.gate)
    conditions = {condition for condition, _ in differing}
    return conditions.pop() if len(differing) == 2 and len(conditions) == 1 else None


def _either(left: Flow, right: Flow) -> Flow:
    condition = _opposed(left, right)
    assert condition is not None
    yes, no = (left, right) if (condition, True) in left.gate else (right, left)
    shared = tuple(literal for literal in yes.gate if literal[0] is not condition)
    return Flow(shared, select(condition, yes.value, no.value))


def _sum(flows: list[Flow]) -> Flow:
    shared = tuple(literal for literal in flows[0].gate if all(literal in flow.gate for flow in flows))
    rests = [tuple(literal for literal in flow.gate if literal not in shared) for flow in flows]
    value = total(_selected(Flow(rest, flow.value)) for rest, flow in zip(rests, flows, strict=True))
    if all(rests):
        return Flow((*shared, (build.disjunction([_conjunction(rest) for rest in rests]), True)), value)
    return Flow(shared, value)


def _selected(flow: Flow) -> Expr:
    match flow.gate:
        case ():
            return flow.value
        case ((condition, holds),):
            return select(condition, flow.value, ZERO) if holds else select(condition, ZERO, flow.value)
        case gate:
            return select(_conjunction(gate), flow.value, ZERO)


def _conjunction(gate: Gate) -> Expr:
    return build.conjunction([condition if holds else build.apply(Op.NOT, condition) for condition, holds in gate])

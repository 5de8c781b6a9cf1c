"""Derivatives against autograd: of every operator, of random expressions, and where slopes are infinite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compare import assert_rows_close
from expressions import Scope, real
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import shapes
from torch import Tensor

from attndsl.analysis import derivatives
from attndsl.analysis.calculus import cotangents
from attndsl.dense import Env, environment, evaluate, evaluate_all
from attndsl.diagnostics import VerifyError
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Load, postorder
from attndsl.ir.ops import FACTS, Op, Result
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import Variant

X, Y, G = build.row_value("x"), build.row_value("y"), build.row_value("g")
FLOAT_OPS = tuple(
    op for op, row in FACTS.items() if DType.F32 in row.operands and row.result in (Result.SAME, Result.FLOAT)
)
POINTS = torch.tensor([-2.5, -1.0, -0.75, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.25], dtype=torch.float64)


def derived(root: Expr, leaves: dict[Expr, Tensor], seed: Tensor) -> list[Tensor]:
    """The gradients the calculus finds."""
    env = Env({**{leaf: value.detach() for leaf, value in leaves.items()}, G: seed}, dtype=torch.float64)
    found = cotangents(root, G, leaves)
    return [value.expand(seed.shape) for value in evaluate_all(tuple(found.values()), env)]


def expected(root: Expr, leaves: dict[Expr, Tensor], seed: Tensor) -> list[Tensor]:
    """The gradients autograd finds of the dense meaning."""
    inputs = {leaf: value.detach().requires_grad_() for leaf, value in leaves.items()}
    value = evaluate(root, Env(inputs, dtype=torch.float64))
    if not value.requires_grad:
        return [torch.zeros_like(seed) for _ in leaves]
    gradients = torch.autograd.grad(value, list(inputs.values()), seed.expand(value.shape), allow_unused=True)
    return [torch.zeros_like(seed) if found is None else found for found in gradients]


def operands(op: Op) -> tuple[Expr, dict[Expr, Tensor]]:
    """The operator on its own arguments, and points on a grid (ties, zeros and negative numbers among them)."""
    left, right = (axis.reshape(1, 1, 1, -1).contiguous() for axis in torch.meshgrid(POINTS, POINTS, indexing="ij"))
    if op is Op.WHERE:
        return build.apply(op, build.apply(Op.LT, X, build.real(0.5)), X, Y), {X: left, Y: right}
    leaves = {X: left, Y: right} if FACTS[op].arity == 2 else {X: left}
    return build.apply(op, *leaves), leaves


def test_every_operator_on_floats_has_a_row_with_an_entry_for_each_operand() -> None:
    assert set(derivatives.RULES) == set(FLOAT_OPS)
    assert all(len(row) == FACTS[op].arity for op, row in derivatives.RULES.items())


def agrees(op: Op) -> bool:
    """Whether a row is that of its operator."""
    root, leaves = operands(op)
    seed = torch.linspace(0.5, 2.0, next(iter(leaves.values())).numel(), dtype=torch.float64).reshape(1, 1, 1, -1)
    return all(
        torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12, equal_nan=True)
        for ours, theirs in zip(derived(root, leaves, seed), expected(root, leaves, seed), strict=True)
    )


@pytest.mark.parametrize("op", FLOAT_OPS, ids=lambda op: op.name.lower())
def test_a_row_agrees_with_autograd(op: Op) -> None:
    assert agrees(op)


def _negated(partial: derivatives.Partial) -> derivatives.Partial:
    return replace(partial, back=lambda g, node: build.apply(Op.NEG, partial.back(g, node)))


def _scaled(partial: derivatives.Partial) -> derivatives.Partial:
    return replace(partial, back=lambda g, node: build.apply(Op.MUL, build.real(1.01), partial.back(g, node)))


def _at_other_operands(partial: derivatives.Partial) -> derivatives.Partial:
    def swapped(node: Apply) -> Apply:
        args = node.args if node.op is not Op.WHERE else node.args[1:]
        moved = tuple(reversed(args)) if len(args) > 1 else (build.apply(Op.ADD, args[0], build.real(0.125)),)
        return build.apply(node.op, *((node.args[0],) if node.op is Op.WHERE else ()), *moved)

    return derivatives.Partial(lambda g, node: partial.back(g, swapped(node)), lambda node: partial.gate(swapped(node)))


def _ungated(partial: derivatives.Partial) -> derivatives.Partial:
    return derivatives.Partial(partial.back)


CONSTANT = {(op, index) for op in (Op.ADD, Op.SUB, Op.NEG, Op.TO_FLOAT, Op.WHERE) for index in range(3)} | {(Op.MOD, 0)}
"""Operands by which the slope does not depend on where it is taken."""
GATED = {Op.ABS, Op.MIN, Op.MAX, Op.WHERE, Op.POW}

FAULTS = [
    (fault, op, index)
    for op, row in derivatives.RULES.items()
    for index, partial in enumerate(row)
    if partial is not None
    for fault in (_negated, _scaled, _at_other_operands, _ungated)
    if not (fault is _at_other_operands and (op, index) in CONSTANT) and not (fault is _ungated and op not in GATED)
]


@pytest.mark.parametrize("fault, op, index", FAULTS, ids=lambda part: getattr(part, "__name__", None) or str(part))
def test_a_fault_in_a_row_is_found(fault, op: Op, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    row = list(derivatives.RULES[op])
    row[index] = fault(row[index])
    monkeypatch.setitem(derivatives.RULES, op, tuple(row))
    assert not agrees(op)


def test_a_slope_where_there_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in (Op.FLOOR, Op.CEIL, Op.ROUND):
        monkeypatch.setitem(derivatives.RULES, op, (derivatives.Partial(lambda g, node: g),))
        assert not agrees(op)


@st.composite
def programs(draw):
    """An expression over the score and captured floats, and a call."""
    scope = Scope(draw, draw(shapes(2, max_length=17)))
    root = real(scope, 4, build.SCORE)[0]
    scope.builder.reporter.check()
    return scope, root


@settings(max_examples=150)
@given(programs())
def test_random_expressions_agree_with_autograd(program) -> None:
    scope, root = program
    shape = scope.shape
    variant = Variant("random", tuple(scope.params), build.SCORE, build.TRUE, build.SCORE, build.WEIGHT)
    size = (shape.batch, shape.q_heads, shape.q_len, shape.kv_len)
    env = environment(
        variant,
        scope.values,
        batch=shape.batch,
        heads=shape.q_heads,
        q_len=shape.q_len,
        kv_len=shape.kv_len,
        dtype=torch.float64,
    )
    generator = torch.Generator().manual_seed(1)
    score, seed = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    loads = [node for node in postorder(root) if isinstance(node, Load) and node.dtype.is_float]
    known = {build.SCORE: score, **{load: evaluate(load, env).expand(size) for load in loads}}
    leaves = {leaf: value.clone() for leaf, value in known.items()}

    inputs = {leaf: value.clone().requires_grad_() for leaf, value in leaves.items()}
    value = evaluate(root, replace(env, leaves={**env.leaves, **inputs})).expand(size)
    found = cotangents(root, G, leaves)
    ours = evaluate_all(tuple(found.values()), replace(env, leaves={**env.leaves, **leaves, G: seed}))
    if not value.requires_grad:
        assert not any(map(torch.any, ours))
        return
    theirs = torch.autograd.grad(value, list(inputs.values()), seed, allow_unused=True)
    for leaf, actual, gradient in zip(leaves, ours, theirs, strict=True):
        gradient = torch.zeros(size, dtype=torch.float64) if gradient is None else gradient
        assert_rows_close(actual.expand(size), gradient, 1e-10, f"{leaf}")


def apply(op: Op, *args: Expr | float) -> Expr:
    return build.apply(op, *(build.real(arg) if isinstance(arg, float) else arg for arg in args))


POISONED = {
    "log": apply(Op.LOG, X),
    "quotient": apply(Op.DIV, 1.0, X),
    "root": apply(Op.SQRT, X),
    "root of root": apply(Op.SQRT, apply(Op.SQRT, apply(Op.ABS, X))),
    "overflow": apply(Op.EXP, apply(Op.MUL, apply(Op.DIV, 1.0, apply(Op.ABS, X)), 1000.0)),
}


@pytest.mark.parametrize("name", POISONED)
def test_a_branch_that_is_not_taken_leaks_nothing(name: str) -> None:
    positive = apply(Op.GT, X, 0.5)
    second = apply(Op.GT, X, 1.0)
    poisoned = POISONED[name]
    for root in (
        apply(Op.WHERE, positive, poisoned, Y),
        # The same node behind two gates that are both closed at 0.
        apply(Op.ADD, apply(Op.WHERE, positive, poisoned, Y), apply(Op.WHERE, second, apply(Op.MUL, poisoned, X), X)),
        apply(Op.WHERE, positive, apply(Op.WHERE, second, poisoned, apply(Op.MUL, poisoned, poisoned)), X),
    ):
        leaves = {X: torch.tensor([0.0, 0.75, 2.0]).double(), Y: torch.ones(3).double()}
        seed = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
        for ours, theirs in zip(derived(root, leaves, seed), expected(root, leaves, seed), strict=True):
            assert torch.allclose(ours, theirs, equal_nan=True)
            assert ours[0].isfinite()


def test_results_are_reused_and_what_does_nothing_is_left_out() -> None:
    tanh = apply(Op.TANH, X)
    assert cotangents(tanh, G, [X])[X] is apply(Op.MUL, G, apply(Op.SUB, 1.0, apply(Op.MUL, tanh, tanh)))
    exp = apply(Op.EXP, apply(Op.NEG, apply(Op.SUB, Y, X)))
    assert cotangents(exp, G, [X, Y]) == {X: apply(Op.MUL, G, exp), Y: apply(Op.NEG, apply(Op.MUL, G, exp))}
    assert cotangents(apply(Op.ADD, X, X), build.real(1.0), [X])[X] is build.real(2.0)
    assert cotangents(apply(Op.FLOOR, X), G, [X, Y]) == {X: build.real(0.0), Y: build.real(0.0)}
    chosen = apply(Op.WHERE, apply(Op.LT, X, Y), apply(Op.MUL, X, Y), Y)
    assert cotangents(chosen, G, [Y])[Y] is apply(Op.WHERE, apply(Op.LT, X, Y), apply(Op.MUL, G, X), G)


def test_leaves_may_be_any_node_and_statistics_must_be() -> None:
    total = build.row(Reduction.SUM, X)
    root = apply(Op.DIV, X, total)
    assert set(cotangents(root, G, [X, total])) == {X, total}
    with pytest.raises(VerifyError, match="pair by pair"):
        cotangents(root, G, [X])

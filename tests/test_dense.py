"""Every operator of the table against Python's own arithmetic, and what evaluation does at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attndsl.dense import Env, environment, evaluate, evaluate_all
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op, facts
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import ScalarParam, Variant

LARGEST, LEAST = 2**63 - 1, -(2**63)
INTEGERS = [0, 1, -1, 2, 3, -7, 8, 63, -64, 1000, -1001, 2**31, -(2**40) + 1]
FLOATS = [0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.25, -7.75, 20.0]
BOOLS = [False, True]
SAMPLES: dict[DType, list[Any]] = {DType.BOOL: BOOLS, DType.I64: INTEGERS, DType.F32: FLOATS}
SCALARS = {dtype: [build.scalar(f"{dtype.value}{place}", dtype) for place in range(3)] for dtype in SAMPLES}

Oracle = Callable[..., Any]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


ORACLES: dict[Op, Oracle] = {
    Op.ADD: lambda x, y: x + y,
    Op.SUB: lambda x, y: x - y,
    Op.MUL: lambda x, y: x * y,
    Op.DIV: lambda x, y: x / y,
    Op.FLOORDIV: lambda x, y: x // y,
    Op.MOD: lambda x, y: x % y,
    Op.POW: math.pow,
    Op.NEG: lambda x: -x,
    Op.ABS: abs,
    Op.MIN: min,
    Op.MAX: max,
    Op.LT: lambda x, y: x < y,
    Op.LE: lambda x, y: x <= y,
    Op.GT: lambda x, y: x > y,
    Op.GE: lambda x, y: x >= y,
    Op.EQ: lambda x, y: x == y,
    Op.NE: lambda x, y: x != y,
    Op.AND: lambda x, y: x and y,
    Op.OR: lambda x, y: x or y,
    Op.XOR: lambda x, y: x != y,
    Op.NOT: lambda x: not x,
    Op.BIT_AND: lambda x, y: x & y,
    Op.BIT_OR: lambda x, y: x | y,
    Op.BIT_XOR: lambda x, y: x ^ y,
    Op.BIT_NOT: lambda x: ~x,
    Op.SHL: lambda x, y: x << y,
    Op.SHR: lambda x, y: x >> y,
    Op.BIT_LENGTH: int.bit_length,
    Op.WHERE: lambda condition, yes, no: yes if condition else no,
    Op.EXP: math.exp,
    Op.EXP2: lambda x: 2.0**x,
    Op.LOG: math.log,
    Op.LOG2: math.log2,
    Op.SQRT: math.sqrt,
    Op.RSQRT: lambda x: 1 / math.sqrt(x),
    Op.SIN: math.sin,
    Op.COS: math.cos,
    Op.TAN: math.tan,
    Op.TANH: math.tanh,
    Op.SIGMOID: sigmoid,
    Op.SILU: lambda x: x * sigmoid(x),
    Op.GELU: lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    Op.ERF: math.erf,
    Op.FLOOR: math.floor,
    Op.CEIL: math.ceil,
    Op.ROUND: round,
    Op.TO_BOOL: bool,
    Op.TO_INT: int,
    Op.TO_FLOAT: float,
}


def defined(oracle: Oracle, args: tuple[Any, ...]) -> Any:
    """What Python makes of the arguments; `None` where it raises or leaves 64 bits."""
    try:
        value = oracle(*args)
    except (ArithmeticError, ValueError):
        return None
    leaves = isinstance(value, complex) or (type(value) is int and not LEAST <= value <= LARGEST)
    return None if leaves else value


def arguments(op: Op, dtype: DType) -> list[tuple[Any, ...]]:
    samples = SAMPLES[dtype]
    match facts(op).arity:
        case 1:
            return [(x,) for x in samples]
        case 2:
            return [(x, y) for x in samples for y in samples]
        case _:
            return [(c, x, y) for c in BOOLS for x in samples[:4] for y in samples[:4]]


ROWS = [
    pytest.param(op, dtype, id=f"{op.name}-{dtype.value}")
    for op in Op
    for dtype in sorted(facts(op).operands, key=lambda dtype: dtype.value)
]


@pytest.mark.parametrize(("op", "dtype"), ROWS)
def test_operator_means_what_python_means(op: Op, dtype: DType) -> None:
    kinds = [DType.BOOL, dtype, dtype] if op is Op.WHERE else [dtype] * facts(op).arity
    operands = [SCALARS[kind][place] for place, kind in enumerate(kinds)]
    root = build.apply(op, *operands)
    checked = 0
    for args in arguments(op, dtype):
        if op in (Op.SHL, Op.SHR) and args[1] > 63:
            continue
        expected = defined(ORACLES[op], args)
        values = {operand.name: arg for operand, arg in zip(operands, args, strict=True)}
        actual = evaluate(root, Env(values=values, dtype=torch.float64))
        if expected is None:
            continue
        checked += 1
        assert actual.dtype is {DType.BOOL: torch.bool, DType.I64: torch.int64, DType.F32: torch.float64}[root.dtype]
        if root.dtype.is_float:
            assert actual.item() == pytest.approx(expected, rel=1e-14, abs=1e-15), args
        else:
            assert actual.item() == expected, args
    assert checked >= 2


def test_every_operator_has_an_oracle() -> None:
    assert set(ORACLES) == set(Op)


@pytest.mark.parametrize("value", [2**53 - 1, 2**60 - 1, 2**60, LARGEST, -LARGEST, LEAST])
def test_bit_length_is_exact_to_64_bits(value: int) -> None:
    assert evaluate(build.apply(Op.BIT_LENGTH, build.integer(value)), Env()).item() == value.bit_length()


@pytest.mark.parametrize("op", [Op.MIN, Op.MAX])
def test_nan_propagates_through_extrema(op: Op) -> None:
    for args in ((build.real(1.0), build.real(math.nan)), (build.real(math.nan), build.real(1.0))):
        assert evaluate(build.apply(op, *args), Env()).isnan()


@pytest.mark.parametrize("op", [Op.FLOORDIV, Op.MOD])
def test_dividing_an_integer_by_zero_does_not_stop_the_evaluation(op: Op) -> None:
    evaluate(build.apply(op, build.K, build.Q), grid(q_len=3, kv_len=3))


def grid(**sizes: Any) -> Env:
    variant = Variant("none", (), build.SCORE, build.TRUE, build.SCORE, build.WEIGHT)
    return environment(variant, sizes.pop("values", {}), **{"batch": 1, "heads": 1, "q_len": 1, "kv_len": 1, **sizes})


def test_constants_keep_their_type_and_bits() -> None:
    assert evaluate(build.boolean(True), Env()).dtype is torch.bool
    assert evaluate(build.integer(LARGEST), Env()).item() == LARGEST
    assert math.copysign(1, evaluate(build.real(-0.0), Env()).item()) == -1


def test_values_have_the_smallest_shape() -> None:
    env = grid(batch=2, heads=3, q_len=4, kv_len=5)
    difference = build.apply(Op.SUB, build.Q, build.K)
    shapes = [tuple(value.shape) for value in evaluate_all((build.H, build.Q, difference, build.KV_LEN), env)]
    assert shapes == [(1, 3, 1, 1), (1, 1, 4, 1), (1, 1, 4, 5), ()]


def test_a_deep_expression_does_not_recurse() -> None:
    root: Expr = build.Q
    for _ in range(20_000):
        root = build.apply(Op.ADD, root, build.K)
    assert evaluate(root, grid(kv_len=2)).flatten().tolist() == [0, 20_000]


def test_shared_nodes_are_computed_once() -> None:
    root: Expr = build.Q
    for _ in range(200):
        root = build.apply(Op.MAX, root, build.apply(Op.MIN, root, root))
    assert evaluate(root, grid(q_len=2)).flatten().tolist() == [0, 1]


def test_offsets_shift_queries_for_each_batch() -> None:
    env = grid(batch=2, q_len=3, q_offset=torch.tensor([10, 20], dtype=torch.int32))
    assert env.leaves[build.Q].squeeze().tolist() == [[10, 11, 12], [20, 21, 22]]


@pytest.mark.parametrize("storage", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_captured_integers_of_any_storage(storage: torch.dtype) -> None:
    load = build.load("t", (build.K,), DType.I64)
    value = evaluate(load, grid(kv_len=3, values={"t": torch.tensor([5, 0, 100, 1], dtype=storage)}))
    assert value.dtype is torch.int64
    assert value.flatten().tolist() == [5, 0, 100]


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_captured_floats_are_read_as_the_computing_type(storage: torch.dtype) -> None:
    load = build.load("t", (), DType.F32)
    assert evaluate(load, Env(values={"t": torch.tensor(0.5, dtype=storage)}, dtype=torch.float64)).dtype is (
        torch.float64
    )


@pytest.mark.parametrize("rank", range(7))
def test_captured_tensors_of_any_rank(rank: int) -> None:
    coordinates = (build.B, build.H, build.Q, build.K, build.Q, build.B)[:rank]
    sizes = (2, 3, 4, 5, 4, 2)[:rank]
    tensor = torch.arange(math.prod(sizes)).reshape(sizes)
    value = evaluate(
        build.load("t", coordinates, DType.I64), grid(batch=2, heads=3, q_len=4, kv_len=5, values={"t": tensor})
    )
    for b, h, q, k in ((0, 0, 0, 0), (1, 2, 3, 4), (1, 0, 2, 3)):
        index = (b, h, q, k, q, b)[:rank]
        assert value.expand(2, 3, 4, 5)[b, h, q, k] == tensor[index]


def test_reads_out_of_bounds_neither_fail_nor_wrap() -> None:
    load = build.load("t", (build.apply(Op.SUB, build.K, build.integer(2)),), DType.I64)
    value = evaluate(load, grid(kv_len=6, values={"t": torch.tensor([7, 8, 9])}))
    assert value.flatten().tolist() == [7, 7, 7, 8, 9, 9]
    empty = evaluate(load, grid(kv_len=6, values={"t": torch.zeros(0, dtype=torch.int64)}))
    assert empty.shape == (1, 1, 1, 6)


def test_scalars_default_to_what_the_parameter_says() -> None:
    window = ScalarParam("window", DType.I64, 4)
    variant = Variant("v", (window,), build.SCORE, build.TRUE, build.SCORE, build.WEIGHT)
    root = build.scalar("window", DType.I64)
    sizes = {"batch": 1, "heads": 1, "q_len": 1, "kv_len": 1}
    assert evaluate(root, environment(variant, {}, **sizes)).item() == 4
    assert evaluate(root, environment(variant, {"window": 9}, **sizes)).item() == 9


def test_row_statistics_see_live_pairs_only() -> None:
    scores = torch.tensor([[[[1.0, 2.0, math.nan], [3.0, 4.0, 5.0]]]])
    live = torch.tensor([[[[True, True, False], [False, False, False]]]])
    env = Env({build.SCORE: scores}, live=live)
    most, total = evaluate_all((build.row(Reduction.MAX, build.SCORE), build.row(Reduction.SUM, build.SCORE)), env)
    assert most.flatten().tolist() == [2.0, -math.inf]
    assert total.flatten().tolist() == [3.0, 0.0]


def test_what_the_environment_lacks_is_named() -> None:
    with pytest.raises(KeyError, match="WEIGHT"):
        evaluate(build.WEIGHT, Env())
    with pytest.raises(KeyError, match="live"):
        evaluate(build.row(Reduction.SUM, build.SCORE), Env({build.SCORE: torch.zeros(1, 1, 1, 1)}))


DIFFERENTIABLE = [op for op in Op if DType.F32 in facts(op).operands and facts(op).result.name == "SAME"]


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
def test_gradients_of_operators(op: Op) -> None:
    x, y = build.load("x", (build.H,), DType.F32), build.load("y", (build.K,), DType.F32)
    condition = build.apply(Op.LT, build.K, build.H)
    root = build.apply(op, *((x,), (x, y), (condition, x, y))[facts(op).arity - 1])

    def value(*tensors: Tensor) -> Tensor:
        env = grid(heads=3, kv_len=4, values=dict(zip(("x", "y"), tensors, strict=False)))
        return evaluate(root, replace(env, dtype=torch.float64))

    leaves = (torch.tensor([0.3, 1.2, 2.7]), torch.tensor([0.95, 1.6, 2.2, 0.47]))
    tensors = [leaf.double().requires_grad_() for leaf in leaves[: 1 if facts(op).arity == 1 else 2]]
    assert torch.autograd.gradcheck(value, tensors)


def test_a_singular_derivative_in_a_branch_not_taken_does_not_leak() -> None:
    slope = torch.tensor(2.0, requires_grad=True)
    distance = build.apply(Op.TO_FLOAT, build.apply(Op.SUB, build.Q, build.K))
    root = build.apply(Op.SQRT, build.apply(Op.MUL, distance, build.load("slope", (), DType.F32)))
    root = build.apply(Op.WHERE, build.apply(Op.LT, build.K, build.Q), root, build.real(0.0))
    evaluate(root, grid(q_len=3, kv_len=3, values={"slope": slope})).sum().backward()
    # d/ds of sqrt(1 s) + sqrt(1 s) + sqrt(2 s) at s = 2.
    assert slope.grad is not None
    assert slope.grad.item() == pytest.approx(2 * 0.5 / math.sqrt(2) + 0.5 * 2 / math.sqrt(4))

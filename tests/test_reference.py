"""The reference against formulas written out by hand, pair by pair, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from torch import Tensor

from attndsl.frontend import normalizers
from attndsl.frontend.builder import Builder
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import Param, Variant
from attndsl.reference import Result, attend, live_pairs

B = Builder()
INFINITY = math.inf
PRECISE = 1e-12

Score = Callable[[float, int, int, int, int], float]
Live = Callable[[int, int, int, int], bool]


def by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    score: Score = lambda s, b, h, i, j: s,
    live: Live = lambda b, h, i, j: True,
    sink: Callable[[int], float] | None = None,
    offset: Callable[[int], int] = lambda b: 0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, lse and the largest score of softmax attention; queries count from `offset`."""
    batch, heads, q_len, width = q.shape
    ratio = heads // k.shape[1]
    scale = 1 / math.sqrt(width) if scale is None else scale
    out = torch.zeros(batch, heads, q_len, v.shape[-1], dtype=torch.float64)
    lse, most = (torch.full((batch, heads, q_len), -INFINITY, dtype=torch.float64) for _ in range(2))
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h // ratio].tolist(), v[b, h // ratio].double()
            for row, query in enumerate(q[b, h].tolist()):
                i = row + offset(b)
                found = {}
                for j, key in enumerate(keys):
                    if live(b, h, i, j):
                        final = score(scale * sum(x * y for x, y in zip(query, key, strict=True)), b, h, i, j)
                        if final != -INFINITY:
                            found[j] = final
                total = sum(map(math.exp, found.values())) + (0 if sink is None else math.exp(sink(h)))
                for j, final in found.items():
                    out[b, h, row] += math.exp(final) / total * values[j]
                lse[b, h, row] = math.log(total) if total > 0 else -INFINITY
                most[b, h, row] = max(found.values(), default=-INFINITY)
    return out, lse, most


def inputs(
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    q_len: int = 7,
    kv_len: int = 9,
    width: int = 5,
    v_width: int = 5,
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, heads, q_len, width), (batch, kv_heads, kv_len, width), (batch, kv_heads, kv_len, v_width))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_(requires_grad) for s in shapes)
    return q, k, v


def op(symbol: str, left: Expr | float, right: Expr | float) -> Expr:
    return B.infix(symbol, lift(left), lift(right))


def call(name: str, *args: Expr | float) -> Expr:
    return B.call(name, [lift(arg) for arg in args])


def lift(value: Expr | float) -> Expr:
    return B.literal(value) if isinstance(value, bool | int | float) else value


def load(name: str, dtype: DType, *indices: Expr) -> Expr:
    return build.load(name, indices, dtype)


def variant(
    score: Expr = build.SCORE,
    mask: Expr = build.TRUE,
    normalizer: Expr | None = None,
    weight: Expr = build.WEIGHT,
    params: tuple[Param, ...] = (),
) -> Variant:
    B.reporter.check()
    return Variant("case", params, score, mask, normalizer or normalizers.softmax(B), weight)


def check(result: Result, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    assert result.lse is not None
    assert_rows_close(result.out, expected[0], PRECISE)
    assert_rows_close(result.lse[..., None], expected[1][..., None], PRECISE)
    assert_rows_close(result.max_score[..., None], expected[2][..., None], PRECISE)


CAUSAL = op("<=", build.K, build.Q)
DISTANCE = op("-", build.Q, build.K)


def test_dense_attention() -> None:
    check(attend(variant(), {}, *inputs()), by_hand(*inputs()))


def test_scale() -> None:
    check(attend(variant(), {}, *inputs(), scale=0.3), by_hand(*inputs(), scale=0.3))


def test_causal_with_unequal_lengths() -> None:
    for sizes in ({"q_len": 9, "kv_len": 4}, {"q_len": 4, "kv_len": 9}):
        check(
            attend(variant(mask=CAUSAL), {}, *inputs(**sizes)),
            by_hand(*inputs(**sizes), live=lambda b, h, i, j: j <= i),
        )


def test_sliding_window_leaves_rows_empty() -> None:
    mask = op("and", CAUSAL, op("<", DISTANCE, build.scalar("window", DType.I64)))
    q, k, v = inputs(q_len=12, kv_len=5)
    result = attend(variant(mask=mask), {"window": 3}, q, k, v)
    check(result, by_hand(q, k, v, live=lambda b, h, i, j: 0 <= i - j < 3))
    assert not result.out[:, :, 7:].any()
    assert result.lse is not None
    assert (result.lse[:, :, 7:] == -INFINITY).all()


def test_alibi() -> None:
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
    score = op("-", build.SCORE, op("*", load("slopes", DType.F32, build.H), call("float", DISTANCE)))
    check(
        attend(variant(score, CAUSAL), {"slopes": slopes}, *inputs()),
        by_hand(*inputs(), score=lambda s, b, h, i, j: s - 2.0 ** -(h + 1) * (i - j), live=lambda b, h, i, j: j <= i),
    )


def test_soft_cap() -> None:
    score = op("*", call("tanh", op("/", build.SCORE, 0.7)), 0.7)
    check(
        attend(variant(score), {}, *inputs()), by_hand(*inputs(), score=lambda s, b, h, i, j: 0.7 * math.tanh(s / 0.7))
    )


def test_documents() -> None:
    ids = [[0, 0, 0, 1, 1, 2, 2, 2, 2], [5, 5, 1, 1, 1, 1, 5, 5, 5]]
    mask = op("==", load("ids", DType.I64, build.B, build.Q), load("ids", DType.I64, build.B, build.K))
    check(
        attend(variant(mask=mask), {"ids": torch.tensor(ids, dtype=torch.int32)}, *inputs()),
        by_hand(*inputs(), live=lambda b, h, i, j: ids[b][i] == ids[b][j]),
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_query_heads_share_key_heads_in_runs(kv_heads: int) -> None:
    mask = op("<=", build.K, op("+", build.Q, build.H))
    check(
        attend(variant(mask=mask), {}, *inputs(kv_heads=kv_heads), enable_gqa=True),
        by_hand(*inputs(kv_heads=kv_heads), live=lambda b, h, i, j: j <= i + h),
    )


def test_value_width_differs() -> None:
    sizes = {"width": 6, "v_width": 3}
    check(attend(variant(), {}, *inputs(**sizes)), by_hand(*inputs(**sizes)))


@pytest.mark.parametrize("offset", [0, 3, torch.tensor([2, 6])])
def test_queries_count_from_the_offset(offset: int | Tensor) -> None:
    first = torch.as_tensor(offset).expand(2).tolist()
    check(
        attend(variant(mask=CAUSAL), {}, *inputs(q_len=4), q_offset=offset),
        by_hand(*inputs(q_len=4), live=lambda b, h, i, j: j <= i, offset=first.__getitem__),
    )


def test_bias_of_rank_four_with_minus_infinity_in_it() -> None:
    bias = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias[bias < -0.5] = -INFINITY
    bias[1, 2, 3] = -INFINITY
    score = op("+", build.SCORE, load("bias", DType.F32, build.B, build.H, build.Q, build.K))
    result = attend(variant(score), {"bias": bias}, *inputs())
    check(result, by_hand(*inputs(), score=lambda s, b, h, i, j: s + float(bias[b, h, i, j])))
    assert result.lse is not None
    assert result.lse[1, 2, 3] == -INFINITY


def test_a_score_written_as_minus_infinity_masks() -> None:
    score = call("where", op("<", DISTANCE, 2), build.SCORE, -INFINITY)
    result = attend(variant(score, CAUSAL), {}, *inputs())
    check(result, by_hand(*inputs(), live=lambda b, h, i, j: 0 <= i - j < 2))


def test_a_score_free_of_the_dot_product() -> None:
    score = call("float", op("-", build.K, build.Q))
    check(attend(variant(score), {}, *inputs()), by_hand(*inputs(), score=lambda s, b, h, i, j: float(j - i)))


SINKS = [0.7, -1.3, 2.0, 0.0]


def test_sink() -> None:
    normalizer = normalizers.softmax(B, load("sink", DType.F32, build.H))
    mask = op("<", build.K, op("-", build.Q, 1))
    result = attend(variant(mask=mask, normalizer=normalizer), {"sink": torch.tensor(SINKS).double()}, *inputs())
    check(
        result,
        by_hand(*inputs(), live=lambda b, h, i, j: j < i - 1, sink=torch.tensor(SINKS).double().tolist().__getitem__),
    )
    assert result.lse is not None
    assert torch.equal(result.lse[0, :, 0], torch.tensor(SINKS).double())


@pytest.mark.parametrize("sink", [1e4, -1e4, -INFINITY])
def test_extreme_sinks(sink: float) -> None:
    normalizer = normalizers.softmax(B, lift(sink))
    q, k, v = (x.float() for x in inputs())
    result = attend(variant(mask=CAUSAL, normalizer=normalizer), {}, q, k, v)
    plain = attend(variant(mask=CAUSAL), {}, q, k, v)
    assert result.lse is not None
    assert plain.lse is not None
    if sink > 0:
        assert not result.out.any()
        assert (result.lse == sink).all()
    else:
        assert_rows_close(result.out, plain.out, 1e-6)
        assert_rows_close(result.lse, plain.lse, 1e-6)


def test_softmax_plus_one_in_single_precision_does_not_overflow() -> None:
    shift = build.row(Reduction.MAX, build.SCORE)
    weight = call("exp", op("-", build.SCORE, shift))
    normalizer = op("/", weight, op("+", call("exp", B.prefix("-", shift)), build.row(Reduction.SUM, weight)))
    q, k, v = (x.float() for x in inputs())
    result = attend(variant(op("-", build.SCORE, 1e3), normalizer=normalizer), {}, q, k, v)
    assert result.lse is not None
    assert not result.lse.any()
    assert not result.out.any()
    check(attend(variant(normalizer=normalizer), {}, *inputs()), by_hand(*inputs(), sink=lambda h: 0.0))


def test_softmax_without_a_shift_has_a_divisor_too() -> None:
    weight = call("exp", build.SCORE)
    normalizer = op("/", weight, build.row(Reduction.SUM, weight))
    check(
        attend(variant(mask=CAUSAL, normalizer=normalizer), {}, *inputs()),
        by_hand(*inputs(), live=lambda b, h, i, j: j <= i),
    )


def test_temperature_inside_the_normalizer() -> None:
    scaled = op("*", build.SCORE, 0.5)
    weight = call("exp", op("-", scaled, build.row(Reduction.MAX, scaled)))
    normalizer = op("/", weight, build.row(Reduction.SUM, weight))
    result = attend(variant(mask=CAUSAL, normalizer=normalizer), {}, *inputs())
    out, lse, _ = by_hand(*inputs(), live=lambda b, h, i, j: j <= i, score=lambda s, b, h, i, j: s / 2)
    assert result.lse is not None
    assert_rows_close(result.out, out, PRECISE)
    assert_rows_close(result.lse, lse, PRECISE)


def test_a_divisor_that_is_not_shift_invariant() -> None:
    """w = exp(s - m) / (1 + sum): the shift is part of the meaning."""
    weight = call("exp", op("-", build.SCORE, build.row(Reduction.MAX, build.SCORE)))
    normalizer = op("/", weight, op("+", 1.0, build.row(Reduction.SUM, weight)))
    q, k, v = inputs()
    result = attend(variant(mask=op("<", build.K, build.Q), normalizer=normalizer), {}, q, k, v)
    _, lse, most = by_hand(q, k, v, live=lambda b, h, i, j: j < i)
    assert result.lse is not None
    assert_rows_close(result.lse, most + torch.log(1 + torch.exp(lse - most).nan_to_num(0)), PRECISE)


def test_sigmoid_attention_has_no_lse() -> None:
    q, k, v = inputs()
    result = attend(variant(mask=CAUSAL, normalizer=call("sigmoid", build.SCORE)), {}, q, k, v)
    expected = torch.zeros_like(result.out)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(7)).tolist():
        for j in range(i + 1):
            expected[b, h, i] += v[b, h, j] / (1 + math.exp(-float(q[b, h, i] @ k[b, h, j]) / math.sqrt(5)))
    assert result.lse is None
    assert_rows_close(result.out, expected, PRECISE)


def test_a_row_whose_divisor_is_zero_has_weight_zero() -> None:
    """relu(s) / sum relu(s), where every score of a row may be negative."""
    positive = call("max", build.SCORE, 0.0)
    normalizer = op("/", positive, build.row(Reduction.SUM, positive))
    q, k, v = inputs(requires_grad=True)
    score = op("+", build.SCORE, call("where", op("<", build.Q, 3), -100.0, 0.0))
    result = attend(variant(score, normalizer=normalizer), {}, q, k, v)
    assert not result.out[:, :, :3].any()
    products = (q @ k.mT / math.sqrt(5)).clamp(min=0)[:, :, 3:]
    assert_rows_close(result.out[:, :, 3:], products / products.sum(-1, keepdim=True) @ v, PRECISE)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(result.out.sum(), (q, k, v)))


def test_weight_mods_edit_normalized_weights_of_live_pairs() -> None:
    weight = op("+", op("*", build.WEIGHT, call("exp", op("*", -0.1, call("float", DISTANCE)))), 0.01)
    q, k, v = inputs()
    result = attend(variant(mask=CAUSAL, weight=weight), {}, q, k, v)
    scores = (q @ k.mT / math.sqrt(5)).masked_fill(~torch.ones(7, 9).tril().bool(), -INFINITY)
    distance = (torch.arange(7)[:, None] - torch.arange(9)).double()
    expected = (scores.softmax(-1) * torch.exp(-0.1 * distance) + 0.01).tril() @ v
    assert_rows_close(result.out, expected, PRECISE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_rounded_to_the_input_dtype_before_the_product(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in inputs(q_len=33, kv_len=40, width=16, v_width=16))
    result = attend(variant(), {}, q, k, v)
    weights = (q.float() @ k.float().mT / 4.0).softmax(-1)
    rounded = (weights.to(dtype).float() @ v.float()).to(dtype)
    assert result.out.dtype is dtype
    assert result.lse is not None
    assert result.lse.dtype is torch.float32
    assert_rows_close(result.out, rounded, 2 * torch.finfo(dtype).eps)
    if dtype is not torch.float32:
        # An output at a tie may round the other way; without rounding the weights far more would.
        assert (result.out != rounded).double().mean() < 0.01
        assert (result.out != (weights @ v.float()).to(dtype)).double().mean() > 0.05


def test_score_gradients_are_rounded_and_weight_gradients_are_not() -> None:
    q, k, v = (x.to(torch.bfloat16).requires_grad_() for x in inputs(kv_len=33, width=16, v_width=16))
    attend(variant(), {}, q, k, v).out.float().sum().backward()
    with torch.no_grad():
        weights = (q.float() @ k.float().mT / 4.0).softmax(-1)
        d_weights = torch.ones(2, 4, 7, 16) @ v.float().mT
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True))
        expected = (d_scores.bfloat16().float() / 4.0 @ k.float()).bfloat16()
    assert q.grad is not None
    assert (q.grad != expected).double().mean() < 0.02
    assert_rows_close(q.grad, expected, 1e-2)


@pytest.mark.parametrize("sizes", [{"q_len": 0}, {"kv_len": 0}, {"batch": 0}, {"q_len": 0, "kv_len": 0}])
def test_nothing_to_attend_to(sizes: dict[str, int]) -> None:
    q, k, v = inputs(**sizes, requires_grad=True)
    result = attend(variant(mask=CAUSAL), {}, q, k, v)
    assert result.out.shape == (*q.shape[:3], 5)
    assert not result.out.any()
    assert result.lse is not None
    assert (result.lse == -INFINITY).all()
    assert (result.max_score == -INFINITY).all()
    for gradient in torch.autograd.grad(result.out.sum(), (q, k, v)):
        assert not gradient.any()


# What no live pair touches never contributes.


def gradients(case: Variant, values: dict[str, Any], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    result = attend(case, values, *leaves, enable_gqa=True)
    assert result.lse is not None
    lse = torch.where(result.lse == -INFINITY, 0.0, result.lse)
    return [
        result.out.detach(),
        result.lse.detach(),
        *torch.autograd.grad(result.out.sum() + lse.sum(), leaves),
    ]


def test_poison_in_dead_keys_and_dead_rows_never_shows() -> None:
    q, k, v = inputs(kv_heads=2, q_len=8)
    ids = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 3])
    mask = op("==", load("ids", DType.I64, build.K), op("//", build.Q, 3))
    mask = op("and", mask, op("!=", op("//", build.Q, 3), 1))
    case, values = variant(mask=mask), {"ids": ids}
    clean = gradients(case, values, (q, k, v))
    q[:, :, 3:6] = math.nan
    for tensor in (k, v):
        tensor[:, :, 2:5] = math.nan
        tensor[:, :, 8] = math.inf
    dirty = gradients(case, values, (q, k, v))
    for got, expected in zip(dirty, clean, strict=True):
        assert_rows_close(got, expected, 0.0)


def test_poison_in_keys_that_only_a_score_masks_never_shows() -> None:
    score = call("where", op("<", build.K, 5), build.SCORE, -INFINITY)
    q, k, v = inputs()
    clean = gradients(variant(score), {}, (q, k, v))
    k[:, :, 5:], v[:, :, 5:] = math.nan, math.nan
    for got, expected in zip(gradients(variant(score), {}, (q, k, v)), clean, strict=True):
        assert_rows_close(got, expected, 0.0)


def test_poison_in_the_output_gradient_of_dead_rows_never_shows() -> None:
    q, k, v = inputs(requires_grad=True)
    result = attend(variant(mask=op("<", build.K, op("-", build.Q, 2))), {}, q, k, v)
    upstream = torch.ones_like(result.out)
    clean = torch.autograd.grad(result.out, (q, k, v), upstream, retain_graph=True)
    upstream[:, :, :3] = math.nan
    for got, expected in zip(torch.autograd.grad(result.out, (q, k, v), upstream), clean, strict=True):
        assert_rows_close(got, expected, 0.0)


def test_captured_poison_at_dead_pairs_never_shows() -> None:
    bias = torch.full((7, 9), math.nan, dtype=torch.float64)
    bias[torch.ones(7, 9).tril().bool()] = 0.5
    bias.requires_grad_()
    score = op("*", build.SCORE, call("exp", load("bias", DType.F32, build.Q, build.K)))
    q, k, v = inputs(requires_grad=True)
    result = attend(variant(score, CAUSAL), {"bias": bias}, q, k, v)
    check(result, by_hand(*inputs(), live=lambda b, h, i, j: j <= i, score=lambda s, b, h, i, j: s * math.exp(0.5)))
    for gradient in torch.autograd.grad(result.out.sum(), (q, k, v, bias)):
        assert gradient.isfinite().all()


def test_singular_derivatives_at_dead_pairs_do_not_reach_what_live_pairs_share() -> None:
    slope = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    root = call("sqrt", op("*", load("slope", DType.F32), call("float", DISTANCE)))
    case = variant(op("-", build.SCORE, root), op("<", build.K, build.Q))
    q, k, v = inputs()

    def out(slope: Tensor) -> Tensor:
        return attend(case, {"slope": slope}, q, k, v).out

    assert torch.autograd.gradcheck(out, slope)


def test_a_table_read_out_of_bounds_at_dead_pairs() -> None:
    table = torch.randn(7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    score = op("+", build.SCORE, load("table", DType.F32, DISTANCE))
    check(
        attend(variant(score, CAUSAL), {"table": table}, *inputs()),
        by_hand(*inputs(), score=lambda s, b, h, i, j: s + float(table[i - j]), live=lambda b, h, i, j: j <= i),
    )


def test_gradients_of_softmax_with_sink_bias_and_cap() -> None:
    q, k, v = inputs(batch=1, heads=2, kv_heads=1, q_len=4, kv_len=5, width=3, v_width=2, requires_grad=True)
    sink = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    score = op("+", build.SCORE, load("bias", DType.F32, op("+", DISTANCE, 4)))
    score = op("*", call("tanh", op("/", score, 1.5)), 1.5)
    normalizer = normalizers.softmax(B, load("sink", DType.F32, build.H))
    case = variant(score, op("<", build.K, build.Q), normalizer)

    def outputs(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        result = attend(case, {"sink": sink, "bias": bias}, q, k, v, enable_gqa=True)
        assert result.lse is not None
        return result.out, result.lse

    assert torch.autograd.gradcheck(outputs, (q, k, v, sink, bias))


def test_gradients_of_other_normalizers_and_weight_mods() -> None:
    q, k, v = inputs(batch=1, heads=1, kv_heads=1, q_len=3, kv_len=4, width=3, v_width=2, requires_grad=True)
    square = op("*", build.SCORE, build.SCORE)
    normalizer = op("/", square, op("+", build.row(Reduction.SUM, square), build.row(Reduction.MAX, build.SCORE)))
    case = variant(mask=CAUSAL, normalizer=normalizer, weight=op("*", build.WEIGHT, call("sigmoid", build.WEIGHT)))
    assert torch.autograd.gradcheck(lambda *leaves: attend(case, {}, *leaves).out, (q, k, v))


def test_only_the_sink_of_an_empty_row_gets_a_gradient() -> None:
    sink = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    normalizer = normalizers.softmax(B, load("sink", DType.F32, build.H))
    q, k, v = inputs(requires_grad=True)
    result = attend(variant(mask=build.FALSE, normalizer=normalizer), {"sink": sink}, q, k, v)
    assert result.lse is not None
    *others, d_sink = torch.autograd.grad(result.out.sum() + result.lse.sum(), (q, k, v, sink))
    assert not any(gradient.any() for gradient in others)
    assert d_sink.tolist() == [14.0] * 4


def test_live_pairs_has_size_one_where_the_mask_does_not_look() -> None:
    grid = {"batch": 2, "heads": 3, "q_len": 4, "kv_len": 5}
    per_head = op("<", DISTANCE, build.H)
    per_batch = load("keep", DType.BOOL, build.B)
    keep = torch.tensor([True, False])
    assert live_pairs(variant(), {}, **grid).shape == (1, 1, 4, 5)
    assert live_pairs(variant(mask=per_head), {}, **grid).shape == (1, 3, 4, 5)
    assert live_pairs(variant(mask=per_batch), {"keep": keep}, **grid)[:, 0, 0, 0].tolist() == [True, False]
    shifted = live_pairs(variant(mask=CAUSAL), {}, **grid, q_offset=torch.tensor([0, 2]))
    assert shifted.sum((-1, -2)).flatten().tolist() == [1 + 2 + 3 + 4, 3 + 4 + 5 + 5]
    assert live_pairs(variant(mask=CAUSAL), {}, **{**grid, "kv_len": 0}).shape == (1, 1, 4, 0)


def test_numbers_are_as_exact_as_the_inputs() -> None:
    """A float parameter is float64 in a float64 evaluation, not the float32 next to it."""
    (scaled,) = parse("attention scaled(c: float = -0.2) { weight weight * c }")
    q, v = torch.zeros(1, 1, 1, 4).double(), torch.ones(1, 1, 1, 1).double()
    assert attend(scaled, {}, q, q, v).out.item() == -0.2

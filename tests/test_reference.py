"""The reference against formulas written out by hand, pair by pair, in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import CAUSAL, DISTANCE, INFINITY, PRECISE, by_hand, call, check, inputs, load, op, variant
from compare import assert_rows_close
from torch import Tensor

from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.types import DType
from attndsl.reference import attend, live_pairs


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

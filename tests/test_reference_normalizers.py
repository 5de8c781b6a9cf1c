"""Normalizers in the reference against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import CAUSAL, INFINITY, PRECISE, B, by_hand, call, check, inputs, lift, load, op, variant
from compare import assert_rows_close

from attndsl.frontend import normalizers
from attndsl.ir import build
from attndsl.ir.types import DType, Reduction
from attndsl.reference import attend

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

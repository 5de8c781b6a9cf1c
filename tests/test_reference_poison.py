"""What no live pair touches never contributes to the reference, and gradients are those of what does."""

from __future__ import annotations

import math
from typing import Any

import torch
from by_hand import CAUSAL, DISTANCE, INFINITY, B, by_hand, call, check, inputs, load, op, variant
from compare import assert_rows_close
from torch import Tensor

from attndsl.frontend import normalizers
from attndsl.ir import build
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import Variant
from attndsl.reference import attend


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

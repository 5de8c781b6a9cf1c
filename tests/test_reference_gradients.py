"""Derivatives of the reference, first and second, against differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import attndsl as ad
from attndsl.frontend import normalizers
from attndsl.frontend.builder import Builder
from attndsl.frontend.decorators import Mod
from attndsl.ir import build
from attndsl.ir.ops import FACTS, Op, Result
from attndsl.ir.types import DType
from attndsl.ir.variant import TensorParam, Variant
from attndsl.reference import attend

N, W = ad.normalizers, ad.weights
HEADS, ROWS, KEYS = 2, 3, 4
BUILDER = Builder()
P = build.load("p", (build.K,), DType.F32)
SINGULAR = {Op.LOG, Op.LOG2, Op.SQRT, Op.RSQRT, Op.POW, Op.DIV, Op.MOD, Op.FLOORDIV}
"""Their operands are kept away from 0, Python's `//` and `%` having steps there."""


def qkv(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(1, HEADS, rows, 2) for rows in (ROWS, KEYS, KEYS)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]


def captured(*shape: int, seed: int = 1) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values + 0.5).requires_grad_()


def check(function: Callable[..., Any], inputs: list[Tensor], second: bool = True) -> None:
    """In directions drawn at random."""
    assert gradcheck(function, inputs, fast_mode=True)
    assert not second or gradgradcheck(function, inputs, fast_mode=True)


def causal(q_idx: Any, kv_idx: Any) -> Any:
    """The first row sees nothing."""
    return kv_idx < q_idx


def differentiable() -> list[Op]:
    return [op for op, row in FACTS.items() if DType.F32 in row.operands and row.result is Result.SAME]


@pytest.mark.parametrize("op", differentiable(), ids=lambda op: op.name)
def test_operator(op: Op) -> None:
    """As a score mod, on the score and a captured tensor."""
    score = BUILDER.call("abs", [build.SCORE]) if op in SINGULAR else build.SCORE
    score = BUILDER.infix("+", score, build.real(0.75)) if op in SINGULAR else score
    operands = {1: (score,), 2: (score, P), 3: (BUILDER.infix("<", score, P), score, P)}[FACTS[op].arity]
    final = BUILDER.infix("*", build.apply(op, *operands), P)
    params = (TensorParam("p", DType.F32, ("N",)),)
    variant = Variant("v", params, final, build.TRUE, normalizers.softmax(BUILDER), build.WEIGHT)
    check(lambda p, *inputs: attend(variant, {"p": p}, *inputs).out, [captured(KEYS), *qkv()])


ENTRIES: dict[str, tuple[Callable[..., Mod], tuple[Tensor, ...]]] = {
    "softmax": (N.softmax, ()),
    "softmax-sink": (N.softmax, (captured(HEADS),)),
    "softmax-sink-row": (N.softmax, (captured(1, HEADS, ROWS),)),
    "softmax_plus_one": (N.softmax_plus_one, ()),
    "sigmoid": (N.sigmoid, (captured(HEADS),)),
    "relu": (N.relu, ()),
    "relu2": (N.relu2, ()),
    "taylor": (N.taylor, ()),
    "temperature": (N.temperature, (captured(HEADS),)),
    "temperature-log-n": (lambda factor: N.temperature(factor, log_n=True), (captured(),)),
    "unnormalised": (N.unnormalised, ()),
    "signed": (N.signed, (captured(HEADS),)),
    "prior": (N.prior, (captured(1, KEYS),)),
    "sparsemax": (N.sparsemax, ()),
    "entmax15": (N.entmax15, ()),
    "topk": (lambda: N.topk(2), ()),
    "decay": (lambda log_gamma: W.decay(log_gamma=log_gamma), (captured(HEADS),)),
    "affine": (lambda alpha, beta: W.affine(alpha=alpha, beta=beta), (captured(HEADS), captured(HEADS, seed=2))),
    "threshold": (lambda least: W.threshold(least=least), (captured(),)),
}


def attention(mod: Mod, **how: Any) -> ad.Attention:
    return ad.attention(**{"normalizer" if mod.stage.value == "normalizer" else "weight_mod": mod}, **how)


@pytest.mark.parametrize("name", ENTRIES)
def test_library(name: str) -> None:
    make, values = ENTRIES[name]

    def function(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> Tensor:
        found: Tensor = attention(make(*values), mask_mod=causal).reference(q, k, v)
        return found

    check(function, [*qkv(), *values])


@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - {"signed", "unnormalised"}))
def test_entropy_and_mass(name: str) -> None:
    """A negative weight has no entropy."""
    make, values = ENTRIES[name]

    def function(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        asked = ["entropy", ad.aux.mass(lambda kv_idx: kv_idx < 2)]
        _, aux = attention(make(*values), mask_mod=causal).reference(q, k, v, return_aux=asked)
        return aux.entropy, aux.mass

    check(function, [*qkv(), *values])


def lse_and_out(mod: Mod) -> Callable[..., tuple[Tensor, Tensor]]:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, aux = attention(mod).reference(q, k, v, return_aux=["lse"])
        return out, aux.lse

    return function


@pytest.mark.parametrize("mod", [N.softmax(), N.softmax(0.5), N.softmax_plus_one(), N.temperature(2.0)])
def test_lse(mod: Mod) -> None:
    check(lse_and_out(mod), qkv())


def test_a_sink_gets_the_gradient_of_lse_in_rows_that_see_nothing_too() -> None:
    def function(sink: Tensor, *inputs: Tensor) -> Tensor:
        _, aux = ad.attention(mask_mod=causal, normalizer=N.softmax(sink)).reference(*inputs, return_aux=["lse"])
        assert torch.equal(aux.lse[0, :, 0], sink)
        found: Tensor = aux.lse
        return found

    check(function, [captured(HEADS), *qkv()])


# Normalizers of one's own.


@ad.normalizer
def top_matters(score):
    """No shift of the scores leaves this alone."""
    top = ad.row_max(score)
    return ad.exp(score - 2.0 * top) / (1.0 + top * top)


@ad.normalizer
def variance(score):
    """A statistic of a statistic."""
    mean = ad.row_sum(score) / 4.0
    return (score - mean) / (1.0 + ad.row_sum((score - mean) * (score - mean)))


@ad.normalizer
def smallest(score, h, *, p):
    return ad.sigmoid(score * p[h] + ad.row_max(-score))


@ad.normalizer
def solved(score, h, *, p, total):
    """A threshold whose body and total are learned."""
    top = ad.row_max(score)
    found = ad.row_solve(lambda t: p[h] * ad.maximum(score - t, 0.0) ** 1.5, total=total, lower=top - 9.0, upper=top)
    return ad.exp(found - score) * found


@ad.normalizer
def solved_twice(score):
    top = ad.row_max(score)
    first = ad.row_solve(lambda t: ad.exp(score - t), total=2.0, lower=top - 9.0, upper=top + 9.0)
    return ad.sigmoid(
        ad.row_solve(lambda t: first * first * ad.exp(-t) + ad.exp(score - t), total=2.0, lower=-50.0, upper=50.0)
        - score
    )


@pytest.mark.parametrize(
    ("mod", "values"),
    [
        (top_matters, {}),
        (variance, {}),
        (smallest, {"p": captured(HEADS)}),
        (solved, {"p": captured(HEADS), "total": captured()}),
        (solved_twice, {}),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_own_normalizer(mod: Mod, values: Mapping[str, Tensor]) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> Tensor:
        bound = mod.bind(**dict(zip(values, given, strict=True))) if values else mod
        found: Tensor = ad.attention(normalizer=bound).reference(q, k, v)
        return found

    check(function, [*qkv(), *values.values()])


def test_the_gradient_of_a_maximum_is_shared_by_ties() -> None:
    k = torch.tensor([1.0, 2.0, 2.0, 2.0, -1.0], dtype=torch.float64).view(1, 1, 5, 1).requires_grad_()
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    top = ad.attention(normalizer=lambda score, kv_idx: ad.where(kv_idx == 0, ad.row_max(score), 0.0))
    top.reference(one, k, torch.ones_like(k), scale=1.0).sum().backward()
    assert k.grad is not None
    assert torch.allclose(k.grad.flatten(), torch.tensor([0, 1, 1, 1, 0], dtype=torch.float64) / 3)


# Thresholds.


def threshold_of(body: Callable[..., Any], total: float, lower: float, upper: float) -> ad.Attention:
    """The threshold itself, once, as the output of each row."""

    def found(score, kv_idx):
        solved = ad.row_solve(lambda t: body(score, t), total=total, lower=lower, upper=upper)
        return ad.where(kv_idx == 0, solved, 0.0)

    return ad.attention(normalizer=found)


def scores(*values: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with these scores, whose output is the weight of the first key."""
    k = torch.tensor(values, dtype=dtype).view(1, 1, -1, 1)
    return torch.ones(1, 1, 1, 1, dtype=dtype), k.requires_grad_(), torch.ones_like(k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholds_are_found_to_the_last_bit(dtype: torch.dtype) -> None:
    """The least float at which the rounded sum is small enough: the float below is not."""
    q, k, v = scores(0.3, -1.7, 2.9, 2.2, dtype=dtype)
    attention = threshold_of(lambda score, t: ad.maximum(score - t, 0.0), 1.0, -9.0, 9.0)
    found = attention.reference(q, k, v, scale=1.0).reshape(())
    below = torch.nextafter(found, found - 1)
    kept = k.detach().flatten()
    assert (kept - found).clamp(min=0).sum() <= 1.0 < (kept - below).clamp(min=0).sum()


def test_where_a_step_is_the_threshold() -> None:
    """The least t with at most one score above it is the second largest, whatever is between."""
    attention = threshold_of(lambda score, t: ad.where(score > t, 1.0, 0.0), 1.0, -9.0, 9.0)
    q, k, v = scores(0.3, -1.7, 2.9, 2.2)
    out = attention.reference(q, k, v, scale=1.0)
    assert out.item() == k[0, 0, 3, 0].item()
    out.sum().backward()
    assert k.grad is not None
    assert not k.grad.any()


@pytest.mark.parametrize(
    ("total", "expected"),
    [(-1.0, 4.0), (100.0, -3.0), (math.nan, math.nan)],
    ids=["upper where nothing does", "lower where that does", "nan"],
)
def test_ends(total: float, expected: float) -> None:
    attention = threshold_of(lambda score, t: ad.maximum(score - t, 0.0), total, -3.0, 4.0)
    found = attention.reference(*scores(0.3, 1.5), scale=1.0)
    assert torch.equal(found.flatten().nan_to_num(7.0), torch.tensor([expected]).double().nan_to_num(7.0))


def test_infinite_ends_are_searched() -> None:
    attention = threshold_of(lambda score, t: ad.where(score > t, 1.0, 0.0), 1.0, -math.inf, math.inf)
    assert attention.reference(*scores(3e300, -2e-310, 7.0), scale=1.0).item() == 7.0


def test_a_row_without_keys_has_the_lower_end() -> None:
    q, k, v = scores(0.3, 1.5)
    poison = ad.attention(
        mask_mod=lambda kv_idx: kv_idx < 0,
        normalizer=lambda score: 1.0 / ad.row_solve(lambda t: ad.exp(score - t), total=1.0, lower=0.0, upper=1.0),
    )
    out = poison.reference(q, k, v)
    out.sum().backward()
    assert not out.any()
    assert k.grad is not None
    assert not k.grad.any()


# Dead pairs.

POISONS: dict[str, Callable[[Any], Any]] = {
    "reciprocal": lambda score: 1.0 / score,
    "logarithm": lambda score: ad.log(score),
    "root": lambda score: ad.sqrt(score),
    "power": lambda score: score**-1.5,
}


@pytest.mark.parametrize("name", POISONS)
def test_what_is_singular_at_dead_pairs_poisons_no_derivative(name: str) -> None:
    """Scores are exactly 0 where the mask is false; the first derivative there is infinite, as is the second."""
    inputs = [x.detach().abs() + 0.1 for x in qkv()]
    inputs[1][:, :, 2:] = 0.0
    inputs = [x.requires_grad_() for x in inputs]
    attention = ad.attention(mask_mod=lambda kv_idx: kv_idx < 2, score_mod=lambda score: POISONS[name](score))

    def first(*inputs: Tensor) -> tuple[Tensor, ...]:
        out = attention.reference(*inputs)
        return torch.autograd.grad((out**2).sum(), inputs, create_graph=True)

    alone = ad.attention(score_mod=lambda score: POISONS[name](score))
    cut = [inputs[0], *(x.detach()[:, :, :2].requires_grad_() for x in inputs[1:])]
    found = torch.autograd.grad(sum((x**2).sum() for x in first(*inputs)), inputs)
    gradients = torch.autograd.grad((alone.reference(*cut) ** 2).sum(), cut, create_graph=True)
    expected = torch.autograd.grad(sum((x**2).sum() for x in gradients), cut)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one[:, :, : other.shape[2]], other)
        assert not one[:, :, other.shape[2] :].any()


def test_the_branch_not_taken_poisons_no_second_derivative() -> None:
    inputs = qkv()
    attention = ad.attention(score_mod=lambda score: ad.where(score > 0.0, ad.sqrt(score), -score))
    check(lambda *given: attention.reference(*given), inputs)


def test_a_gradient_that_happens_to_be_zero_still_has_a_derivative() -> None:
    """At its minimum a squared error has gradient 0 and curvature."""
    inputs = qkv()
    attention = ad.attention(score_mod=lambda score: ad.tanh(score))
    out = attention.reference(*inputs)
    goal = out.detach()
    (first,) = torch.autograd.grad(((out - goal) ** 2).sum(), inputs[:1], create_graph=True)
    assert not first.any()
    direction = torch.randn(first.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (found,) = torch.autograd.grad((first * direction).sum(), inputs[:1])

    def moved(step: float) -> Tensor:
        shifted = (inputs[0] + step * direction).detach().requires_grad_()
        loss = ((attention.reference(shifted, *inputs[1:]) - goal) ** 2).sum()
        return torch.autograd.grad(loss, shifted)[0]

    assert found.abs().max() > 1e-3
    assert torch.allclose(found, (moved(1e-5) - moved(-1e-5)) / 2e-5, atol=1e-8)


# Precision, and what is mixed.


def test_a_half_capture_beside_single_precision_inputs() -> None:
    """Captured tensors are widened where they are read; their gradient comes back in their own dtype."""
    q, k, v = (x.detach().float() for x in qkv())
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float16, requires_grad=True)
    attention = ad.attention(score_mod=lambda score, h, kv_idx: score - slopes[h] * kv_idx)
    wide = attention.bind(slopes=slopes.detach().float())
    out = attention.reference(q, k, v)
    assert out.dtype is torch.float32
    assert torch.equal(out, wide.reference(q, k, v))
    out.sum().backward()
    assert slopes.grad is not None
    assert slopes.grad.dtype is torch.float16


def test_autocasting_leaves_the_reference_as_it_is_written() -> None:
    q, k, v = (x.detach().float() for x in qkv())
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float16)
    attention = ad.attention(score_mod=lambda score, h, kv_idx: score - slopes[h] * kv_idx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention.reference(q, k, v)
    assert torch.equal(found, attention.reference(q, k, v))


def test_an_integer_tensor_has_no_gradient() -> None:
    """torch refuses to ask for one; asked of the tensor beside it, there is one."""
    table = torch.tensor([1, 2, 0, 1])
    with pytest.raises(RuntimeError, match="floating point"):
        table.requires_grad_()
    values = captured(3)
    out = ad.attention(score_mod=lambda score, kv_idx: score + values[table[kv_idx]]).reference(*qkv())
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(out.sum(), [table], retain_graph=True)
    assert torch.autograd.grad(out.sum(), [values])[0].any()

"""Traced functions are the programs their text says: the same nodes, not only the same meaning."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from traced import K, Q, alibi, assert_same, causal, mask_of, near, window_mask

import attndsl as ad
from attndsl.frontend import spans
from attndsl.frontend.tracing import trace
from attndsl.ir import build
from attndsl.ir.ops import Op
from attndsl.ir.types import DType
from attndsl.ir.variant import ScalarParam, TensorParam


def test_comparison_is_the_node_it_says() -> None:
    assert mask_of(lambda q_idx, kv_idx: kv_idx <= q_idx) is build.apply(Op.LE, K, Q)


def test_nothing_is_plain_attention() -> None:
    program = trace()
    assert program.variant.name == "attention"
    assert program.variant.mask is build.TRUE
    assert program.variant.score is build.SCORE
    assert program.variant.weight is build.WEIGHT
    assert program.bindings.resolve() == {}
    assert_same(program, "attention a() { normalizer softmax() }")


def test_parameters_by_keyword() -> None:
    slopes = torch.rand(4)
    program = trace(mask_mod=causal & near(window=8), score_mod=alibi(slopes=slopes))
    text = """
    attention causal_near_alibi(slopes: tensor[H], window: int = 8) {
        mask   kv_idx <= q_idx and q_idx - kv_idx < window
        score  score - slopes[h] * (q_idx - kv_idx)
    }"""
    assert_same(program, text)
    assert program.variant.name == "causal_near_alibi"
    assert set(program.variant.params) == {
        TensorParam("slopes", DType.F32, ("H",)),
        ScalarParam("window", DType.I64, 8),
    }
    assert program.bindings.resolve()["slopes"] is slopes


OPERATORS = {
    "q_idx + kv_idx > 3": lambda q_idx, kv_idx: q_idx + kv_idx > 3,
    "3 - kv_idx * 2 >= -q_idx": lambda q_idx, kv_idx: 3 - kv_idx * 2 >= -q_idx,
    "q_idx // 4 == kv_idx % 3": lambda q_idx, kv_idx: q_idx // 4 == kv_idx % 3,
    "7 // (q_idx + 1) != 5 % (kv_idx + 1)": lambda q_idx, kv_idx: 7 // (q_idx + 1) != 5 % (kv_idx + 1),
    "1 / (q_idx + 1) < 0.5": lambda q_idx, kv_idx: 1 / (q_idx + 1) < 0.5,
    "q_idx ** 2 < 2.0 ** float(kv_idx)": lambda q_idx, kv_idx: q_idx**2 < 2.0 ** kv_idx.float(),
    "q_idx & 3 == kv_idx ^ 1": lambda q_idx, kv_idx: q_idx & 3 == kv_idx ^ 1,
    "(q_idx >> 2 | 1 << kv_idx) > 0": lambda q_idx, kv_idx: (q_idx >> 2 | 1 << kv_idx) > 0,
    "not (q_idx < kv_idx)": lambda q_idx, kv_idx: ~(q_idx < kv_idx),
    "(q_idx < 3) ^ (kv_idx < 3)": lambda q_idx, kv_idx: (q_idx < 3) ^ (kv_idx < 3),
    "~q_idx < abs(kv_idx)": lambda q_idx, kv_idx: ~q_idx < abs(kv_idx),
    "0 < q_idx": lambda q_idx: 0 < q_idx,  # noqa: SIM300
    "0 >= q_idx": lambda q_idx: 0 >= q_idx,  # noqa: SIM300
    "0 == q_idx": lambda q_idx: 0 == q_idx,  # noqa: SIM300
    "0 != q_idx or kv_idx == 0": lambda q_idx, kv_idx: (0 != q_idx) | (kv_idx == 0),  # noqa: SIM300
    "int(round(q_idx / 3)) > kv_idx": lambda q_idx, kv_idx: round(q_idx / 3) > kv_idx,
    "q_len - q_idx < kv_len": lambda q_idx, q_len, kv_len: q_len - q_idx < kv_len,
    "bit_length(q_idx ^ kv_idx) < 3": lambda q_idx, kv_idx: ad.bit_length(q_idx ^ kv_idx) < 3,
    "b < h": lambda h, b: b < h,
}


@pytest.mark.parametrize("text", OPERATORS)
def test_operator(text: str) -> None:
    assert_same(trace(mask_mod=OPERATORS[text]), f"attention a() {{ mask {text} }}")


FUNCTIONS = {
    "where(q_idx > kv_idx, score, 0.0)": [
        lambda score, q_idx, kv_idx: ad.where(q_idx > kv_idx, score, 0.0),
        lambda score, q_idx, kv_idx: torch.where(q_idx > kv_idx, score, 0.0),
        lambda score, q_idx, kv_idx: score.where(q_idx > kv_idx, 0.0),
        lambda score, q_idx, kv_idx: torch.where(q_idx > kv_idx, score, score.new_zeros(())),
    ],
    "where(q_idx < kv_idx, -inf, score)": [
        lambda score, q_idx, kv_idx: torch.where(q_idx < kv_idx, float("-inf"), score),
        lambda score, q_idx, kv_idx: torch.where(q_idx < kv_idx, torch.tensor(-float("inf")), score),
        lambda score, q_idx, kv_idx: score.masked_fill(q_idx < kv_idx, -math.inf),
        lambda score, q_idx, kv_idx: torch.masked_fill(score, q_idx < kv_idx, -math.inf),
    ],
    "50.0 * tanh(score / 50.0)": [
        lambda score: 50.0 * ad.tanh(score / 50.0),
        lambda score: 50.0 * torch.tanh(score / 50.0),
        lambda score: 50.0 * (score / 50.0).tanh(),
        lambda score: torch.mul(50.0, F.tanh(torch.div(score, 50.0))),
    ],
    "silu(score)": [lambda score: F.silu(score), lambda score: ad.silu(score)],
    "gelu(score)": [lambda score: F.gelu(score), lambda score: ad.gelu(score)],
    "sigmoid(score)": [lambda score: score.sigmoid(), lambda score: torch.special.expit(score)],
    "abs(score)": [lambda score: abs(score), lambda score: score.abs(), lambda score: torch.abs(score)],
    "min(max(score, -3), 3)": [
        lambda score: score.clamp(-3, 3),
        lambda score: torch.clamp(score, min=-3, max=3),
        lambda score: ad.clamp(score, -3, 3),
        lambda score: ad.minimum(ad.maximum(score, -3), 3),
    ],
    "max(score, 0)": [lambda score: F.relu(score), lambda score: torch.clamp(score, min=0)],
    "exp2(score) + log2(abs(score)) + erf(score)": [
        lambda score: torch.exp2(score) + torch.log2(score.abs()) + torch.erf(score)
    ],
    "sqrt(exp(score)) * rsqrt(exp(score))": [lambda score: score.exp().sqrt() * torch.rsqrt(torch.exp(score))],
    "sin(score) + cos(score) - tan(score)": [lambda score: ad.sin(score) + torch.cos(score) - score.tan()],
    "floor(score) + ceil(score) + round(score)": [
        lambda score: torch.floor(score) + score.ceil() + torch.round(score),
        lambda score: ad.floor(score) + ad.ceil(score) + ad.round(score),
    ],
    "score + float(q_idx < kv_idx) * 2.0": [
        lambda score, q_idx, kv_idx: score + (q_idx < kv_idx).float() * 2.0,
        lambda score, q_idx, kv_idx: score + (q_idx < kv_idx).to(score.dtype) * 2.0,
        lambda score, q_idx, kv_idx: score + (q_idx < kv_idx).to(torch.float16) * 2.0,
    ],
    "score + int(score)": [lambda score: score + score.int(), lambda score: score + score.to(dtype=torch.int64)],
    "score - float(2 * h)": [lambda score, h: torch.sub(score, h, alpha=2)],
    "score + (1.0 - score)": [lambda score: score + torch.rsub(score, 1.0)],
}


@pytest.mark.parametrize("text", FUNCTIONS)
def test_function_in_every_spelling(text: str) -> None:
    for function in FUNCTIONS[text]:
        assert_same(trace(score_mod=function), f"attention a() {{ score {text} }}")


def test_score_mods_apply_left_to_right() -> None:
    program = trace(score_mod=[lambda score: score + 1.0, lambda score: score * 2.0])
    assert_same(program, "attention a() { score (score + 1.0) * 2.0 }")


def test_normalizer_and_weight_mod() -> None:
    @ad.normalizer
    def softmax_plus_one(score):
        m = ad.row_max(score)
        e = ad.exp(score - m)
        return e / (ad.exp(-m) + ad.row_sum(e))

    @ad.weight_mod
    def decay(weight, q_idx, kv_idx, *, log_gamma):
        return weight * ad.exp(log_gamma * (q_idx - kv_idx))

    program = trace(normalizer=softmax_plus_one, weight_mod=decay(log_gamma=-0.5))
    text = """
    attention softmax_plus_one_decay(log_gamma: float = -0.5) {
        let m = row_max(score)
        let e = exp(score - m)
        normalizer  e / (exp(-m) + row_sum(e))
        weight      weight * exp(log_gamma * (q_idx - kv_idx))
    }"""
    assert_same(program, text)


SINKS = {"": (), "h": (4,), "b, h": (2, 4), "b, h, q_idx": (2, 4, 16)}


@pytest.mark.parametrize("index", SINKS)
def test_softmax_with_a_sink_is_the_texts(index: str) -> None:
    sink = torch.rand(SINKS[index])
    names = ", ".join(f"D{number}" for number in range(sink.ndim))
    value = f"sink[{index}]" if index else "sink"
    text = f"attention a(sink: tensor[{names}]) {{ normalizer softmax(sink = {value}) }}"
    assert_same(trace(normalizer=ad.softmax(sink=sink)), text)


def test_softmax_with_a_number() -> None:
    for sink in (1.5, 1):
        program = trace(normalizer=ad.softmax(sink=sink))
        text = f"attention a(sink: float = {sink}) {{ normalizer softmax(sink = sink) }}"
        assert_same(program, text)
        assert program.bindings.resolve() == {"sink": float(sink)}


# Composition.


def test_mods_call_each_other() -> None:
    @ad.mask_mod
    def both(b, h, q_idx, kv_idx):
        return causal(q_idx, kv_idx) & near(q_idx, kv_idx, window=4) & near(window=5)(b, h, q_idx, kv_idx)

    text = """
    attention both(near_window: int = 4, near_window_2: int = 5) {
        let d = q_idx - kv_idx
        mask kv_idx <= q_idx and d < near_window and d < near_window_2
    }"""
    assert_same(trace(mask_mod=both), text)


def test_mods_of_other_coordinates() -> None:
    shifted = ad.mask_mod(lambda q_idx, kv_idx: causal(q_idx + 1, kv_idx) & (causal | causal)(q_idx, kv_idx - 1))
    text = """
    attention a() {
        mask kv_idx <= q_idx + 1 and (kv_idx - 1 <= q_idx or kv_idx - 1 <= q_idx)
    }"""
    assert_same(trace(mask_mod=shifted), text)


# The trace itself.


def test_exceptions_of_the_function_pass_through() -> None:
    class Mine(Exception):
        pass

    error = Mine("as it is")
    window = 3

    def broken(q_idx, kv_idx):
        assert q_idx - window is not None
        raise error

    with pytest.raises(Mine) as caught:
        trace(mask_mod=broken)
    assert caught.value is error
    assert caught.value.__context__ is None


def test_traces_inside_traces() -> None:
    def outer(q_idx, kv_idx):
        inner = trace(mask_mod=window_mask(2, 1))
        assert inner.bindings.resolve() == {"window": 2, "sink": 1}
        return kv_idx <= q_idx

    assert_same(trace(mask_mod=outer), "attention outer() { mask kv_idx <= q_idx }")


def test_threads_trace_side_by_side() -> None:
    found: dict[int, object] = {}

    def work(number: int) -> None:
        found[number] = [trace(mask_mod=window_mask(number, 1)).bindings.resolve()["window"] for _ in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number] * 20 for number in range(4)}


def test_tracing_takes_milliseconds() -> None:
    slopes = torch.rand(4)
    best = math.inf
    for _ in range(20):
        start = time.perf_counter()
        trace(mask_mod=ad.masks.sliding_window(window=8) & causal, score_mod=alibi(slopes=slopes))
        best = min(best, time.perf_counter() - start)
    assert best < 0.005


def test_what_is_right_is_never_looked_up_in_the_syntax_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object) -> None:
        raise AssertionError("the tree of a whole file is for errors only")

    monkeypatch.setattr(spans, "_tree", refuse)
    trace(mask_mod=causal & near(window=8), score_mod=alibi(slopes=torch.rand(4)), normalizer=ad.softmax(sink=1.0))
    with pytest.raises(AssertionError, match="for errors only"):
        trace(mask_mod=lambda q_idx: q_idx)

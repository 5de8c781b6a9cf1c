"""Traced functions are the programs their text says: the same nodes, not only the same meaning."""

from __future__ import annotations

import functools
import math
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import and_masks, noop_mask, or_masks

import attndsl as ad
from attndsl.frontend import spans
from attndsl.frontend.parse import parse
from attndsl.frontend.tracing import Program, trace
from attndsl.ir import build
from attndsl.ir.ops import Op
from attndsl.ir.types import DType
from attndsl.ir.variant import ScalarParam, TensorParam

Q, K, H, B = build.Q, build.K, build.H, build.B


@ad.mask_mod
def causal(q_idx, kv_idx):
    return kv_idx <= q_idx


@ad.mask_mod
def near(q_idx, kv_idx, *, window):
    return q_idx - kv_idx < window


@ad.score_mod
def alibi(score, h, q_idx, kv_idx, *, slopes):
    return score - slopes[h] * (q_idx - kv_idx)


def assert_same(program: Program, text: str) -> None:
    """The traced program is node for node the one the text says."""
    (expected,) = parse(text)
    traced = program.variant
    for name in ("mask", "score", "normalizer", "weight"):
        assert getattr(traced, name) is getattr(expected, name), (name, getattr(traced, name))
    assert {param.name: type(param) for param in traced.params} == {
        param.name: type(param) for param in expected.params
    }


def mask_of(function) -> object:
    return trace(mask_mod=function).variant.mask


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


# FlexAttention's functions, verbatim.


def window_mask(window: int, sink: int):
    def mask(b, h, q, k):
        return (q - k < window) | (k < sink)

    return mask


def test_positional_arguments_under_any_names() -> None:
    assert mask_of(lambda w, x, y, z: w * y >= x * z) is mask_of(lambda b, h, q_idx, kv_idx: b * q_idx >= h * kv_idx)


def test_positional_ignores_names_where_asked() -> None:
    program = trace(mask_mod=lambda b, h, kv_idx, q_idx: kv_idx >= q_idx, positional=True)
    assert program.variant.mask is build.apply(Op.GE, Q, K)


def test_closures_become_parameters() -> None:
    program = trace(mask_mod=window_mask(8, 2))
    assert_same(
        program,
        "attention mask_(window: int = 8, sink: int = 2) { mask q_idx - kv_idx < window or kv_idx < sink }",
    )
    assert program.bindings.resolve() == {"window": 8, "sink": 2}


def test_torch_combinators() -> None:
    program = trace(mask_mod=and_masks(window_mask(8, 2), or_masks(noop_mask, causal)))
    text = """
    attention a(window: int = 8, sink: int = 2) {
        mask  true and (q_idx - kv_idx < window or kv_idx < sink) and (true or kv_idx <= q_idx)
    }"""
    assert_same(program, text)


def test_transformers_masks() -> None:
    masking = pytest.importorskip("transformers.masking_utils")
    starts, documents = torch.tensor([3, 4]), torch.zeros(2, 16, dtype=torch.int32)
    chunked = masking.add_offsets_to_mask_function(masking.chunked_causal_mask_function(4, starts), 2, 0)
    program = trace(
        mask_mod=masking.and_masks(
            chunked, masking.packed_sequence_mask_function(documents), masking.padding_mask_function(documents > 0)
        )
    )
    text = """
    attention a(chunk_size: int, left_padding: int tensor[B], q_offset: int, kv_offset: int,
                packed_sequence_mask: int tensor[B, N], padding_mask: bool tensor[B, K]) {
        let q = q_idx + q_offset
        let k = kv_idx + kv_offset
        let start = left_padding[b]
        mask  true and (true and (k - start) // chunk_size == (q - start) // chunk_size and k <= q)
              and packed_sequence_mask[b, q_idx] == packed_sequence_mask[b, kv_idx] and padding_mask[b, kv_idx]
    }"""
    assert_same(program, text)


def test_partials_and_defaults() -> None:
    def stride(b, h, q, k, step):
        return (q - k) % step == 0

    text = "attention stride(step: int = 3) { mask (q_idx - kv_idx) % step == 0 }"
    assert_same(trace(mask_mod=functools.partial(stride, step=3)), text)
    assert_same(trace(mask_mod=lambda b, h, q, k, step=3: (q - k) % step == 0), text)
    first = functools.partial(lambda step, b, h, q, k: (q - k) % step == 0, 3)
    assert_same(trace(mask_mod=first), text)
    assert_same(trace(mask_mod=and_masks(functools.partial(stride, step=3))), text.replace("mask (", "mask true and ("))


def test_partial_of_a_coordinate() -> None:
    def same(b, h, q_idx, kv_idx):
        return q_idx + h >= kv_idx + b

    program = trace(mask_mod=functools.partial(same, h=1))
    assert_same(program, "attention same(h_: int = 1) { mask q_idx + h_ >= kv_idx + b }")


def test_partial_of_a_mod() -> None:
    program = trace(mask_mod=functools.partial(near, window=4))
    assert_same(program, "attention near(window: int = 4) { mask q_idx - kv_idx < window }")


class SameDocument:
    def __init__(self, ids: torch.Tensor, limit: int) -> None:
        self.ids = ids
        self.limit = limit

    def __call__(self, b, h, q, k):
        return (self.ids[b, q] == self.ids[b, k]) & (q - k < self.limit)

    def method(self, b, h, q, k):
        return self(b, h, q, k)


class Bias(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = torch.nn.Parameter(torch.rand(4))

    def forward(self, score, b, h, q, k):
        return score - self.slopes[h] * (q - k)


def test_callable_objects() -> None:
    text = """
    attention a(ids: int tensor[B, N]) { mask ids[b, q_idx] == ids[b, kv_idx] and q_idx - kv_idx < 9 }"""
    instance = SameDocument(torch.zeros(2, 16, dtype=torch.int64), 9)
    assert_same(trace(mask_mod=instance), text)
    assert_same(trace(mask_mod=instance.method), text)
    module = Bias()
    program = trace(score_mod=module)
    assert_same(program, "attention a(slopes: tensor[H]) { score score - slopes[h] * (q_idx - kv_idx) }")
    assert program.bindings.resolve()["slopes"] is module.slopes


def test_source_may_be_unavailable() -> None:
    function = eval("lambda b, h, q, k: (0 < q) & (k <= q)")
    program = trace(mask_mod=function)
    assert_same(program, "attention a() { mask 0 < q_idx and kv_idx <= q_idx }")
    assert program.variant.origins.of(program.variant.mask) == ()


# Scalars: parameters, unless Python needs their value.


def test_control_flow_on_a_scalar_makes_it_a_constant() -> None:
    @ad.mask_mod
    def ladder(q_idx, kv_idx, *, steps, width):
        seen = kv_idx <= q_idx
        for step in range(steps):
            seen = seen | (kv_idx == step * width)
        return seen

    program = trace(mask_mod=ladder(steps=2, width=5))
    text = """
    attention ladder(width: int = 5) {
        mask kv_idx <= q_idx or kv_idx == 0 * width or kv_idx == 1 * width
    }"""
    assert_same(program, text)


SCALAR_NEEDS = [
    lambda n: 1 if n > 2 else 0,
    lambda n: int(n),
    lambda n: [1, 2, 3, 4][n],
    lambda n: min(n, 2),
    lambda n: round(math.log2(n)),
    lambda n: n.bit_count(),
    lambda n: {3: 1}[n],
    lambda n: len("x" * n),
    lambda n: int(torch.arange(n).sum()),
    lambda n: -(n**-1),
    lambda n: int(f"{n:d}"),
]


@pytest.mark.parametrize("number", range(len(SCALAR_NEEDS)))
def test_python_gets_the_value_it_needs(number: int) -> None:
    n = 3
    need = SCALAR_NEEDS[number]
    program = trace(mask_mod=lambda q_idx, kv_idx: q_idx - kv_idx < need(n))
    expected = need(3)
    constant = build.real(expected) if isinstance(expected, float) else build.integer(expected)
    assert program.variant.params == ()
    left = build.apply(Op.SUB, Q, K)
    if isinstance(expected, float):
        left = build.apply(Op.TO_FLOAT, left)
    assert program.variant.mask is build.apply(Op.LT, left, constant)


def test_isinstance_of_a_scalar_is_pythons() -> None:
    window = 4

    def mask(b, h, q, k):
        if not isinstance(window, int):
            raise TypeError("a window is an int")
        return q - k < window

    assert_same(trace(mask_mod=mask), "attention a() { mask q_idx - kv_idx < 4 }")


def test_bools_strings_and_infinities_stay_constants() -> None:
    is_causal, low, kind = True, float("-inf"), "causal"

    def score(score, b, h, q, k):
        return torch.where(k <= q, score, low) if is_causal and kind == "causal" else score

    assert_same(trace(score_mod=score), "attention a() { score score if kv_idx <= q_idx else -inf }")


def test_an_int_where_a_float_is_declared() -> None:
    assert trace(score_mod=ad.scores.soft_cap(cap=50)).variant.params == (ScalarParam("cap", DType.F32, 50.0),)


def test_numbers_used_by_two_functions_are_one_parameter() -> None:
    window = 5

    def near_mask(b, h, q, k):
        return q - k < window

    def bump(score, b, h, q, k):
        return score + window

    program = trace(mask_mod=near_mask, score_mod=bump)
    assert program.bindings.resolve() == {"window": 5}


# Names.


def test_parameters_of_one_name_are_qualified() -> None:
    program = trace(mask_mod=(near(window=3) | near(window=4)) & window_mask(9, 1))
    assert program.bindings.resolve() == {"near_window": 3, "near_window_2": 4, "mask_window": 9, "sink": 1}
    text = """
    attention a(near_window: int, near_window_2: int, mask_window: int, sink: int) {
        let d = q_idx - kv_idx
        mask (d < near_window or d < near_window_2) and (d < mask_window or kv_idx < sink)
    }"""
    assert_same(program, text)


def test_a_bound_mod_used_twice_has_one_parameter() -> None:
    close = near(window=3)
    assert trace(mask_mod=close | (close & causal)).bindings.resolve() == {"window": 3}


def test_names_that_mean_something_are_renamed() -> None:
    @ad.score_mod
    def clash(score, q_idx, *, h, where, tl, attention):
        return score + h + where + tl + attention

    program = trace(score_mod=clash(h=1.0, where=2.0, tl=3.0, attention=4.0))
    assert list(program.bindings.resolve()) == ["h_", "where_", "tl_", "attention_"]


def test_variant_names() -> None:
    assert trace(mask_mod=lambda q_idx: q_idx > 3).variant.name == "attention"
    assert trace(mask_mod=causal & ~causal).variant.name == "causal"
    assert trace(mask_mod=causal, name="my variant").variant.name == "my_variant"


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

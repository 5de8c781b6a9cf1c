"""Numbers of traced functions: parameters unless Python needs their value, and what parameters are called."""

from __future__ import annotations

import math

import pytest
import torch
from traced import K, Q, assert_same, causal, near, window_mask

import attndsl as ad
from attndsl.frontend.tracing import trace
from attndsl.ir import build
from attndsl.ir.ops import Op
from attndsl.ir.types import DType
from attndsl.ir.variant import ScalarParam

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

"""Kernels of every normalizer and weight mod, forward and backward, against the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gradients import backward, check_gradient_case, check_gradient_walks, check_gradients, has_gradients
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from launches import INTERPRETING, Program, check, check_walks, inputs, on_kernels, same, streams
from normalizers import row
from strategies import Case, cases
from torch import Tensor

import attndsl as ad

pytestmark = on_kernels

# Shrinking takes minutes in the interpreter; a failure is short enough to read as it is.
RANDOM = settings(deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
SMALL = {"max_programs": 2, "max_length": 33, "tensor_offsets": True}
INF = math.inf


def normal(*sizes: int, seed: int = 1) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def subject_of(normalizer: object, weight_mod: object = None) -> Program:
    """The program of an attention as users make one, its captured tensors requiring no grad."""
    attention = ad.attention(mask_mod=mostly_causal, normalizer=normalizer, weight_mod=weight_mod)
    return Program(attention.variant, attention._values())


@ad.mask_mod
def mostly_causal(q_idx, kv_idx):
    """Rows without a key, partial tiles and full ones."""
    return (kv_idx <= q_idx) & (q_idx != 7)


N = ad.normalizers
NORMALIZERS: dict[str, Callable[[], object]] = {
    "softmax": N.softmax,
    "sink of one number": lambda: N.softmax(sink=normal()),
    "sink of heads": lambda: N.softmax(sink=normal(4)),
    "sink of batch and heads": lambda: N.softmax(sink=normal(2, 4)),
    "sink of rows": lambda: N.softmax(sink=normal(2, 4, 20)),
    "softmax plus one": N.softmax_plus_one,
    "sigmoid": lambda: N.sigmoid(bias=normal(4)),
    "relu": N.relu,
    "relu2": N.relu2,
    "taylor": N.taylor,
    "temperature": lambda: N.temperature(factor=normal(4), log_n=True),
    "unnormalised": N.unnormalised,
    "signed": lambda: N.signed(factor=normal(4)),
    "prior": lambda: N.prior(normal(25).abs()),
    "sparsemax": N.sparsemax,
    "entmax15": N.entmax15,
    "topk": lambda: N.topk(5),
}


SOLVED = ("sparsemax", "entmax15", "topk")
"""Those a kernel walks the keys for dozens of times."""


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers(name: str) -> None:
    """Forward and backward through both kernels, lse where there is one."""
    made = NORMALIZERS[name]()
    sizes = {} if name in SOLVED else {"batch": 2, "heads": 4, "kv_heads": 2}
    subject, tensors = subject_of(made), inputs(**sizes, q_len=20, kv_len=25)
    check(subject, *tensors)
    check_gradients(subject, *tensors)


@ad.weight_mod
def affine(weight, h, q_idx, kv_idx, *, factor, bias):
    return weight * factor[h] + bias[kv_idx]


@ad.weight_mod
def multiplicative(weight, h, q_idx, kv_idx, *, rate):
    return weight * ad.exp(-(rate[h] * rate[h]) * (q_idx - kv_idx))


@ad.weight_mod
def thresholded(weight, *, floor):
    return ad.where(weight < floor, 0.0, weight)


@ad.weight_mod
def squared(weight, *, base):
    return weight * weight / (ad.abs(weight) + base[0])


WEIGHT_MODS: dict[str, Callable[[], object]] = {
    "multiplicative": lambda: multiplicative(rate=normal(2)),
    "affine": lambda: affine(factor=normal(2), bias=normal(25)),
    "threshold": lambda: thresholded(floor=0.08),
    "power": lambda: squared(base=normal(1).abs() + 0.5),
}


@pytest.mark.parametrize("name", WEIGHT_MODS)
@pytest.mark.parametrize("normalizer", ["softmax", "sink of one number", "relu", "taylor"])
def test_weight_mods(name: str, normalizer: str) -> None:
    subject = subject_of(NORMALIZERS[normalizer](), WEIGHT_MODS[name]())
    tensors = inputs(heads=2, q_len=20, kv_len=25)
    check(subject, *tensors)
    check_gradients(subject, *tensors)


@pytest.mark.as_users
@pytest.mark.parametrize("name", ["sink of heads", "taylor", "signed"])
def test_every_walk_gives_the_same(name: str) -> None:
    subject, tensors = subject_of(NORMALIZERS[name]()), inputs(heads=4, q_len=20, kv_len=25)
    check_walks(subject, subject.call(*tensors))
    check_gradient_walks(subject, subject.call(*tensors))


@pytest.mark.as_users
def test_a_sink_of_minus_infinity_is_no_sink() -> None:
    """To the last bit, gradients of q, k and v included; and the sink gets none."""
    tensors = inputs(heads=2, q_len=20)
    sunk, plain = subject_of(ad.normalizers.softmax(sink=torch.full((2,), -INF))), subject_of(ad.normalizers.softmax())
    calls = sunk.call(*tensors), plain.call(*tensors)
    rows = [subject.run(call, fast=False) for subject, call in zip((sunk, plain), calls, strict=True)]
    for name in ("out", "lse", "max_score"):
        assert same(getattr(rows[0], name), getattr(rows[1], name)), name
    with_sink, without = backward(sunk, calls[0], fast=False), backward(plain, calls[1], fast=False)
    for name in "qkv":
        assert torch.equal(with_sink[name], without[name]), name
    assert torch.equal(with_sink["`sink`"], torch.zeros(2))


@pytest.mark.parametrize("name", ["sink of heads", "sigmoid", "relu", "signed", "sparsemax"])
def test_dead_rows_have_zeros_exactly(name: str) -> None:
    subject, heads = subject_of(NORMALIZERS[name]()), 1 if name in SOLVED else 4
    call = subject.call(*inputs(heads=heads, q_len=20, kv_len=25))
    dout = torch.zeros(1, heads, 20, 16)
    assert not subject.run(call, fast=False).out[:, :, 7].any()
    dout[:, :, 7] = 1.0
    found = backward(subject, call, fast=False, gradients=(dout, None))
    assert all(not gradient.any() for gradient in found.values())


small_enough = pytest.mark.skipif(not INTERPRETING, reason="each of these builds a dozen native kernels")


@small_enough
@seed(0)
@settings(RANDOM, max_examples=10)
@given(cases(row=row, **SMALL))
def test_random_normalizers(case: Case) -> None:
    assume(streams(case))
    subject, tensors = Program(case.variant, case.values), case.inputs()
    check(subject, *tensors, note=repr(case), q_offset=case.q_offset)
    assume(has_gradients(case))
    check_gradients(subject, *tensors, note=repr(case), q_offset=case.q_offset)


@small_enough
@seed(1)
@settings(RANDOM, max_examples=5)
@given(cases(weights=True, **SMALL))
def test_random_programs(case: Case) -> None:
    assume(has_gradients(case))
    check_gradient_case(case)

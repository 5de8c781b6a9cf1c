"""Gradients of whole calls by kernels, as users make them: of returned sums, of torch operations on what is captured,
of one normalizer written to stream and written to take two passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compare import assert_rows_close
from launches import INTERPRETING, inputs, on_kernels
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention

pytestmark = on_kernels

BACKEND = "triton" if INTERPRETING else "cpu"
SIZES = {"heads": 2, "kv_heads": 1, "q_len": 20}
TOLERANCE = 5e-4


def normal(*sizes: int, seed: int = 1) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


@ad.mask_mod
def mostly_causal(q_idx, kv_idx):
    """A row without keys among others."""
    return (kv_idx <= q_idx) & (q_idx != 7)


Function = Callable[[Tensor, Tensor, Tensor, Tensor, str], list[Tensor]]
"""Of q, k, v, what is captured, and a backend: outputs."""


def pulled(function: Function, tensors: tuple[Tensor, ...], backend: str) -> list[Tensor]:
    """The outputs of a function and its gradients, by cotangents that tell every number apart."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = function(*leaves, backend)
    directions = [normal(*out.shape, seed=seed).to(out.dtype) for seed, out in enumerate(outputs)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, directions)]


def check_call(function: Function, captured: Tensor, **sizes: int) -> None:
    """Outputs and gradients by kernels against the reference in float64."""
    tensors = (*inputs(**(SIZES | sizes)), captured)
    found = pulled(function, tensors, BACKEND)
    exact = pulled(function, tuple(tensor.double() for tensor in tensors), "reference")
    for place, (one, other) in enumerate(zip(found, exact, strict=True)):
        assert_rows_close(one.reshape(1, -1), other.reshape(1, -1), TOLERANCE, f"output or gradient {place}")


def test_entropy_and_mass_beside_a_sink() -> None:
    """With a sink weights do not sum to one, and rows without a key have neither."""

    def function(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, backend: str) -> list[Tensor]:
        attention = ad.attention(mask_mod=mostly_causal, normalizer=ad.softmax(sink=sink))
        asked = ["entropy", "lse", ad.aux.mass(lambda kv_idx: kv_idx < 4)]
        out, aux = attention(q, k, v, enable_gqa=True, return_aux=asked, backend=backend)
        return [out, aux.entropy, aux.lse, aux.mass]

    check_call(function, normal(2))


def test_torch_operations_on_what_is_captured() -> None:
    """They are replayed at each call, and gradients go through them."""

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor, backend: str) -> list[Tensor]:
        def biased(score, h, q_idx, kv_idx):
            return score * torch.sigmoid(table)[h, 0] + table.t()[kv_idx, h]

        attention = ad.attention(score_mod=biased, mask_mod=mostly_causal)
        return [attention(q, k, v, enable_gqa=True, backend=backend)]

    check_call(function, normal(2, 20))


def softmax_in(passes: int) -> Attention:
    """One normalizer in two forms. Of `max` nothing is known by which a row's divisor leaves it: it is needed first."""

    @ad.normalizer
    def streamed(score):
        e = ad.exp(score - ad.row_max(score))
        return e / ad.row_sum(e)

    @ad.normalizer
    def in_two_passes(score):
        e = ad.exp(score - ad.row_max(score))
        return ad.maximum(e / ad.row_sum(e), 0.0)

    return ad.attention(mask_mod=mostly_causal, normalizer=streamed if passes == 1 else in_two_passes)


def test_streaming_and_two_passes_agree() -> None:
    one, two = softmax_in(1), softmax_in(2)
    assert "statistics" in two.kernels()
    assert "statistics" not in one.kernels()
    tensors = inputs(**SIZES)
    found = []
    for attention in (one, two):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        out = attention(*leaves, enable_gqa=True, backend=BACKEND)
        found.append([out, *torch.autograd.grad(out, leaves, normal(*out.shape))])
    for place, (single, double) in enumerate(zip(*found, strict=True)):
        assert_rows_close(single.reshape(1, -1), double.reshape(1, -1).double(), TOLERANCE, f"{place}")


@pytest.mark.parametrize("spoilt", [lambda t: t * 1.01, lambda t: (t + t.detach()) / 2], ids=["output", "gradient"])
def test_what_is_wrong_is_found(spoilt: Callable[[Tensor], Tensor]) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, t: Tensor, backend: str) -> list[Tensor]:
        return [(q + k.sum() + v.sum()).sum(-1) * (t if backend == "reference" else spoilt(t))]

    with pytest.raises(AssertionError, match="output or gradient"):
        check_call(function, torch.ones(()))

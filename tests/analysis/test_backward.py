"""Derivatives of normalizers and weight mods, from what the forward keeps, against autograd of the reference."""

from __future__ import annotations

import torch
from compare import assert_rows_close
from derivations import called, captured, forward, gradients, kept
from hypothesis import given, settings
from hypothesis import strategies as st
from normalizers import row
from strategies import Case, cases

from attndsl.analysis.backward import differentiate
from attndsl.analysis.streaming import Refusal, stream
from attndsl.reference import attend

PRECISE = 1e-9
RANDOM = cases(max_programs=4, max_length=17, tensor_offsets=True, scores=False, sinks=False, row=row)


def is_float_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def check(case: Case, seed: int) -> None:
    """All gradients of a case, where its derivation does not refuse."""
    streaming = stream(case.variant)
    assert not isinstance(streaming, Refusal)
    backward = differentiate(case.variant, streaming)
    if isinstance(backward, Refusal):
        assert {reason.code for reason in backward.reasons} == {"maximum-not-invariant"}
        return
    generator = torch.Generator().manual_seed(seed)
    inputs = case.inputs(seed, torch.float64, requires_grad=True)
    tensors = {name: value.double().requires_grad_() for name, value in case.values.items() if is_float_tensor(value)}
    values = {**case.values, **tensors}
    result = attend(case.variant, values, *inputs, enable_gqa=case.kv_heads != case.q_heads, q_offset=case.q_offset)
    d_out = torch.randn(result.out.shape, generator=generator, dtype=torch.float64)
    d_lse = torch.randn(result.out.shape[:-1], generator=generator, dtype=torch.float64)
    outputs, seeds = [result.out], [d_out]
    if result.lse is not None and result.lse.requires_grad:
        outputs, seeds = [*outputs, result.lse], [*seeds, d_lse]
    theirs = torch.autograd.grad(outputs, [*inputs, *tensors.values()], seeds, allow_unused=True)

    call = called(
        case, *inputs, {name: getattr(value, "detach", lambda v=value: v)() for name, value in values.items()}
    )
    rows = kept(call, streaming, forward(call, streaming, [torch.arange(case.kv_len)])[0])
    d_scores, by_pair, by_row = gradients(call, backward, rows, d_out, d_lse if result.lse is not None else 0 * d_lse)
    scale, ratio = call.q.shape[-1] ** -0.5, case.q_heads // case.kv_heads
    d_k = (d_scores.transpose(-1, -2) @ call.q * scale).unflatten(1, (case.kv_heads, ratio)).sum(2)
    found = [d_scores @ call.k * scale, d_k, None, *captured(call, [*by_pair, *by_row], tensors).values()]
    for name, ours, expected in zip(("q", "k", "v", *tensors), found, theirs, strict=True):
        if ours is not None:
            expected = torch.zeros_like(ours) if expected is None else expected
            assert_rows_close(ours.reshape(1, -1), expected.reshape(1, -1), PRECISE, f"gradient of {name}")


@settings(max_examples=300)
@given(RANDOM, st.integers(0, 99))
def test_gradients_of_random_normalizers_are_those_of_the_reference(case: Case, seed: int) -> None:
    check(case, seed)

"""Requirements on calls: which calls are refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import attndsl as ad

CALLS = {
    "grid-keys": ("grid g(y = 4, x = 5) mask g(kv_idx).x == 0", 20, 21, 0),
    "grid-queries": ("grid g(y = 4, x = 5) mask g(q_idx).x == 0", 7, 3, torch.tensor([3, 14])),
    "grid-before": ("grid g(y = 4, x = 5) mask g(q_idx).x == 0", 3, 3, -1),
    "order-lengths": ("grid g(y = 4, x = 6) tile (2, 3)", 23, 25, 0),
    "order-offset": ("grid g(y = 4, x = 6) tile (2, 3)", 24, 24, torch.tensor([0, 1])),
    "both": ('require q_len >= 2, "too few" require kv_len % 8 == 0, "a multiple of 8"', 1, 9, 0),
    "floats": ('require exp(beta) * float(q_len) < 100.0, "too hot"', 14, 3, 0),
    "correlated": ('require q_idx % 4 != 3, "queries of a fourth kind"', 4, 3, 0),
}


def attention(body: str) -> ad.Attention:
    return ad.parse(f"attention a(beta: float = 2.0, window: int = 3) {{ {body} }}", "a.attn").a.bind()


def call(subject: ad.Attention, q_len: int, kv_len: int, q_offset: int | torch.Tensor = 0) -> torch.Tensor:
    batch = q_offset.numel() if isinstance(q_offset, torch.Tensor) else 1
    q, k = torch.zeros(batch, 1, q_len, 4), torch.zeros(batch, 1, kv_len, 4)
    return subject.reference(q, k, k, q_offset=q_offset)


@pytest.mark.parametrize("name", CALLS)
def test_refused(name: str, golden: Callable[..., None]) -> None:
    body, q_len, kv_len, q_offset = CALLS[name]
    subject = attention(body)
    with pytest.raises(ad.DiagnosticError) as called:
        call(subject, q_len, kv_len, q_offset)
    with pytest.raises(ad.DiagnosticError) as planned:
        subject.plan(q_len, kv_len, q_offset=q_offset, batch=2 if isinstance(q_offset, torch.Tensor) else 1)
    assert str(called.value) == str(planned.value)
    assert {diagnostic.code for diagnostic in called.value.diagnostics} == {"requirement"}
    golden(str(called.value), "diagnostics", name=f"requirement-{name}")


def test_calls_that_meet_requirements_pass() -> None:
    call(attention(CALLS["grid-keys"][0]), 33, 20)
    call(attention(CALLS["grid-queries"][0]), 7, 3, torch.tensor([3, 13]))
    call(attention(CALLS["order-offset"][0]), 24, 24, torch.tensor([0, 0]))
    call(attention(CALLS["floats"][0]), 13, 3)
    call(attention(CALLS["correlated"][0]), 3, 3)
    call(attention(CALLS["correlated"][0]), 3, 3, torch.tensor([4, 8]))
    call(attention(CALLS["correlated"][0]), 0, 3)


def test_each_call_is_checked_with_its_own_values() -> None:
    subject = attention('require window >= 1, "a window counts keys" mask q_idx - kv_idx < window')
    call(subject, 8, 8)
    with pytest.raises(ad.DiagnosticError, match="`window` is 0"):
        call(subject.bind(window=0), 8, 8)
    call(subject, 8, 8)

"""Calls by hand: outputs, statistics, backends, and what nobody sees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attentions import ALIBI, CAUSAL, DOCUMENTS, SINK, by_hand, lower, not_interpreted, poisoned, qkv, text
from compare import assert_rows_close
from torch import Tensor

import attndsl as ad
from attndsl.diagnostics import DiagnosticError, UnsupportedError
from attndsl.runtime import facts

# Outputs.


def test_output_and_statistics_by_hand() -> None:
    q, k, v = qkv(2, 3, 17, 23, dtype=torch.float64)
    out, aux = text(CAUSAL)(q, k, v, return_aux=True)
    expected, lse = by_hand(q, k, v, lower(17, 23))
    assert_rows_close(out, expected, 1e-12)
    assert_rows_close(aux.lse, lse, 1e-12)
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~lower(17, 23), -torch.inf)
    assert_rows_close(aux.max_score, scores.amax(-1), 1e-12)


def test_statistics_by_name() -> None:
    attention, tensors = text(CAUSAL), qkv()
    out, aux = attention(*tensors, return_aux=["lse"])
    assert aux.lse.shape == (1, 2, 5)
    assert aux.max_score is None
    assert torch.equal(out, attention(*tensors))
    _, aux = attention(*tensors, return_aux=("max_score",))
    assert aux.lse is None
    assert attention(*tensors, return_aux=[])[1] == ad.Aux()


@not_interpreted
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_maximum_is_a_constant_on_every_backend(backend: str) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in qkv())
    out, aux = text(CAUSAL)(q, k, v, backend=backend, return_aux=True)
    assert (out.requires_grad, aux.lse.requires_grad, aux.entropy.requires_grad) == (True, True, True)
    assert not aux.max_score.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        aux.max_score.sum().backward()


def test_everything_defined_is_returned_where_there_is_no_lse() -> None:
    _, aux = text("attention a {\n    normalizer  sigmoid(score)\n}")(*qkv(), return_aux=True, backend="reference")
    assert aux.lse is None
    assert aux.max_score is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_of_what_is_returned(dtype: torch.dtype) -> None:
    out, aux = text(CAUSAL)(*qkv(dtype=dtype), return_aux=True)
    assert out.dtype is dtype
    assert aux.lse.dtype is aux.max_score.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)


def test_scale_offset_and_groups_by_hand() -> None:
    q, k, v = qkv(2, 4, 6, 9, dtype=torch.float64, kv_heads=2)
    out = text(CAUSAL)(q, k, v, scale=0.25, enable_gqa=True, q_offset=3)
    wide_k, wide_v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    expected, _ = by_hand(q * (0.25 * 8**0.5), wide_k, wide_v, lower(6, 9, 3))
    assert_rows_close(out, expected, 1e-12)


def test_an_offset_for_each_batch() -> None:
    q, k, v = qkv(2, 1, 4, 8, dtype=torch.float64)
    out = text(CAUSAL)(q, k, v, q_offset=torch.tensor([0, 4]))
    live = torch.stack([lower(4, 8), lower(4, 8, 4)])[:, None]
    assert_rows_close(out, by_hand(q, k, v, live)[0], 1e-12)


def test_numbers_of_numpy_are_numbers() -> None:
    np = pytest.importorskip("numpy")
    attention, tensors = text(ALIBI, slopes=torch.ones(2), window=np.int64(3)), qkv()
    found = attention(*tensors, q_offset=np.int32(1), scale=np.float32(0.5))
    assert torch.equal(found, text(ALIBI, slopes=torch.ones(2), window=3)(*tensors, q_offset=1, scale=0.5))


def test_rows_without_a_live_key() -> None:
    q, k, v = qkv(q_len=3, kv_len=4)
    out, aux = text(DOCUMENTS, doc=torch.tensor([[1, 2, 2, 2]]))(q, k, v, q_offset=0, return_aux=True)
    assert aux.lse.isfinite().all()
    out, aux = text("attention a {\n    mask  kv_idx < q_idx\n}")(q, k, v, return_aux=True)
    assert out[..., 0, :].eq(0).all()
    assert aux.lse[..., 0].eq(-torch.inf).all()
    assert aux.max_score[..., 0].eq(-torch.inf).all()


def test_the_sink_of_a_row_without_a_live_key() -> None:
    sink = torch.tensor([0.5, -2.0])
    out, aux = text(SINK, sink=sink)(*qkv(), return_aux=True)
    assert out[..., 0, :].eq(0).all()
    assert torch.equal(aux.lse[0, :, 0], sink)


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 0, 3, 3), (1, 2, 0, 3), (1, 2, 3, 0), (0, 0, 0, 0)])
def test_nothing_to_attend(shape: tuple[int, int, int, int]) -> None:
    batch, heads, q_len, kv_len = shape
    q, k, v = torch.ones(batch, heads, q_len, 8), *(torch.ones(batch, heads, kv_len, 8) for _ in "kv")
    out, aux = text(ALIBI, slopes=torch.ones(heads))(q, k, v, return_aux=True)
    assert out.shape == q.shape
    assert out.eq(0).all()
    assert aux.lse.shape == (batch, heads, q_len)
    assert aux.lse.eq(-torch.inf).all()


def test_values_without_columns() -> None:
    q, k, _ = qkv()
    assert text(CAUSAL)(q, k, torch.ones(1, 2, 5, 0)).shape == (1, 2, 5, 0)


# NaN and what nobody sees.


def test_keys_that_nobody_sees_never_contribute() -> None:
    attention = text(ALIBI, slopes=torch.ones(2), window=3)
    clean, dirty = poisoned()
    expected = attention(*clean, q_offset=2, return_aux=True)
    found = attention(*dirty, q_offset=2, return_aux=True)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].lse, expected[1].lse)


def test_queries_without_a_live_key_never_contribute() -> None:
    q, k, v = qkv()
    q[:, :, 0] = torch.nan
    out, aux = text("attention a {\n    mask  kv_idx < q_idx\n}")(q, k, v, return_aux=True)
    assert out.isfinite().all()
    assert aux.lse[..., 1:].isfinite().all()


def test_gradients_of_what_nobody_sees_are_zero() -> None:
    attention = text(ALIBI, slopes=torch.ones(2), window=3)
    _, dirty = poisoned()
    tensors = [tensor.requires_grad_() for tensor in dirty]
    attention(*tensors, q_offset=2).sum().backward()
    for tensor in tensors:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert tensors[1].grad is not None
    assert tensors[1].grad[:, :, 8].eq(0).all()


def test_what_lies_beyond_the_lengths_never_shows() -> None:
    """Views into larger buffers: rows behind the last key hold NaN."""
    clean = qkv(1, 2, 6, 9)
    views = []
    for tensor in clean:
        buffer = torch.full((1, 2, 32, 16), torch.nan)
        buffer[:, :, : tensor.shape[2], :8] = tensor
        views.append(buffer[:, :, : tensor.shape[2], :8])
    assert torch.equal(text(CAUSAL)(*views), text(CAUSAL)(*clean))


# Backends.


@not_interpreted
def test_auto_is_native_kernels_on_the_cpu() -> None:
    attention, tensors = text(CAUSAL), qkv(dtype=torch.float64)
    found = attention(*tensors)
    assert torch.equal(found, attention(*tensors, backend="cpu"))
    assert not torch.equal(found, attention.reference(*tensors))
    assert_rows_close(found, attention.reference(*tensors), 1e-12)


@not_interpreted
def test_auto_gives_gradients_by_native_kernels() -> None:
    attention, (q, k, v) = text(CAUSAL), qkv(dtype=torch.float64)
    learnt = [k.clone().requires_grad_() for _ in range(2)]
    found, exact = attention(q, learnt[0], v), attention.reference(q, learnt[1], v)
    assert torch.equal(found, attention(q, k, v, backend="cpu"))
    (dk,), (expected,) = (
        torch.autograd.grad(out.square().sum(), one) for out, one in zip((found, exact), learnt, strict=True)
    )
    assert not torch.equal(dk, expected)
    assert_rows_close(dk, expected, 1e-12)


@not_interpreted
@pytest.mark.parametrize("setting", ["", "0"])
def test_native_kernels_run_without_triton(setting: str) -> None:
    code = f"""
import sys, torch, attndsl as ad
(causal,) = ad.parse({CAUSAL!r})
q = torch.ones(1, 1, 4, 16)
assert causal(q, q, q).shape == q.shape
print("triton" in sys.modules)
"""
    environment = {**os.environ, "TRITON_INTERPRET": setting}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"


def test_the_reference_takes_what_a_call_takes() -> None:
    tensors = qkv(1, 4, 6, 9, kv_heads=2)
    how: dict[str, Any] = {"scale": 0.3, "enable_gqa": True, "q_offset": 2, "return_aux": ["lse"]}
    attention = text(CAUSAL)
    assert torch.equal(attention.reference(*tensors, **how)[0], attention(*tensors, backend="reference", **how)[0])


def test_the_reference_is_differentiable() -> None:
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64, requires_grad=True)
    attention = text(ALIBI, slopes=slopes)
    q, k, v = (tensor.requires_grad_() for tensor in qkv(dtype=torch.float64, q_len=4))
    assert torch.autograd.gradcheck(lambda q, k, v, _: attention.reference(q, k, v), (q, k, v, slopes))


def refused(call: Callable[[], Any], kind: type[DiagnosticError]) -> dict[str, str]:
    with pytest.raises(kind) as caught:
        call()
    return {diagnostic.code: str(diagnostic) for diagnostic in caught.value.diagnostics}


def test_kernels_refuse_float64_and_say_why() -> None:
    message = refused(lambda: text(CAUSAL)(*qkv(dtype=torch.float64, dim=300), backend="triton"), UnsupportedError)
    assert {"kernel-dtype", "kernel-head-dim"} <= message.keys()
    assert "torch.float64" in message["kernel-dtype"]


def test_facts_are_learnt_once_and_tensors_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = facts.summarize

    def counted(tensor: Tensor) -> Any:
        reads.append(tensor.numel())
        return original(tensor)

    monkeypatch.setattr(facts, "summarize", counted)
    doc, tensors = torch.zeros(1, 5, dtype=torch.int64), qkv()
    attention = text(DOCUMENTS, doc=doc)
    for _ in range(3):
        attention(*tensors)
    attention(*qkv(q_len=4))
    attention.plan(5)
    assert reads == [5]
    doc[0, 1] = 1
    attention(*tensors)
    assert reads == [5, 5]

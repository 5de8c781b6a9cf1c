"""Kernels on a GPU at their default tiles: `pytest -m gpu`. Skipped, not passed, where there is none."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from compare import assert_rows_close

import attndsl as ad
from attndsl.runtime import tuning

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TEXT = """
attention causal() { mask kv_idx <= q_idx }
attention window(w: int = 200) { mask kv_idx <= q_idx and q_idx - kv_idx < w }
attention sinks_and_window(s: int = 4, w: int = 200) { mask kv_idx <= q_idx and (kv_idx < s or q_idx - kv_idx < w) }
attention documents(doc: int tensor[B, N]) { mask kv_idx <= q_idx and doc[b, q_idx] == doc[b, kv_idx] }
attention alibi(slopes: tensor[H]) { mask kv_idx <= q_idx  score score - slopes[h] * (q_idx - kv_idx) }
attention relative(bias: tensor[H, D]) { score score + bias[h, q_idx - kv_idx + kv_len - 1] }
attention soft_cap(cap: float = 20.0, sink: tensor[H]) {
    score cap * tanh(score / cap)
    normalizer softmax(sink = sink[h])
}
attention strided(d: int = 3) { mask (q_idx - kv_idx) % d == 0 }
"""
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
LENGTHS = ((1, 1), (127, 129), (128, 128), (300, 1000), (1025, 1025))


def bound(name: str, batch: int, heads: int, length: int) -> ad.Attention:
    captured = {
        "documents": {"doc": (torch.arange(length) // 100).expand(batch, length).contiguous().cuda()},
        "alibi": {"slopes": torch.linspace(0.5, 0.01, heads, device="cuda")},
        "relative": {"bias": torch.randn(heads, 2 * length + 1, device="cuda")},
        "soft_cap": {"sink": torch.randn(heads, device="cuda")},
    }
    return getattr(ad.parse(TEXT, "gpu.attn"), name)(**captured.get(name, {}))


def qkv(q_len: int, kv_len: int, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((2, 4, q_len, head_dim), (2, 2, kv_len, head_dim), (2, 2, kv_len, head_dim))
    return tuple(torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes)


def check(attention: ad.Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: object) -> torch.Tensor:
    out, aux = attention(q, k, v, enable_gqa=True, return_aux=True, backend="triton", **how)
    exact, expected = attention.reference(q.double(), k.double(), v.double(), enable_gqa=True, return_aux=True, **how)
    assert_rows_close(out, exact, TOLERANCE[q.dtype], "output")
    assert_rows_close(aux.lse[..., None], expected.lse[..., None], TOLERANCE[q.dtype], "lse")
    return out


@pytest.mark.parametrize("name", [variant.name for variant in ad.parse(TEXT, "gpu.attn")])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_variants(name: str, dtype: torch.dtype) -> None:
    for (q_len, kv_len), head_dim in itertools.product(LENGTHS, (64, 128)):
        check(bound(name, 2, 4, max(q_len, kv_len)), *qkv(q_len, kv_len, head_dim, dtype))


@pytest.mark.parametrize("head_dim", [1, 17, 80, 96, 192, 256])
def test_head_dims(head_dim: int) -> None:
    for dtype in TOLERANCE:
        check(bound("window", 2, 4, 300), *qkv(300, 300, head_dim, dtype))


def test_offsets() -> None:
    q, k, v = qkv(16, 700, 64, torch.bfloat16)
    check(bound("window", 2, 4, 700), q, k, v, q_offset=500)
    check(bound("window", 2, 4, 700), q, k, v, q_offset=torch.tensor([500, 3], device="cuda"))


def test_the_general_kernel() -> None:
    attention = bound("window", 2, 4, 300).bind(w=2**40)
    check(attention, *qkv(300, 300, 64, torch.bfloat16))


def test_the_same_bits_every_time() -> None:
    attention, tensors = bound("documents", 2, 4, 1025), qkv(1025, 1025, 64, torch.bfloat16)
    first = check(attention, *tensors)
    assert all(torch.equal(attention(*tensors, enable_gqa=True), first) for _ in range(20))


def test_captured_values_are_read_at_the_call() -> None:
    doc = torch.zeros(2, 300, dtype=torch.int64, device="cuda")
    attention, tensors = ad.parse(TEXT).documents(doc=doc), qkv(300, 300, 64, torch.float32)
    before = check(attention, *tensors)
    doc[:, 100:] = 1
    assert not torch.equal(check(attention, *tensors), before)


def test_poison_beyond_the_mask_is_not_seen() -> None:
    q, k, v = qkv(300, 400, 64, torch.bfloat16)
    k[:, :, 300:], v[:, :, 300:] = torch.nan, torch.nan
    assert check(bound("causal", 2, 4, 400), q, k, v).isfinite().all()


def test_lengths_and_windows_share_one_kernel() -> None:
    import triton

    compiled: list[object] = []
    hook = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda **report: compiled.append(report) or False
    try:
        attention = ad.parse(TEXT).window()
        for length, window in itertools.product((65, 128, 1000), (1, 16, 77)):
            attention.bind(w=window)(*qkv(length, length, 64, torch.bfloat16), enable_gqa=True)
    finally:
        triton.knobs.runtime.jit_post_compile_hook = hook
    assert len(compiled) <= 1


def test_tuning_keeps_a_tile_that_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And passes over one that does not fit."""
    monkeypatch.setattr(tuning, "cache_dir", lambda: tmp_path)
    attention, tensors = bound("window", 2, 4, 1025), qkv(1025, 1025, 128, torch.bfloat16)
    report = attention.tune(*tensors, enable_gqa=True, backward=True, candidates=[(64, 32), (64, 64, 4, 2), (256, 256)])
    assert set(report.chosen) == {"forward", "backward_dq", "backward_dkv"}
    for kernel in report.kernels:
        fits = {(trial.tile.block_m, trial.tile.block_n): trial.ms is not None for trial in kernel.trials}
        assert fits[64, 32]
        assert not fits[256, 256]
    check(attention, *tensors)
    tuning.forget_tiles()
    check(attention, *tensors)

"""Calls that kernels run, and calls that are checked."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attentions import ALIBI, CAUSAL, KERNELS, by_hand, emissions, lower, poisoned, qkv, text
from compare import assert_rows_close
from launches import INTERPRETING, on_kernels

from attndsl import calling, compiler
from attndsl.codegen.plan import KernelPlan, Target
from attndsl.diagnostics import UnsupportedError, VerifyError
from attndsl.runtime.native.build import text_of


@pytest.fixture
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails every call of the reference."""

    def used(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the kernel path evaluated the reference")

    monkeypatch.setattr(calling, "attend", used)
    return


@pytest.mark.usefixtures("kernels_only")
class TestKernel:
    pytestmark = on_kernels

    @pytest.mark.parametrize("backend", ["auto", KERNELS])
    def test_output_and_statistics_by_hand(self, backend: str) -> None:
        q, k, v = qkv(1, 2, 33, 40)
        out, aux = text(CAUSAL)(q, k, v, backend=backend, return_aux=True)
        expected, lse = by_hand(q.double(), k.double(), v.double(), lower(33, 40))
        assert_rows_close(out, expected, 1e-5)
        assert_rows_close(aux.lse, lse, 1e-5)
        assert aux.max_score.shape == (1, 2, 33)

    @pytest.mark.skipif(not INTERPRETING, reason="native kernels take float64")
    def test_float64_is_refused(self) -> None:
        with pytest.raises(UnsupportedError, match=r"torch\.float64"):
            text(CAUSAL)(*qkv(dtype=torch.float64))

    def test_new_values_are_the_same_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        emitted = emissions(monkeypatch)
        slopes = torch.zeros(2)
        attention, (q, k, v) = text(ALIBI, slopes=slopes, window=3), qkv()
        wide = by_hand(q, k, v, lower(5, 5))[0]
        assert not torch.allclose(attention(q, k, v), wide)
        assert_rows_close(attention.bind(window=5)(q, k, v), wide, 1e-5)
        slopes.fill_(100.0)
        assert_rows_close(attention(q, k, v), v, 1e-5)
        assert emitted == ["forward"]

    def test_keys_that_nobody_sees_never_contribute(self) -> None:
        attention = text(ALIBI, slopes=torch.ones(2), window=3)
        clean, dirty = poisoned()
        assert torch.equal(attention(*dirty, q_offset=2), attention(*clean, q_offset=2))

    @pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 0, 3, 3), (1, 2, 0, 3), (1, 2, 3, 0)])
    def test_nothing_to_attend(self, shape: tuple[int, int, int, int]) -> None:
        batch, heads, q_len, kv_len = shape
        q, k, v = torch.ones(batch, heads, q_len, 8), *(torch.ones(batch, heads, kv_len, 8) for _ in "kv")
        out, aux = text(ALIBI, slopes=torch.ones(max(heads, 1)))(q, k, v, return_aux=True)
        assert out.shape == q.shape
        assert out.eq(0).all()
        assert aux.lse.eq(-torch.inf).all()

    def test_values_without_columns(self) -> None:
        q, k, v = qkv()
        out, aux = text(CAUSAL)(q, k, v[..., :0], return_aux=True)
        assert out.shape == (1, 2, 5, 0)
        assert_rows_close(aux.lse, by_hand(q, k, v, lower(5, 5))[1], 1e-5)

    def test_a_copy_and_a_pickle_run(self) -> None:
        attention, tensors = text(ALIBI, slopes=torch.ones(2)), qkv()
        expected = attention(*tensors)
        assert torch.equal(copy.deepcopy(attention)(*tensors), expected)
        assert torch.equal(pickle.loads(pickle.dumps(attention))(*tensors), expected)


BREAKS = {
    "mask": ("live = kv_idx <= q_idx", "live = kv_idx < q_idx", "out"),
    "output": ("out = acc /", "out = 1.001 * acc /", "out"),
    "nan": ("out = acc /", "out = float('nan') * acc /", "out"),
    "lse": ("m_i + tl.log(l_i)", "m_i + 1.01 * tl.log(l_i)", "lse"),
    "max": ("m_i, mask=row_ok", "m_i + 0.1, mask=row_ok", "max_score"),
}
NATIVE_BREAKS = {
    "mask": ("vbool(kv_idx <= q_idx)", "vbool(kv_idx < q_idx)", "out"),
    "output": ("return factor *", "return 1.001f * factor *", "out"),
    "nan": ("return factor *", "return NAN * factor *", "out"),
    "lse": ("m_i + log(l_i)", "m_i + 1.01f * log(l_i)", "lse"),
    "max": ("= max_score[lane]", "= max_score[lane] + 0.1f", "max_score"),
}
"""Right text of a kernel, what to put in its place, and where that shows."""


class TestCheck:
    """`check=True` holds the kernel against the reference."""

    pytestmark = on_kernels

    def test_a_right_kernel_passes(self) -> None:
        tensors = qkv()
        attention = text(ALIBI, slopes=torch.ones(2))
        assert torch.equal(attention(*tensors, check=True), attention(*tensors))

    @pytest.mark.parametrize("right, wrong, what", (BREAKS if INTERPRETING else NATIVE_BREAKS).values(), ids=BREAKS)
    def test_a_broken_kernel_is_caught(
        self, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str, what: str
    ) -> None:
        target = Target.TRITON if INTERPRETING else Target.CPP
        original = compiler.EMITTERS[target]

        def broken(plan: KernelPlan) -> str:
            written = text_of(original(plan))
            assert right in written
            return written.replace(right, wrong)

        monkeypatch.setitem(compiler.EMITTERS, target, broken)
        with pytest.raises(VerifyError, match=f"kernel's {what} differs"):
            text(CAUSAL)(*qkv(), check=True)

    def test_a_divisor_of_zero_is_no_weight_that_is_not_finite(self) -> None:
        q, k, v = (tensor.abs() for tensor in qkv())
        rectified = text("attention rectified { normalizer max(score, 0.0) / row_sum(max(score, 0.0)) }")
        assert not rectified(-q, k, v, check=True).any()
        assert rectified(q, k, v, check=True).any()

    def test_nan_at_a_key_that_is_seen_is_the_callers(self) -> None:
        q, k, v = qkv()
        v[:, :, 0] = torch.nan
        assert text(CAUSAL)(q, k, v, check=True).isnan().all()

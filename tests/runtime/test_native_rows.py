"""What native kernels leave of each row beside the output, against the same derivation in dense torch."""

from __future__ import annotations

import pytest
import torch
from compare import assert_rows_close
from engines import DenseEngine
from launches import INTERPRETING, Program, inputs

import attndsl as ad

pytestmark = pytest.mark.skipif(INTERPRETING, reason="native kernels run in the other tier")

N = ad.normalizers
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@ad.mask_mod
def mostly_causal(q_idx, kv_idx):
    """Rows without a key, partial tiles and full ones."""
    return (kv_idx <= q_idx + 70) & (q_idx != 7)


@ad.weight_mod
def squared(weight):
    return weight * weight / (ad.abs(weight) + 0.5)


def subject_of(normalizer: object, weight_mod: object = None) -> Program:
    attention = ad.attention(mask_mod=mostly_causal, normalizer=normalizer, weight_mod=weight_mod)
    return Program(attention.variant, attention._values())


KEPT = {
    "softmax": lambda: subject_of(N.softmax()),
    "softmax squared": lambda: subject_of(N.softmax(), squared),
    "sink": lambda: subject_of(N.softmax(sink=torch.randn(2))),
    "sink squared": lambda: subject_of(N.softmax(sink=torch.tensor([1.0, 200.0])), squared),
    "sigmoid": lambda: subject_of(N.sigmoid()),
    "relu": lambda: subject_of(N.relu()),
    "relu squared": lambda: subject_of(N.relu(), squared),
    "taylor": lambda: subject_of(N.taylor()),
    "signed": lambda: subject_of(N.signed(factor=torch.randn(2))),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", KEPT)
def test_what_a_backward_reads_of_rows(name: str, dtype: torch.dtype) -> None:
    subject = KEPT[name]()
    call = subject.call(*inputs(batch=2, heads=2, kv_heads=1, q_len=70, kv_len=150, dtype=dtype))
    exact = subject.call(*(part.double() for part in (call.q, call.k, call.v)))
    wanted = DenseEngine(subject.variant).forward(exact)
    rows = subject.run(call, fast=True)
    assert rows.kept.keys() == wanted.kept.keys()
    live = wanted.max_score != -torch.inf
    for kept, values in wanted.kept.items():
        assert rows.kept[kept].dtype is dtype
        found = torch.where(live, rows.kept[kept], 0.0)
        assert_rows_close(found[..., None], torch.where(live, values, 0.0)[..., None], TOLERANCE[dtype], kept)


def test_row_outputs_are_nobody_elses_memory() -> None:
    _, aux = ad.attention()(*inputs(), backend="cpu", return_aux=["lse", "max_score"])
    assert aux.lse.untyped_storage().data_ptr() != aux.max_score.untyped_storage().data_ptr()


@ad.normalizer
def below_the_size(score):
    e = ad.exp(score - ad.row_max(abs(score)))
    return e / (ad.row_sum(e) + ad.row_sum(e * 0.5))


def test_a_maximum_far_above_all_scores_hides_none_of_them() -> None:
    """Beside the largest score what is 2^-100 is nothing; beside another maximum it may be all there is."""
    torch.manual_seed(0)
    q, v = torch.ones(1, 1, 40, 16, requires_grad=True), torch.randn(1, 1, 70, 16)
    k = -9.5 + 0.01 * torch.randn(1, 1, 70, 16)
    attention = ad.attention(normalizer=below_the_size)
    out, wanted = attention(q, k, v), attention.reference(q.double(), k.double(), v.double())
    (found,), (exact,) = torch.autograd.grad(out.sum(), q), torch.autograd.grad(wanted.sum(), q)
    assert exact.abs().max() > 1e-3
    assert float((out - wanted).detach().abs().max()) < 1e-5
    assert float((found - exact).abs().max()) < 1e-5

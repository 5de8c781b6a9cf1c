"""Merged parts are one softmax over the keys of all of them, with its gradients."""

from __future__ import annotations

import pytest
import torch
from compare import assert_rows_close
from torch import Tensor

import attndsl as ad

WIDTHS = (5, 1, 9)


def parts(scores: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Softmax over stretches of keys, each alone; the output of a row without a key is NaN."""
    found, start = [], 0
    for width in WIDTHS:
        some = scores[..., start : start + width]
        found.append((some.softmax(-1) @ values[..., start : start + width, :], some.logsumexp(-1)))
        start += width
    return found


def call(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    scores, values = torch.randn(2, 3, 4, sum(WIDTHS)).double(), torch.randn(2, 3, sum(WIDTHS), 6).double()
    return scores.requires_grad_(), values.requires_grad_()


def dead(scores: Tensor) -> Tensor:
    """Row 0 sees nothing of the first part, row 1 of the first two, row 2 nothing at all."""
    shut = torch.zeros(4, sum(WIDTHS), dtype=torch.bool)
    shut[0, :5], shut[1, :6], shut[2] = True, True, True
    return scores.masked_fill(shut, -torch.inf)


def test_parts_are_one_softmax() -> None:
    scores, values = call()
    out, lse = ad.merge(*parts(scores, values))
    assert_rows_close(out, scores.softmax(-1) @ values, 1e-12)
    assert_rows_close(lse, scores.logsumexp(-1), 1e-12)
    assert all(map(torch.equal, ad.merge(parts(scores, values)), (out, lse))), "a list of parts says the same"


def test_gradients_of_outputs_and_sums() -> None:
    scores, values = call()
    directions = [torch.randn(2, 3, 4, 6).double(), torch.randn(2, 3, 4).double()]
    found = torch.autograd.grad(ad.merge(*parts(scores, values)), (scores, values), directions)
    whole = scores.softmax(-1) @ values, scores.logsumexp(-1)
    for one, other in zip(found, torch.autograd.grad(whole, (scores, values), directions), strict=True):
        assert_rows_close(one, other, 1e-11)


def test_rows_dead_in_some_or_all_parts() -> None:
    scores, values = call()
    given = [(out.detach().requires_grad_(), lse.detach().requires_grad_()) for out, lse in parts(dead(scores), values)]
    assert any(bool(out.isnan().any()) for out, _ in given)
    out, lse = ad.merge(*given)
    assert (out[..., 2, :] == 0).all()
    assert (lse[..., 2] == -torch.inf).all()
    alive = [0, 1, 3]
    assert_rows_close(out[..., alive, :], (dead(scores).softmax(-1) @ values)[..., alive, :], 1e-12)
    (out.sum() + lse[..., alive].sum()).backward()
    for each in (tensor.grad for part in given for tensor in part):
        assert each is not None
        assert each.isfinite().all()
        assert (each[..., 2, :] if each.ndim == 4 else each[..., 2]).eq(0).all()


def test_attentions_merge() -> None:
    """Near keys and far keys are causal attention; half precision keeps its type."""
    q, k, v = torch.randn(3, 1, 2, 70, 16).bfloat16()
    near = ad.attention(mask_mod=ad.masks.sliding_window(window=20))
    far = ad.attention(mask_mod=lambda q_idx, kv_idx: q_idx - kv_idx >= 20)
    out, lse = ad.merge(near(q, k, v, return_aux=True), far(q, k, v, return_aux=["lse"]))
    whole, aux = ad.attention(mask_mod=ad.masks.causal).reference(q.double(), k.double(), v.double(), return_aux=True)
    assert out.dtype == torch.bfloat16
    assert_rows_close(out, whole, 2e-2)
    assert_rows_close(lse, aux.lse, 1e-5)


@pytest.mark.parametrize(
    "given, message",
    [
        ((), "no part"),
        (([],), "no part"),
        ((torch.zeros(2, 3),), "part 0 is not a pair"),
        (((torch.zeros(2, 3), torch.zeros(3)),), r"the `lse` of part 0 is of shape \(3,\), expected \(2,\)"),
        (((torch.zeros(2, 3), None),), "part 0 has no `lse`"),
        (((torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 4), torch.zeros(2))), "part 1 is of shape"),
    ],
)
def test_what_is_no_part_is_refused(given: tuple, message: str) -> None:
    with pytest.raises(ad.DiagnosticError, match=message):
        ad.merge(*given)

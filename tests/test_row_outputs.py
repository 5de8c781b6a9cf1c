"""Entropy and mass against sums over the weights, which an identity for values shows; native kernels against both."""

from __future__ import annotations

import pytest
import torch
from launches import INTERPRETING
from torch import Tensor

import attndsl as ad
from attndsl.diagnostics import CallError, ProgramError

generator = torch.Generator().manual_seed(0)
SIZES = (2, 4, 7, 9)
Q = torch.randn(2, 4, 7, 5, generator=generator, dtype=torch.float64)
K = torch.randn(2, 2, 9, 5, generator=generator, dtype=torch.float64)
V = torch.eye(9, dtype=torch.float64).expand(2, 2, 9, 9)
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 2, 2, 2, 2, 2]])


def before(q_idx, kv_idx):
    """The first row sees nothing."""
    return kv_idx < q_idx


def asked(attention: ad.Attention, what: object, **how: object) -> tuple[Tensor, ad.Aux]:
    """What the reference returns, once native kernels have returned the same."""
    exact = attention.reference(Q, K, V, enable_gqa=True, return_aux=what, **how)
    if not INTERPRETING:
        found = attention(Q, K, V, enable_gqa=True, return_aux=what, backend="cpu", **how)
        for one, other in zip(tensors(found), tensors(exact), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return exact


def tensors(result: tuple[Tensor, ad.Aux]) -> list[Tensor]:
    """The output and every statistic there is."""
    out, aux = result
    masses = aux.mass if isinstance(aux.mass, tuple) else (aux.mass,)
    return [one for one in (out, aux.lse, aux.max_score, aux.entropy, *masses) if one is not None]


@pytest.mark.parametrize("sink", [None, 0.5])
def test_entropy(sink: float | None) -> None:
    weights, aux = asked(ad.attention(mask_mod=before, normalizer=ad.softmax(sink)), ["entropy"])
    assert torch.allclose(aux.entropy, -torch.special.xlogy(weights, weights).sum(-1))
    assert not aux.entropy[:, :, :2].any() or sink is not None
    assert (aux.lse, aux.max_score, aux.mass) == (None, None, None)


def test_entropy_of_final_weights() -> None:
    halved = ad.attention(weight_mod=ad.weights.affine(alpha=0.5, beta=0.0))
    weights, aux = asked(halved, ["entropy"])
    assert torch.allclose(weights.sum(-1), torch.tensor(0.5).double())
    assert torch.allclose(aux.entropy, -torch.special.xlogy(weights, weights).sum(-1))


def test_a_weight_of_exactly_zero_has_no_entropy() -> None:
    weights, aux = asked(ad.attention(normalizer=ad.normalizers.sparsemax()), ["entropy"])
    assert (weights == 0).any()
    assert torch.allclose(aux.entropy, -torch.special.xlogy(weights, weights).sum(-1))


def test_mass() -> None:
    weights, aux = asked(ad.attention(mask_mod=before), [ad.aux.mass(lambda kv_idx: kv_idx < 4), "lse"])
    assert torch.allclose(aux.mass, weights[..., :4].sum(-1))
    assert aux.mass.shape == SIZES[:3]
    assert aux.lse is not None


def test_masses_of_heads_segments_and_offsets() -> None:
    """A predicate captures tensors and numbers; `q_idx` counts from the offset."""
    reach = 2
    near = ad.aux.mass(lambda q_idx, kv_idx: q_idx - kv_idx <= reach)
    first = ad.aux.mass(lambda h, kv_idx: kv_idx == h)
    alike = ad.aux.mass(lambda b, kv_idx, kv_len: SEGMENTS[b, kv_idx] == SEGMENTS[b, kv_len - 1])
    attention = ad.attention(score_mod=lambda score, h: score * SEGMENTS[0, h])  # a capture of the same name
    weights, aux = asked(attention, [near, first, alike], q_offset=3)
    distance = torch.arange(3, 10)[:, None] - torch.arange(9)
    assert isinstance(aux.mass, tuple)
    assert torch.allclose(aux.mass[0], (weights * (distance <= 2)).sum(-1))
    assert torch.allclose(aux.mass[1], weights[:, torch.arange(4), :, torch.arange(4)].permute(1, 0, 2))
    same = (SEGMENTS[:, -1:] == SEGMENTS)[:, None, None]
    assert torch.allclose(aux.mass[2], (weights * same).sum(-1))


def test_a_predicate_reads_its_tensors_at_each_call() -> None:
    chosen = torch.zeros(9, dtype=torch.bool)
    attention, mass = ad.attention(), ad.aux.mass(lambda kv_idx: chosen[kv_idx])
    assert not asked(attention, [mass])[1].mass.any()
    chosen[2] = True
    weights, aux = asked(attention, [mass])
    assert torch.allclose(aux.mass, weights[..., 2])


def test_everything() -> None:
    _, aux = asked(ad.attention(), True)
    assert None not in (aux.lse, aux.max_score, aux.entropy)
    assert aux.mass is None
    _, aux = asked(ad.attention(normalizer=ad.normalizers.relu()), True)
    assert aux.lse is None
    assert aux.entropy is not None


def test_beside_block_tables() -> None:
    table = ad.BlockTable(torch.tensor([True, False, True]).view(1, 1, 1, 3), block=(7, 3))
    weights, aux = asked(ad.attention(), ["entropy", ad.aux.mass(lambda kv_idx: kv_idx < 4)], blocks=table)
    assert not weights[..., 3:6].any()
    assert torch.allclose(aux.mass, weights[..., :4].sum(-1))


def test_single_precision_inputs_give_single_precision_sums() -> None:
    out, aux = ad.attention().reference(Q.half(), K.half(), V.half(), enable_gqa=True, return_aux=["entropy"])
    assert out.dtype is torch.float16
    assert aux.entropy.dtype is torch.float32


def test_a_predicate_is_a_condition() -> None:
    with pytest.raises(ProgramError, match="mask-not-boolean"):
        ad.aux.mass(lambda kv_idx: kv_idx)


def test_a_predicate_on_another_device() -> None:
    away = torch.zeros(9, dtype=torch.bool, device="meta")
    with pytest.raises(CallError, match="mixed-devices"):
        asked(ad.attention(), [ad.aux.mass(lambda kv_idx: away[kv_idx])])

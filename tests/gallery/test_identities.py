"""Identities between operators, in float64: what one call computes, other calls compute together.

Each is a way to run a published system by what is there, or a rule its gradient keeps. A name in a comment is that of
the rewrite in the catalog the gallery was drawn from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from torch import Tensor

import attndsl as ad

B, H, N, D = 2, 3, 29, 8
CAUSAL = torch.ones(N, N, dtype=torch.bool).tril()
EXACT = 1e-11


def tensors(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.fixture
def qkv() -> list[Tensor]:
    return tensors(*[(B, H, N, D)] * 3)


def attend(qkv: list[Tensor], *, causal: bool = True, aux: Any = ("lse",), **stages: Any) -> tuple[Tensor, Any]:
    """The dense meaning of a variant, causal if not told otherwise, with `lse`."""
    mask = stages.pop("mask_mod", None)
    if causal:
        mask = ad.masks.causal if mask is None else ad.masks.causal & mask
    return ad.attention(mask_mod=mask, **stages).reference(*qkv, return_aux=aux)


def scores(qkv: list[Tensor]) -> Tensor:
    return qkv[0] @ qkv[1].mT / D**0.5


def weights(qkv: list[Tensor]) -> Tensor:
    return scores(qkv).masked_fill(~CAUSAL, -torch.inf).softmax(-1)


def test_a_factor_of_the_weights_is_a_ratio_of_two_divisors(qkv: list[Tensor]) -> None:
    """WF1: (P * g) V = exp(lse' - lse) out', where out' and lse' are of the score plus log g."""
    gate = torch.rand(N, dtype=torch.float64) + 0.1
    out, aux = attend(qkv, score_mod=lambda score, kv_idx: score + torch.log(gate)[kv_idx])
    plain = attend(qkv)[1]
    gated, _ = attend(qkv, weight_mod=lambda weight, kv_idx: weight * gate[kv_idx], aux=["max_score"])
    assert_rows_close((aux.lse - plain.lse).exp()[..., None] * out, gated, EXACT)
    assert_rows_close(gated, (weights(qkv) * gate) @ qkv[2], EXACT)


@pytest.mark.parametrize(
    "normalizer, logarithm",
    [
        (ad.normalizers.sigmoid(bias=-1.0), lambda score: torch.log(torch.sigmoid(score - 1.0))),
        (ad.normalizer(lambda score: score * score), lambda score: torch.log(score * score)),
    ],
    ids=["sigmoid", "square"],
)
def test_weights_of_one_score_each_are_a_softmax_undone(
    qkv: list[Tensor], normalizer: Any, logarithm: Callable[[Any], Any]
) -> None:
    """WF2: f(s) V = exp(lse') out', where out' and lse' are of log f(s)."""
    out, aux = attend(qkv, score_mod=logarithm)
    assert_rows_close(aux.lse.exp()[..., None] * out, attend(qkv, normalizer=normalizer, aux=["max_score"])[0], EXACT)


def test_signed_weights_are_positive_ones_less_visible_values(qkv: list[Tensor]) -> None:
    """WF3: f(s) V = exp(lse') out' - n sum of visible v, with log(f(s) + n) as score."""
    out, aux = attend(qkv, score_mod=lambda score: torch.log(torch.tanh(score) + 2.0))
    visible = CAUSAL.double() @ qkv[2]
    direct, _ = attend(qkv, normalizer=ad.normalizer(lambda score: ad.tanh(score)), aux=["max_score"])
    assert_rows_close(aux.lse.exp()[..., None] * out - 2.0 * visible, direct, EXACT)


def test_chosen_keys_weighed_down_and_renormalized_are_a_bias(qkv: list[Tensor]) -> None:
    """WF4: P gamma, divided by its row sum, is attention on s + log gamma."""
    chosen = torch.arange(N) % 3 == 0
    gamma = torch.where(chosen, 1.0, 0.01).double()
    out, _ = attend(qkv, score_mod=lambda score, kv_idx: score + torch.log(gamma)[kv_idx])
    edited = weights(qkv) * gamma
    assert_rows_close(out, edited / edited.sum(-1, keepdim=True) @ qkv[2], EXACT)


def test_a_gate_on_some_keys_mixes_two_outputs(qkv: list[Tensor]) -> None:
    """WF5 and WF13: the mass of a set is exp(lse of the set - lse); a gate on it mixes its output with the rest."""
    chosen = torch.arange(N) % 3 == 0
    whole = attend(qkv)[1].lse
    inside, aux = attend(qkv, mask_mod=lambda kv_idx: chosen[kv_idx])
    outside, _ = attend(qkv, mask_mod=lambda kv_idx: ~chosen[kv_idx])
    mass = (aux.lse - whole).exp()[..., None]
    gated = weights(qkv) * (1.0 - 0.7 * chosen.double())
    assert_rows_close(0.3 * mass * inside + (1 - mass) * outside, gated @ qkv[2], EXACT)
    found = attend(qkv, aux=[ad.aux.mass(lambda kv_idx: chosen[kv_idx])])[1].mass
    assert_rows_close(found, mass[..., 0], EXACT)


def test_affine_weights_add_the_visible_values(qkv: list[Tensor]) -> None:
    """WF7 and BW2: (a P + b) V = a out + b sum of visible v, with the gradients of that."""
    direction, found = tensors((B, H, N, D), seed=3)[0], []
    q, k, v = (x.requires_grad_() for x in qkv)
    for out in (
        attend([q, k, v], weight_mod=ad.weights.affine(alpha=1.5, beta=-0.2), aux=["max_score"])[0],
        1.5 * attend([q, k, v])[0] - 0.2 * CAUSAL.double() @ v,
    ):
        found.append((out.detach(), *torch.autograd.grad(out, (q, k, v), direction)))
    for one, other in zip(*found, strict=True):
        assert_rows_close(one, other, EXACT)


def test_a_sink_scales_the_output(qkv: list[Tensor]) -> None:
    """WF11: a sink of logit c is sigmoid(lse - c) out; 1 added to the divisor is a sink at 0."""
    out, aux = attend(qkv)
    c = torch.tensor([0.7, -1.0, 2.0], dtype=torch.float64)
    share = torch.sigmoid(aux.lse - c[:, None])[..., None]
    assert_rows_close(attend(qkv, normalizer=ad.softmax(sink=c))[0], share * out, EXACT)
    plus_one, _ = attend(qkv, normalizer=ad.normalizers.softmax_plus_one(), aux=["max_score"])
    assert_rows_close(plus_one, torch.sigmoid(aux.lse)[..., None] * out, EXACT)


def test_a_virtual_key_is_a_part_to_merge(qkv: list[Tensor]) -> None:
    """WF12: one more key of logit z and value u, of each query its own, is a part with lse z and output u."""
    z, u = tensors((B, H, N), (B, H, N, D), seed=5)
    exponents = scores(qkv).masked_fill(~CAUSAL, -torch.inf).exp()
    direct = (exponents @ qkv[2] + z.exp()[..., None] * u) / (exponents.sum(-1) + z.exp())[..., None]
    assert_rows_close(ad.merge(attend(qkv), (u, z))[0], direct, EXACT)


def test_a_positive_kernel_over_its_sum_is_a_softmax_of_its_logarithm(qkv: list[Tensor]) -> None:
    """WF14 and LR4: Taylor weights directly, and by features [1, x, x (x) x / sqrt 2]."""
    out, _ = attend(qkv, causal=False, score_mod=lambda score: torch.log(1 + score + score * score / 2))
    direct, _ = attend(qkv, causal=False, normalizer=ad.normalizers.taylor(), aux=["max_score"])
    assert_rows_close(out, direct, EXACT)
    q, k = (
        torch.cat((torch.ones_like(x[..., :1]), x, (x[..., :, None] * x[..., None, :]).flatten(-2) / 2**0.5), -1)
        for x in (qkv[0] / D**0.5, qkv[1])
    )
    total = q @ (k.mT @ torch.ones(N, 1, dtype=torch.float64))
    assert_rows_close(q @ (k.mT @ qkv[2]) / total, direct, EXACT)


def test_a_vector_added_to_every_key_cancels(qkv: list[Tensor]) -> None:
    """FO6, and not under a normalizer that is not shift-invariant."""
    moved = [qkv[0], qkv[1] + tensors((D,), seed=7)[0], qkv[2]]
    assert_rows_close(attend(moved)[0], attend(qkv)[0], EXACT)
    sigmoid = {"normalizer": ad.normalizers.sigmoid(), "aux": ["max_score"]}
    assert (attend(moved, **sigmoid)[0] - attend(qkv, **sigmoid)[0]).abs().max() > 1e-2


def test_columns_of_values_carry_what_is_averaged(qkv: list[Tensor]) -> None:
    """FO7b and AX3: P [V, F] = [P V, P F]; an indicator column is the mass of a set."""
    chosen = (torch.arange(N) % 4 == 1).double()
    wide = torch.cat((qkv[2], chosen[:, None].expand(B, H, N, 1)), -1)
    out, aux = attend([*qkv[:2], wide], aux=[ad.aux.mass(lambda kv_idx: chosen[kv_idx] > 0.5)])
    assert_rows_close(out[..., :D], attend(qkv)[0], EXACT)
    assert_rows_close(out[..., D], aux.mass, EXACT)


def test_disjoint_parts_merge_in_any_order(qkv: list[Tensor]) -> None:
    """PM1: associative and commutative, with rows that are dead in some parts."""
    parts = [attend(qkv, mask_mod=lambda kv_idx, part=part: kv_idx % 3 == part) for part in (0, 1, 2)]
    whole, aux = attend(qkv)
    for order in ((0, 1, 2), (2, 0, 1)):
        first, second, third = (parts[part] for part in order)
        out, lse = ad.merge(ad.merge(first, second), third)
        assert_rows_close(out, whole, EXACT)
        assert_rows_close(lse, aux.lse, EXACT)


def test_gated_spans_are_no_merge(qkv: list[Tensor]) -> None:
    """PM6: a mixture of spans by gates differs from their merge by lse."""
    near = attend(qkv, mask_mod=lambda q_idx, kv_idx: q_idx - kv_idx < 5)
    far = attend(qkv, mask_mod=lambda q_idx, kv_idx: (q_idx - kv_idx >= 5) | (kv_idx == 0))
    mixed = 0.5 * near[0] + 0.5 * far[0]
    assert (mixed - ad.merge(near, far)[0]).abs().max() > 1e-2


def test_samples_stand_for_keys_by_a_bias(qkv: list[Tensor]) -> None:
    """PM3: keys sampled one in four weigh log 4 more, in one softmax or as a part whose lse is log 4 larger."""
    sampled = torch.arange(N) % 4 == 0
    own = attend(qkv, causal=False, mask_mod=lambda q_idx, kv_idx: q_idx // 8 == kv_idx // 8)
    others, aux = attend(
        qkv, causal=False, mask_mod=lambda q_idx, kv_idx: (q_idx // 8 != kv_idx // 8) & sampled[kv_idx]
    )
    joint, _ = attend(
        qkv,
        causal=False,
        mask_mod=lambda q_idx, kv_idx: (q_idx // 8 == kv_idx // 8) | sampled[kv_idx],
        score_mod=lambda score, q_idx, kv_idx: ad.where(q_idx // 8 == kv_idx // 8, score, score + 1.3862943611198906),
    )
    assert_rows_close(ad.merge(own, (others, aux.lse + 1.3862943611198906))[0], joint, EXACT)


def test_column_sums_are_a_swapped_call(qkv: list[Tensor]) -> None:
    """AX1 and AX2: with q and k exchanged, s - lse as score and the mask transposed, lse is the logarithm of the column
    sums of the weights, and exp(lse) out is P^T V."""
    q, k, v = qkv
    lse = attend(qkv)[1].lse
    out, aux = attend(
        [k, q, v],
        causal=False,
        mask_mod=lambda q_idx, kv_idx: q_idx <= kv_idx,
        score_mod=lambda score, b, h, kv_idx: score - lse[b, h, kv_idx],
    )
    assert_rows_close(aux.lse.exp(), weights(qkv).sum(-2), EXACT)
    assert_rows_close(aux.lse.exp()[..., None] * out, weights(qkv).mT @ v, EXACT)


def test_entropy_and_its_gradient(qkv: list[Tensor]) -> None:
    """AX4 and AX5: H = lse - sum P s, and dS = -g P (log P + H)."""
    q = qkv[0].requires_grad_()
    entropy = attend([q, *qkv[1:]], aux=["entropy"])[1].entropy
    p, s = weights(qkv), scores(qkv)
    logarithms = torch.where(CAUSAL, p.log(), 0.0)
    assert_rows_close(entropy, (attend(qkv)[1].lse - (p * s).sum(-1)), EXACT)
    g = tensors((B, H, N), seed=9)[0]
    flow = -g[..., None] * p * (logarithms + entropy.detach()[..., None])
    assert_rows_close(torch.autograd.grad(entropy, q, g)[0], flow.detach() @ qkv[1] / D**0.5, EXACT)


def test_the_gradient_of_lse_is_the_weights(qkv: list[Tensor]) -> None:
    """AX6: dS = g P."""
    q = qkv[0].requires_grad_()
    g = tensors((B, H, N), seed=9)[0]
    found = torch.autograd.grad(attend([q, *qkv[1:]])[1].lse, q, g)[0]
    assert_rows_close(found, (g[..., None] * weights(qkv)).detach() @ qkv[1] / D**0.5, EXACT)


@pytest.mark.parametrize(
    "weight_mod, passes",
    [(lambda weight, q_idx, kv_idx: weight * ad.exp(0.1 * (kv_idx - q_idx)), False), (None, False)],
    ids=["a factor of each pair", "none"],
)
def test_a_factor_keeps_the_delta_of_the_output(weight_mod: Any, passes: bool) -> None:
    """BW1 and BW5, applied: rowsum(dO * O) with the actual output is all the backward needs; no pass computes it."""
    attention = ad.attention(mask_mod=ad.masks.causal, weight_mod=weight_mod)
    assert ("backward_rows" in attention.kernels()) is passes


def test_sparsemax_subtracts_the_mean_over_its_support(qkv: list[Tensor]) -> None:
    """BW4: dS = 1[p > 0] (dP - the mean of dP over the support)."""
    q = qkv[0].requires_grad_()
    direction = tensors((B, H, N, D), seed=3)[0]
    out, _ = attend([q, *qkv[1:]], normalizer=ad.normalizers.sparsemax(), aux=["max_score"])
    simplex = {"normalizer": ad.normalizers.sparsemax(), "aux": ["max_score"]}
    p, _ = attend([*qkv[:2], torch.eye(N).double().expand(B, H, N, N)], **simplex)
    support, dp = (p > 1e-12).double(), direction @ qkv[2].mT
    mean = (support * dp).sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
    flow = support * (dp - mean)
    assert_rows_close(torch.autograd.grad(out, q, direction)[0], flow.detach() @ qkv[1] / D**0.5, 1e-9)


def test_levels_of_a_fenwick_tree_are_one_predicate() -> None:
    """LR3: bit_length(t xor s) tells which node of the tree a past token is summed in."""
    level = ad.attention(mask_mod=lambda q_idx, kv_idx: (kv_idx <= q_idx) & (ad.bit_length(q_idx ^ kv_idx) == 3))
    x = torch.zeros(1, 1, N, 4).double()
    seen = level.reference(x, x, torch.eye(N).double()[None, None])[0, 0] > 0
    expected = [[s <= t and (t ^ s).bit_length() == 3 for s in range(N)] for t in range(N)]
    assert torch.equal(seen, torch.tensor(expected))


@pytest.mark.parametrize("own, other", [(2, 1), (1, 2), (0, 0)])
def test_stripes_of_a_causal_mask(own: int, other: int) -> None:
    """LR9: q P + r_q >= k P + r_k is causal where r_q >= r_k, strictly causal otherwise; both are closed forms."""
    striped = ad.parse(f"attention s() {{ mask q_idx * 4 + {own} >= kv_idx * 4 + {other} }}").s()
    causal = "kv_idx <= q_idx" if own >= other else "kv_idx <= q_idx - 1"
    assert striped.ir().splitlines()[1].split(None, 1)[1] == causal


def test_strided_keys_are_blocks_of_sorted_tokens(qkv: list[Tensor]) -> None:
    """LR10: (i - j) % l == 0 and causal, tokens sorted by i % l, is block-diagonal and causal."""
    stride = 4
    order = torch.argsort(torch.arange(N) % stride, stable=True)
    ids = (torch.arange(N) % stride)[order]
    direct, _ = attend(qkv, mask_mod=lambda q_idx, kv_idx: (q_idx - kv_idx) % stride == 0)
    moved, _ = attend([x[:, :, order] for x in qkv], mask_mod=lambda q_idx, kv_idx: ids[q_idx] == ids[kv_idx])
    assert_rows_close(moved[:, :, order.argsort()], direct, EXACT)

"""Every normalizer and weight mod of the library against its formula, written out over the scores of one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from compare import assert_rows_close
from torch import Tensor

import attndsl as ad
from attndsl.analysis.backward import differentiate
from attndsl.analysis.streaming import Refusal, stream
from attndsl.diagnostics import CallError, DiagnosticError
from attndsl.frontend.decorators import Mod
from attndsl.frontend.parse import parse
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.printer import print_variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import attend

N, W = ad.normalizers, ad.weights
STAGES = {"normalizer": "normalizer", "weight": "weight_mod"}
BATCH, HEADS, ROWS, KEYS = 2, 3, 7, 9
PRECISE = 1e-12

generator = torch.Generator().manual_seed(0)
HEAD = torch.rand(HEADS, generator=generator, dtype=torch.float64) + 0.5
PRIOR = torch.rand(BATCH, KEYS, generator=generator, dtype=torch.float64)
ROW = torch.randn(BATCH, HEADS, ROWS, generator=generator, dtype=torch.float64)
Q, K = (torch.randn(BATCH, HEADS, size, 5, generator=generator, dtype=torch.float64) for size in (ROWS, KEYS))
V = torch.eye(KEYS, dtype=torch.float64).expand(BATCH, HEADS, KEYS, KEYS)
"""The output is the weights."""

Formula = Callable[[Tensor, int, int, int], Tensor]
"""The weights of a row from its visible scores, its batch, its head and its position; keys 0 to n are visible."""


@dataclass(frozen=True)
class Entry:
    normalizer: Mod
    formula: Formula
    text: str | None = None
    params: str = ""


def project(scores: Tensor) -> Tensor:
    """The nearest point of the simplex, by sorting: sparsemax."""
    sorted_ = scores.sort(descending=True).values
    sums = sorted_.cumsum(0)
    count = int((1 + torch.arange(1, len(scores) + 1) * sorted_ > sums).sum())
    return (scores - (sums[count - 1] - 1) / count).clamp(min=0)


def entmax(scores: Tensor) -> Tensor:
    """Entmax of alpha 1.5 by sorting: over the k largest halves, the threshold is mean - sqrt((1 - k var) / k)."""
    half = (scores / 2).sort(descending=True).values
    for count in range(len(half), 0, -1):
        top = half[:count]
        inside = (1 - count * top.var(unbiased=False)) / count
        threshold = top.mean() - inside.clamp(min=0).sqrt()
        if inside >= 0 and top[-1] >= threshold:
            break
    return (scores / 2 - threshold).clamp(min=0) ** 2


def largest(scores: Tensor, k: int) -> Tensor:
    """The softmax over the k largest, the lowest keys of equal ones."""
    kept = sorted(range(len(scores)), key=lambda j: (-scores[j].item(), j))[:k]
    weights = torch.zeros_like(scores)
    weights[kept] = scores[kept].softmax(0)
    return weights


ENTRIES = {
    "softmax": Entry(N.softmax(), lambda s, b, h, i: s.softmax(0), "softmax"),
    "softmax-sink-row": Entry(
        N.softmax(ROW),
        lambda s, b, h, i: s.exp() / (s.exp().sum() + ROW[b, h, i].exp()),
        "softmax(sink = p[b, h, q_idx])",
        "p: tensor[B, H, N]",
    ),
    "softmax_plus_one": Entry(
        N.softmax_plus_one(), lambda s, b, h, i: s.exp() / (1 + s.exp().sum()), "softmax_plus_one"
    ),
    "sigmoid": Entry(N.sigmoid(-1.5), lambda s, b, h, i: 1 / (1 + (1.5 - s).exp()), "sigmoid(score + p)", "p: float"),
    "sigmoid-heads": Entry(
        N.sigmoid(HEAD), lambda s, b, h, i: 1 / (1 + (-s - HEAD[h]).exp()), "sigmoid(score + p[h])", "p: tensor[H]"
    ),
    "relu": Entry(N.relu(), lambda s, b, h, i: s.clamp(min=0) / KEYS, "relu"),
    "relu2": Entry(N.relu2(), lambda s, b, h, i: s.clamp(min=0) ** 2 / KEYS, "relu2"),
    "taylor": Entry(N.taylor(), lambda s, b, h, i: (1 + s + s**2 / 2) / (1 + s + s**2 / 2).sum(), "taylor"),
    "temperature": Entry(
        N.temperature(HEAD), lambda s, b, h, i: (HEAD[h] * s).softmax(0), "temperature(p[h])", "p: tensor[H]"
    ),
    "temperature-log-n": Entry(
        N.temperature(0.5, log_n=True),
        lambda s, b, h, i: (s * 0.5 * torch.tensor(KEYS).double().log()).softmax(0),
        "temperature_log_n(p)",
        "p: float",
    ),
    "unnormalised": Entry(N.unnormalised(), lambda s, b, h, i: s, "unnormalised"),
    "signed": Entry(N.signed(0.25), lambda s, b, h, i: s.softmax(0) - 0.25 * (-s).softmax(0), "signed(p)", "p: float"),
    "prior": Entry(
        N.prior(PRIOR),
        lambda s, b, h, i: PRIOR[b, : len(s)] * s.exp() / (PRIOR[b, : len(s)] * s.exp()).sum(),
        "prior(p[b, kv_idx])",
        "p: tensor[B, N]",
    ),
    "sparsemax": Entry(N.sparsemax(), lambda s, b, h, i: project(s), "sparsemax"),
    "entmax15": Entry(N.entmax15(), lambda s, b, h, i: entmax(s), "entmax15"),
    "topk": Entry(N.topk(3), lambda s, b, h, i: largest(s, 3), "topk(k)", "k: int"),
    "topk-all": Entry(N.topk(KEYS), lambda s, b, h, i: s.softmax(0)),
    "topk-one": Entry(N.topk(1), lambda s, b, h, i: largest(s, 1)),
    "decay": Entry(
        W.decay(log_gamma=-HEAD),
        lambda s, b, h, i: s.softmax(0) * (-HEAD[h] * (i - torch.arange(len(s)))).exp(),
        "decay(p[h])",
        "p: tensor[H]",
    ),
    "affine": Entry(
        W.affine(alpha=HEAD, beta=0.125),
        lambda s, b, h, i: HEAD[h] * s.softmax(0) + 0.125,
        "affine(p[h], beta = r)",
        "p: tensor[H], r: float",
    ),
    "threshold": Entry(
        W.threshold(least=0.2),
        lambda s, b, h, i: torch.where(s.softmax(0) >= 0.2, s.softmax(0), 0.0),
        "threshold(p)",
        "p: float",
    ),
}


def attention(mod: Mod) -> ad.Attention:
    """Under a causal mask, with the last key hidden from all: rows of 1 to 7 of 9 keys."""
    return ad.attention(mask_mod=lambda q_idx, kv_idx: kv_idx <= q_idx, **{STAGES[mod.stage.value]: mod})


def by_hand(formula: Formula, scores: Tensor) -> Tensor:
    weights = torch.zeros(BATCH, HEADS, ROWS, KEYS, dtype=torch.float64)
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(ROWS):
                weights[b, h, i, : i + 1] = formula(scores[b, h, i, : i + 1], b, h, i)
    return weights


@pytest.mark.parametrize("name", ENTRIES)
def test_formula(name: str) -> None:
    found = attention(ENTRIES[name].normalizer).reference(Q, K, V)
    assert_rows_close(found, by_hand(ENTRIES[name].formula, Q @ K.mT / 5**0.5), PRECISE)


@pytest.mark.parametrize("name", ENTRIES)
def test_equal_scores(name: str) -> None:
    """Ties: of maxima, of thresholds, of the k-th largest score, which go to the lowest keys."""
    q = torch.ones(BATCH, HEADS, ROWS, 1, dtype=torch.float64)
    k = torch.tensor([0.5, 1.0, 1.0, 0.5, 1.0, -1.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    k = k.view(1, 1, KEYS, 1).expand(BATCH, HEADS, KEYS, 1)
    found = attention(ENTRIES[name].normalizer).reference(q, k, V, scale=1.0)
    assert_rows_close(found, by_hand(ENTRIES[name].formula, q @ k.mT), PRECISE)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.text is not None])
def test_text_is_the_same_program(name: str) -> None:
    entry = ENTRIES[name]
    item = entry.normalizer.stage.value
    (read,) = parse(f"attention a({entry.params}) {{ {item} {entry.text} }}")
    traced = ad.attention(**{STAGES[item]: entry.normalizer}).variant
    assert fingerprint(read) == fingerprint(traced)
    assert [one.message for one in read.requirements] == [one.message for one in traced.requirements]


@pytest.mark.parametrize("name", ENTRIES)
def test_printed_programs_parse_back(name: str) -> None:
    variant = attention(ENTRIES[name].normalizer).variant
    assert parse(print_variant(variant)) == (variant,)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_row_that_sees_nothing_has_no_weights_and_gradients(name: str) -> None:
    entry = ENTRIES[name]
    stage = entry.normalizer.stage.value
    blind = ad.attention(mask_mod=lambda q_idx, kv_idx: kv_idx < q_idx - 2, **{STAGES[stage]: entry.normalizer})
    q, k, v = (x.float().clone().requires_grad_() for x in (Q, K, V))
    out = blind.reference(q, k, v)
    out.backward(torch.randn(out.shape, generator=generator))
    assert not out[:, :, :3].any()
    assert q.grad is not None
    assert not q.grad[:, :, :3].any()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))
    assert k.grad is not None
    assert not k.grad[:, :, ROWS - 3 :].any()


@pytest.mark.parametrize("name", ENTRIES)
def test_passes_change_no_bit(name: str) -> None:
    made = attention(ENTRIES[name].normalizer)
    before, after = (
        attend(variant, made._values(), Q.float(), K.float(), V.float()).out
        for variant in (made.variant, run_passes(made.variant))
    )
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ENTRIES)
def test_everything_streams_and_goes_back(name: str) -> None:
    program = run_passes(attention(ENTRIES[name].normalizer).variant)
    streaming = stream(program)
    assert not isinstance(streaming, Refusal)
    assert not isinstance(differentiate(program, streaming), Refusal)


def twice_over(score):
    """Divided by a sum of squares of exponentials, whose shift is twice that of their sum."""
    e = ad.exp(score - ad.row_max(score))
    return e / (ad.row_sum(e) + ad.row_sum(e * e) / ad.row_sum(e))


def rooted(score):
    e = ad.exp(score - ad.row_max(score))
    return e / (ad.row_sum(e) + ad.sqrt(ad.row_sum(e * e)))


@pytest.mark.parametrize("normalizer", [twice_over, rooted])
def test_squares_of_exponentials_go_back(normalizer: Callable[..., object]) -> None:
    program = run_passes(ad.attention(normalizer=normalizer).variant)
    streaming = stream(program)
    assert not isinstance(streaming, Refusal)
    assert not isinstance(differentiate(program, streaming), Refusal)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15", "taylor", "topk"])
def test_rows_of_large_scores_sum_to_one_in_single_precision(name: str) -> None:
    q, k, v = Q.float() * 30, K.float(), V.float()
    assert (ad.attention(normalizer=ENTRIES[name].normalizer).reference(q, k, v).sum(-1) - 1).abs().max() < 1e-4


def test_a_minus_infinite_sink_is_bitwise_no_sink() -> None:
    q, k, v = Q.float(), K.float(), V.float()
    plain, drained = (ad.attention(normalizer=N.softmax(sink)) for sink in (None, torch.tensor(-torch.inf)))
    assert torch.equal(plain.reference(q, k, v), drained.reference(q, k, v))


@pytest.mark.parametrize("k", [0, -1, KEYS + 1])
def test_topk_takes_what_there_is(k: int) -> None:
    with pytest.raises(DiagnosticError, match="topk takes"):
        ad.attention(normalizer=N.topk(k))(Q, K, V)


@pytest.mark.parametrize(
    "make",
    [lambda x: N.softmax(x), lambda x: N.sigmoid(x), lambda x: N.temperature(x), lambda x: N.signed(x)],
)
def test_what_is_one_value_to_a_row_has_at_most_three_dimensions(make: Callable[[Tensor], Mod]) -> None:
    with pytest.raises(CallError, match=r"allowed are \(\), \(H,\), \(B, H\), \(B, H, Nq\)"):
        make(torch.ones(2, 2, 2, 2))


@pytest.mark.parametrize("shape", [(), (1, 1, 1, 9)])
def test_a_prior_is_by_key(shape: tuple[int, ...]) -> None:
    with pytest.raises(CallError, match=r"allowed are \(Nk,\), \(B, Nk\), \(B, H, Nk\)"):
        N.prior(torch.ones(shape))


@pytest.mark.parametrize("shape", [(KEYS,), (BATCH, HEADS, KEYS)])
def test_priors_of_every_shape(shape: tuple[int, ...]) -> None:
    prior = torch.rand(shape, generator=generator, dtype=torch.float64)
    found = ad.attention(normalizer=N.prior(prior)).reference(Q, K, V)
    weights = prior.view(*(1,) * (3 - prior.ndim), *shape).unsqueeze(-2) * (Q @ K.mT / 5**0.5).exp()
    assert_rows_close(found, weights / weights.sum(-1, keepdim=True), PRECISE)

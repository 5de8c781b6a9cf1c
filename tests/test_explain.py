"""Explanations: numbers counted by hand, proofs with their facts, advice that saves what it says; the text itself."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch
from hypothesis import given, settings
from strategies import Case, mask_cases
from torch import Tensor

import attndsl as ad
from attndsl import advice
from attndsl.attention import Attention, Explanation
from attndsl.passes.pipeline import run_passes
from attndsl.reference import live_pairs
from attndsl.runtime import workload
from attndsl.runtime.planner import plan_blocks
from attndsl.runtime.workload import workload_of


def text(source: str, **values: int | float | Tensor) -> Attention:
    (declared,) = ad.parse(source)
    bound: Attention = declared.bind(**values)
    return bound


CAUSAL = text("attention causal { mask kv_idx <= q_idx }")
WINDOW = text(
    "attention window(window: int) {\n    mask  kv_idx <= q_idx and q_idx - kv_idx < window\n}",
    window=256,
)
DOCUMENTS = "attention documents(doc: int tensor[N]) {\n    mask  kv_idx <= q_idx and doc[q_idx] == doc[kv_idx]\n}"
TWO_DOCUMENTS = text(DOCUMENTS, doc=torch.tensor([0] * 100 + [1] * 156))


# Numbers.


def test_causal() -> None:
    found = CAUSAL.explain(256, batch=3, heads=2, head_dim=64)
    assert found.strategy == "closed_form"
    assert found.tiles == {"full": 1, "partial": 2, "empty": 1}
    live = 256 * 257 // 2
    assert found.workload.useful == (6 * live, 6 * live)
    # Two products, of 2 * 64 operations a pair each.
    assert found.useful_flops == (6 * live * 256, 6 * live * 256)
    assert found.visited_flops == 6 * 3 * 128 * 128 * 256
    assert found.dense_flops == 6 * 256 * 256 * 256
    assert found.tile_bound == 4 / 3
    assert found.flop_bound == (65536 / live, 65536 / live)
    element = 3 * 2 * 256 * 64 * 2
    assert found.nbytes == {"q": element, "k": element, "v": element, "out": element, "captured": 0, "table": 0}
    assert found.advice == ()


def test_window() -> None:
    found = WINDOW.explain(1024, dtype=torch.float32, v_head_dim=64)
    # From the third on a query tile sees keys of itself, all of the tile before and some of the one before that.
    assert found.tiles == {"full": 7, "partial": 14, "empty": 43}
    live = 256 * 257 // 2 + 768 * 256
    assert found.workload.useful == (live, live)
    assert found.visited_flops == 21 * 128 * 128 * 2 * (128 + 64)
    assert found.nbytes["k"] == 1024 * 128 * 4
    assert found.nbytes["v"] == 1024 * 64 * 4
    # A window of 129 reaches the first key of the tile before, and no further: two tiles for three.
    assert found.advice == ("`window` = 129 instead of 256 would compute 29 % less; up to 257 costs no more than 256",)
    assert sum(WINDOW.bind(window=129).plan(1024).counts[name] for name in ("full", "partial")) == 15
    assert WINDOW.bind(window=257).plan(1024).counts["empty"] == 43
    assert WINDOW.bind(window=258).plan(1024).counts["empty"] == 38


def test_documents() -> None:
    found = TWO_DOCUMENTS.explain(256, block=(64, 64))
    assert found.strategy == "table"
    # The second document begins inside the second tile: every tile of it after that sees a part of that tile.
    assert found.tiles == {"full": 1, "partial": 7, "empty": 8}
    live = 100 * 101 // 2 + 156 * 157 // 2
    assert found.workload.useful == (live, live)
    assert found.workload.visited == 8 * 64 * 64
    assert found.nbytes["captured"] == 256 * 8
    assert found.nbytes["table"] == TWO_DOCUMENTS.plan(256, block=(64, 64)).nbytes > 0


def test_tiles_that_overhang_are_computed_whole() -> None:
    found = CAUSAL.explain(100)
    assert found.workload.useful == (5050, 5050)
    assert found.workload.visited == 128 * 128
    assert found.workload.dense == 100 * 100
    assert found.tile_bound < 1


def test_nothing_is_live() -> None:
    found = WINDOW.bind(window=0).explain(1024)
    assert found.useful_flops == (0, 0)
    assert found.visited_flops == 0
    assert found.workload.density == (1.0, 1.0)
    assert found.tile_bound == inf
    assert "0 FLOP useful, 0 FLOP computed" in str(found)


@pytest.mark.parametrize("lengths", [(0, 0), (0, 5), (5, 0)])
def test_no_pairs(lengths: tuple[int, int]) -> None:
    found = TWO_DOCUMENTS.explain(*lengths)
    assert found.workload == workload.Workload((0, 0), 0, 0)
    assert found.tile_bound == 1.0
    assert str(found)


def test_pairs_are_bounded_where_counting_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    attn = text("attention a { mask (q_idx - kv_idx) % 64 == 0 or kv_idx // 64 == 0 }")
    exact = attn.explain(256, block=(64, 64)).workload
    assert exact.useful == (256 * 64 + 256 * 3,) * 2
    monkeypatch.setattr(workload, "MAX_PAIRS", 0)
    bounded = attn.explain(256, block=(64, 64))
    # The four tiles of the first column are full, those of the other three partial.
    assert bounded.workload.useful == (256 * 64, 256 * 256)
    assert bounded.flop_bound == (1.0, 4.0)
    assert "25.0% to 100.0% of the computed pairs are live" in str(bounded)


@settings(max_examples=120, deadline=None)
@given(mask_cases(tensor_offsets=True))
def test_live_pairs_of_random_masks(case: Case) -> None:
    """The pairs of a call, of which the plan may show one batch or head for all."""
    batch, heads = case.batch, case.q_heads
    live = int(live_pairs(case.variant, case.values, **case.grid).expand(batch, heads, -1, -1).sum())
    for exact in (False, True):
        plan = plan_blocks(
            run_passes(case.variant),
            case.values,
            case.q_len,
            case.kv_len,
            batch=batch,
            heads=heads,
            block=(16, 32),
            q_offset=case.q_offset,
            exact=exact,
        )
        found = workload_of(plan, batch, heads)
        assert found.useful == (live, live)
        assert live <= found.visited
        assert found.dense == batch * heads * case.q_len * case.kv_len


# Proofs.


def facts(found: Explanation) -> dict[str, bool]:
    return dict(pair for finding in found.proofs for pair in finding.facts)


def test_facts_and_the_kernel_that_runs() -> None:
    found = WINDOW.explain(1024)
    assert found.unmet == ()
    assert all(finding.holds for finding in found.proofs)
    assert set(facts(found)) >= {"kv_len >= 1", "q_idx >= 0", "window >= 1", "q_idx <= kv_len + window - 2"}
    assert "the fast kernel" in str(found)
    assert "integers    i32" in found.kernel


def test_facts_that_do_not_hold() -> None:
    found = WINDOW.explain(1024, 512)
    assert found.unmet == ("q_idx <= kv_len + window - 2",)
    assert facts(found) == {
        "kv_len >= 1": True,
        "q_idx >= 0": True,
        "q_idx <= kv_len + window - 2": False,
        "window >= 1": True,
        "lengths, integers and element offsets below 2**31": True,
        "scale > 0": True,
    }
    assert "the general kernel, for want of `q_idx <= kv_len + window - 2`" in str(found)
    assert "integers    i64" in found.kernel
    assert WINDOW.explain(1, 512, q_offset=511).unmet == ()


def test_a_branch_of_the_score_is_named_where_it_was_written() -> None:
    attn = text("attention a {\n    score  score if kv_idx <= q_idx else -inf\n}")
    first = attn.explain(256).proofs[0]
    assert first.proof.about == "`kv_idx <= q_idx` (<text>:2)"
    assert "the score is -inf unless `kv_idx <= q_idx` (<text>:2): part of the mask" in attn.source()


def test_each_proof_is_in_the_source_too() -> None:
    source = "attention a(n: int, bias: tensor[N]) { mask q_idx // n == kv_idx // n score score + bias[kv_idx] }"
    attn = text(source, n=8, bias=torch.zeros(256))
    header = attn.source()
    claims = [finding.proof.claim.value for finding in attn.explain(256).proofs]
    assert len(claims) == 3
    for claim in claims:
        assert claim in header


# Advice.


def saving(sentence: str) -> float:
    """The share a sentence says would be saved."""
    return float(sentence.split(" %")[0].split()[-1]) / 100


def computed(attn: Attention, length: int, **how: object) -> int:
    plan = attn.plan(length, **how)
    return (plan.counts["full"] + plan.counts["partial"]) * plan.tiling.block[0] * plan.tiling.block[1]


def test_documents_that_are_scattered() -> None:
    doc = torch.arange(1024) % 4
    attn = text(DOCUMENTS, doc=doc)
    sentence = attn.explain(1024, block=(64, 64)).advice[0]
    assert sentence.startswith("`doc` is not sorted")
    saved = 1 - computed(attn.bind(doc=doc.sort().values), 1024, block=(64, 64)) / computed(attn, 1024, block=(64, 64))
    assert saving(sentence) == pytest.approx(saved, abs=0.005)
    assert torch.equal(doc, torch.arange(1024) % 4)


@pytest.mark.parametrize("first", [0, 7])
def test_documents_that_are_a_formula(first: int) -> None:
    attn = text(DOCUMENTS, doc=torch.arange(1000) // 96 + first)
    sentences = attn.explain(1000).advice
    assert "`doc` holds `position // 96`: as a formula it is neither read nor made a table of" in sentences
    assert TWO_DOCUMENTS.explain(256).advice == ()


def test_a_table_of_pairs() -> None:
    attn = text("attention a(m: bool tensor[N, N]) { mask m[q_idx, kv_idx] }", m=torch.ones(64, 64, dtype=torch.bool))
    assert attn.explain(64).advice[0].startswith("`m[q_idx, kv_idx]` is read for every pair")
    by_block = text("attention a(m: bool tensor[N, N]) { mask m[q_idx // 8, kv_idx // 8] }", m=torch.ones(8, 8).bool())
    assert by_block.explain(64).advice == ()


def test_tiles_that_are_too_large() -> None:
    attn = WINDOW.bind(window=20)
    sentence = attn.explain(2048).advice[0]
    assert sentence == "tiles of 64 x 64 would compute 49 % less, at a lower rate"
    # Two tiles of keys for each tile of queries but the first, whichever their size.
    assert computed(attn, 2048) == 31 * 128 * 128
    assert computed(attn, 2048, block=(64, 64)) == 63 * 64 * 64


def test_an_order_of_the_tokens_of_a_grid() -> None:
    """The estimate against a plan of the mask in that order."""
    height, width, block = 32, 128, (32, 32)
    grid = ad.grid(y=height, x=width)
    attn = ad.attention(mask_mod=ad.masks.neighborhood(grid, 5))
    sentence = attn.explain(height * width, block=block).advice[-1]
    assert sentence.startswith("tokens of the 32 x 128 grid in patches of 4 x 8")
    order = torch.from_numpy(advice._order((height, width), (4, 8)))
    assert torch.equal(order[:10], torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 128, 129]))

    @ad.mask_mod
    def moved(q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q, k = order[q_idx], order[kv_idx]
        return ad.masks.neighborhood(grid, 5)(q_idx=q, kv_idx=k)

    rows = computed(attn, height * width, block=block, exact=True)
    patches = computed(ad.attention(mask_mod=moved), height * width, block=block, exact=True)
    assert saving(sentence) == pytest.approx(1 - patches / rows, abs=0.05)


def test_what_cannot_be_had_is_not_advised() -> None:
    grid = ad.grid(y=16, x=16)
    for attn in (CAUSAL, ad.attention(), ad.attention(mask_mod=ad.masks.axial(grid, "x"))):
        assert attn.explain(256).advice == ()


# Text.


@pytest.mark.parametrize(
    "attn, call",
    [
        pytest.param(WINDOW, (1024,), id="window"),
        pytest.param(TWO_DOCUMENTS, (256,), id="documents"),
        pytest.param(WINDOW, (1024, 512), id="window-beyond-the-keys"),
        pytest.param(
            text("attention a {\n    normalizer  score / row_sum(abs(score - row_sum(score)))\n}"),
            (256,),
            id="no-kernel",
        ),
    ],
)
def test_text(attn: Attention, call: tuple[int, ...], golden: Callable[..., None]) -> None:
    golden(str(attn.explain(*call)), "explain")

"""The harness measures what it says, its check can fail, and its oracle agrees with the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import attndsl as ad
from benchmarks import gpu, harness
from benchmarks.variants import Case, cases

CASES = cases(length=150, heads=2, device="cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_oracle_agrees_with_the_reference(case: Case) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 150, 16)
    rows = torch.tensor([0, 1, 77, 149])
    attention = ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod)
    expected = attention.reference(q.double(), k.double(), v.double())[0, 0, rows]
    torch.testing.assert_close(gpu.dense(case, q, k, v, rows), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_live_pairs_are_those_of_the_plan(case: Case) -> None:
    attention = ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod)
    counts = attention.plan(150, block=(1, 1), exact=True).counts
    assert gpu.live_pairs(case, 150, "cpu") == counts["full"] + counts["partial"]


def test_check_refuses_a_wrong_result() -> None:
    right = torch.randn(8, 4)
    harness.check("right", right, right, 1e-6)
    for wrong in (right + 1.0, right.flip(0), torch.full_like(right, torch.nan)):
        with pytest.raises(SystemExit, match="differs from the dense float64 result"):
            harness.check("wrong", wrong, right, 1e-2)


def test_contenders_run_in_turns() -> None:
    order: list[str] = []
    times = harness.medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=0)
    assert order == ["a", "b"] * 3
    assert times.keys() == {"a", "b"}


def test_results_carry_versions_and_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "benchmarks" / "results")
    harness.publish("trial", "A trial", [{"variant": "dense", "ms": 1.5, harness.MISSED: True}])
    (path,) = (tmp_path / "benchmarks" / "results").glob("trial.*.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["environment"].keys() >= {"device", "attndsl", "torch", "triton", "python"}
    assert written["rows"] == [{"variant": "dense", "ms": 1.5, "missed": True}]
    assert "1.50" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_gpu_benchmark_says_so_where_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    gpu.main()
    assert "needs a CUDA device" in capsys.readouterr().out

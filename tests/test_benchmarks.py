"""The harness measures what it says, its check can fail, and its oracle agrees with the reference."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.attention.flex_attention import AuxOutput

import attndsl as ad
from benchmarks import compile as compiling
from benchmarks import gpu, gpu_training, harness
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


def dense_flex(q, k, v, *, score_mod=None, block_mask=None, return_aux=None):
    """FlexAttention by its definition: its own has no backward on a CPU."""
    b, h, q_idx, kv_idx = (
        torch.arange(size).view([-1 if axis == place else 1 for axis in range(4)])
        for place, size in enumerate((*q.shape[:3], k.shape[2]))
    )
    score = q @ k.mT / q.shape[-1] ** 0.5
    score = score if score_mod is None else score_mod(score, b, h, q_idx, kv_idx)
    if block_mask is not None:
        score = score.masked_fill(~block_mask.mask_mod(b, h, q_idx, kv_idx), -torch.inf)
    out, lse = score.softmax(-1) @ v, score.logsumexp(-1)
    return out if return_aux is None else (out, AuxOutput(lse=lse))


@pytest.mark.parametrize("place", range(7))
def test_contenders_of_training_compute_the_same(place: int) -> None:
    """Each variant and its peer, gradients included; what is wrong is not timed."""
    torch.manual_seed(0)
    training = gpu_training.trainings(140, 2, "cpu")[place]
    runs = gpu_training.contenders(training, 140, "cpu", dense_flex, "reference")
    inputs = gpu_training.tensors(1, 2, 140, 16, "cpu", torch.float32)
    gpu_training.check_contenders(training, runs, inputs, 1e-3)
    wrong = {"wrong": lambda q, k, v: runs["flex"](q, k, v) * 1.1}
    with pytest.raises(SystemExit, match=r"wrong, .* differs from the dense float64 result"):
        gpu_training.check_contenders(training, wrong, inputs, 1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
@pytest.mark.parametrize("benchmark", [gpu, gpu_training], ids=["gpu", "gpu_training"])
def test_gpu_benchmarks_say_so_where_there_is_none(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    benchmark.main()
    assert "needs a CUDA device" in capsys.readouterr().out


def test_measured_kernels_spill_nothing() -> None:
    """What is committed has every kernel of every variant, and none that misses its target."""
    (path,) = (Path(compiling.__file__).parent / "results").glob("compile.*.json")
    rows = json.loads(path.read_text())["rows"]
    assert not [row for row in rows if row["missed"] or row["spilled bytes"]]
    measured = {(row["variant"], row["target"], row["head dim"], row["kernel"]) for row in rows}
    wanted = itertools.product(CASES, compiling.TARGETS, compiling.HEAD_DIMS, compiling.WARPGROUP_KERNELS)
    assert {(case.name, *others) for case, *others in wanted} <= measured

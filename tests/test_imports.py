"""What importing costs: text is read without torch, and triton and sympy wait until they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
HEAVY = ("torch", "triton", "sympy")


def loaded_after(program: str) -> set[str]:
    """Which of the heavy packages a program has imported when it ends, in a process of its own."""
    report = f"\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", program + report], capture_output=True, text=True, check=True)
    return set(run.stderr.split())


@pytest.mark.parametrize("stage", ["text", "ir", "plan", "triton", "cpp"])
def test_show_reads_text_without_torch_and_triton(stage: str) -> None:
    arguments = ["show", str(EXAMPLES / "gemma2.attn:gemma2"), "--stage", stage]
    program = f"from attndsl.cli import main; main({arguments!r}, standalone_mode=False)"
    assert not loaded_after(program) & {"torch", "triton"}


def test_check_reads_text_without_torch_and_triton() -> None:
    program = f"from attndsl.cli import main; main(['check', {str(EXAMPLES / 'alibi.attn')!r}], standalone_mode=False)"
    assert not loaded_after(program) & {"torch", "triton"}


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert loaded_after("import attndsl") == set()


def test_an_attention_is_made_without_triton_and_sympy() -> None:
    program = "import attndsl; attndsl.attention(mask_mod=lambda b, h, q_idx, kv_idx: kv_idx <= q_idx)"
    assert loaded_after(program) == {"torch"}


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_after("import sympy") == {"sympy"}

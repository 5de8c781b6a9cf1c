"""The command line, as a user types it: what it prints, where, and how it ends."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from attndsl.cli import DTYPES, main
from attndsl.frontend.parse import parse
from attndsl.ir.fingerprint import fingerprint
from attndsl.loading import load

EXAMPLES = Path(__file__).parent.parent / "examples"
GPT_OSS = str(EXAMPLES / "gpt_oss.attn")
GEMMA2 = str(EXAMPLES / "gemma2.attn")
DOCUMENTS = str(EXAMPLES / "documents.attn")
CAUSAL = "attention causal { mask kv_idx <= q_idx }\n"


def attndsl(*arguments: str, status: int = 0) -> Result:
    """Run the command line in this process and check how it ends; nothing may escape as a traceback."""
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    return result


def written(folder: Path, text: str, name: str = "variant.attn") -> str:
    """A file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a Python module with an attention in it."""
    name = f"module_{tmp_path.name}".replace("-", "_")
    body = "import attndsl as ad\nnumber = 3\nattn = ad.attention(mask_mod=lambda b, h, q, k: k <= q, name='causal')\n"
    written(tmp_path, body, f"{name}.py")
    monkeypatch.chdir(tmp_path)
    return name


def test_show_prints_text_that_parses_back() -> None:
    printed = attndsl("show", GPT_OSS).stdout
    (variant,) = parse(printed)
    (original,) = parse(Path(GPT_OSS).read_text(encoding="utf-8"))
    assert fingerprint(variant) == fingerprint(original)


def test_show_names_one_of_several() -> None:
    assert "q_idx - kv_idx" not in attndsl("show", f"{GEMMA2}:gemma2_global").stdout
    assert "q_idx - kv_idx" in attndsl("show", f"{GEMMA2}:gemma2").stdout


def test_show_after_a_pass_differs_from_the_end() -> None:
    last = attndsl("show", f"{GEMMA2}:gemma2", "--stage", "ir").stdout
    assert parse(last)
    first = attndsl("show", f"{GEMMA2}:gemma2", "--stage", "ir", "--after", "fold_constants").stdout
    assert first != last


def test_show_triton_is_python() -> None:
    printed = attndsl("show", GPT_OSS, "--stage", "triton", "--head-dim", "64").stdout
    compile(printed, "kernel.py", "exec")
    assert "@triton.jit" in printed


def test_show_plan() -> None:
    assert "64" in attndsl("show", GPT_OSS, "--stage", "plan", "--head-dim", "64").stdout


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_show_prints_the_cpp_of_an_attention(dtype: str) -> None:
    printed = attndsl("show", GPT_OSS, "--stage", "cpp", "--head-dim", "64", "--dtype", dtype).stdout
    assert 'extern "C"' in printed
    assert f"#define ATTNDSL_REAL {'double' if dtype == 'fp64' else 'float'}" in printed
    assert printed == load(GPT_OSS).gpt_oss.source(target="cpp", head_dim=64, dtype=getattr(torch, DTYPES[dtype]))


def test_show_of_a_python_object(module: str) -> None:
    printed = attndsl("show", f"{module}:attn").stdout
    assert fingerprint(parse(printed)[0]) == fingerprint(parse(CAUSAL)[0])


def test_show_is_plain_in_a_pipe_and_coloured_on_a_terminal() -> None:
    command = [sys.executable, "-m", "attndsl", "show", GPT_OSS]
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in piped
    ours, theirs = pty.openpty()
    subprocess.run(command, stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\x1b" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n") == piped


def test_check_is_quiet_about_good_files() -> None:
    result = attndsl("check", *sorted(map(str, EXAMPLES.glob("*.attn"))))
    assert result.stderr == ""
    assert "gemma2, gemma2_global" in result.stdout


def test_check_reports_every_mistake_of_every_file(tmp_path: Path) -> None:
    first = written(tmp_path, "attention a { mask q_idx - kv_idx score unknown }\n", "first.attn")
    second = written(tmp_path, "attention b { mask 1.5 }\n", "second.attn")
    good = written(tmp_path, CAUSAL, "good.attn")
    result = attndsl("check", first, second, good, status=1)
    assert result.stderr.count("error[") == 3
    assert result.stderr.count("mask-not-boolean") == 2
    assert "first.attn:1:20" in result.stderr
    assert "^^^" in result.stderr
    assert "good.attn" in result.stdout


@pytest.mark.parametrize("content", [b"attention a { mask \xff }", b"attention a { mask \x00 }", b"\xfe\xff"])
def test_check_of_broken_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.attn"
    path.write_bytes(content)
    assert "error[" in attndsl("check", str(path), status=1).stderr


def test_plan_draws_and_counts() -> None:
    printed = attndsl("plan", f"{GEMMA2}:gemma2", "--q-len", "1024", "--set", "window=128").stdout
    assert "closed_form" in printed
    assert "█" in printed or "▒" in printed
    # 8 x 8 tiles of 128: the diagonal and the one below it hold an edge of the window, the rest is empty.
    assert "15 partial" in printed
    assert "49 empty" in printed


def test_plan_takes_a_tensor_as_json() -> None:
    documents = "doc=[[0, 0, 0, 0, 1, 1, 1, 1]]"
    printed = attndsl("plan", DOCUMENTS, "--q-len", "8", "--block", "2,2", "--set", documents).stdout
    assert "10 empty" in printed


def test_compile_reports_resources(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "attndsl", "compile", written(tmp_path, CAUSAL), "--target", "cuda:90"]
    run = subprocess.run([*command, "--head-dim", "64"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "forward" in run.stdout
    assert "registers" in run.stdout


@pytest.mark.parametrize(
    "target, code",
    [
        ("missing.attn", "unreadable-file"),
        ("nowhere", "unknown-target"),
        ("attndsl_nowhere:attn", "unknown-target"),
        (f"{GEMMA2}", "which-attention"),
        (f"{GEMMA2}:gemma3", "which-attention"),
    ],
)
@pytest.mark.parametrize("command", [("show",), ("plan", "--q-len", "8"), ("compile",)])
def test_a_target_that_names_nothing(target: str, code: str, command: tuple[str, ...]) -> None:
    assert code in attndsl(*command, target, status=1).stderr


def test_an_object_that_is_no_attention(module: str) -> None:
    assert "not-an-attention" in attndsl("show", f"{module}:number", status=1).stderr
    assert "unknown-target" in attndsl("show", f"{module}:absent", status=1).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", GPT_OSS, "--q-len", "8", "--set", "window"),
        ("plan", GPT_OSS, "--q-len", "8", "--set", "window=wide"),
        ("plan", GPT_OSS, "--q-len", "8", "--set", "window=true"),
        ("plan", GPT_OSS, "--q-len", "8", "--block", "0,16"),
        ("plan", GPT_OSS, "--q-len", "8", "--block", "16"),
        ("show", GPT_OSS, "--after", "fold_constants"),
        ("show", GPT_OSS, "--head-dim", "0"),
        ("show", GPT_OSS, "--stage", "triton", "--dtype", "fp64"),
    ],
)
def test_options_that_make_no_sense(arguments: tuple[str, ...]) -> None:
    assert "Usage:" in attndsl(*arguments, status=2).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", GPT_OSS, "--q-len", "8", "--set", "breadth=3"),
        ("show", GPT_OSS, "--stage", "ir", "--after", "no_such_pass"),
        ("show", GPT_OSS, "--stage", "triton", "--kernel", "sideways"),
        ("show", GPT_OSS, "--stage", "cpp", "--kernel", "sideways"),
        ("compile", GPT_OSS, "--target", "abacus"),
        ("plan", GPT_OSS, "--q-len", "8"),
    ],
)
def test_mistakes_end_in_a_diagnostic(arguments: tuple[str, ...]) -> None:
    result = attndsl(*arguments, status=1)
    assert result.stderr.startswith("error[")

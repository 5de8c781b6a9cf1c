"""Texts made to hurt: nothing of them runs, no path leaves its folder, time and memory stay small."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzzing import CodeRan, Finding, Fuzzer, Slow, corpus, fuzz, limited, watched

from attndsl.compiler import Compilation, emit_source
from attndsl.diagnostics import DiagnosticError
from attndsl.frontend.parse import parse, read
from attndsl.ir.printer import print_variant
from attndsl.runtime.store import load_module, module_path

FUZZED = 10.0
"""Seconds."""

NESTED = 50_000


def chain(count: int, last: str, step: str) -> str:
    """Lets, each made of the one before twice: a text of lines, a value of 2**count terms."""
    lets = "".join(f"let a{n + 1} = {step.format(f'a{n}')}\n" for n in range(count))
    return f"attention x {{ let a0 = kv_idx - q_idx\n{lets} {last.format(f'a{count}')} }}"


def doubling(count: int) -> str:
    functions = "".join(f"def f{n + 1}(x) = f{n}(f{n}(x))\n" for n in range(count))
    return f"def f0(x) = x + 1\n{functions}attention x {{ mask f{count}(kv_idx) > q_idx }}"


LARGE = {
    "parentheses": f"attention x {{ mask {'(' * NESTED}kv_idx{')' * NESTED} <= q_idx }}",
    "indices": f"attention x(t: int tensor[N]) {{ mask {'t[' * NESTED}kv_idx{']' * NESTED} > 0 }}",
    "braces": "attention x " + "{" * NESTED,
    "nots": f"attention x {{ mask {'not ' * NESTED} true }}",
    "summands": f"attention x {{ mask {' + '.join(['kv_idx'] * 20_000)} <= q_idx }}",
    "terms": f"attention x {{ mask {' or '.join(f'(kv_idx > {n} and q_idx < {n})' for n in range(500))} }}",
    "doubled lets": chain(2000, "mask {0} > 0", "{0} + {0}"),
    "doubled calls": doubling(60),
    "digits": f"attention x {{ mask kv_idx < {'9' * 100_000} }}",
    "exponent": f"attention x {{ score score * 1e{'9' * 50} }}",
    "powers": "attention x { score score ** 2 ** 2 ** 2 ** 2 ** 99 }",
    "shift": "attention x { mask kv_idx < 1 << 1000000000 }",
    "dimensions": f"attention x(t: tensor[{', '.join('N' * 3000)}]) {{ score score + t[{', '.join('h' * 3000)}] }}",
    "conditions": f"attention x {{ score {'score if kv_idx > 0 else ' * 3000}score }}",
    "grid": "attention x { grid g(y = 99999999999, x = 99999999999) mask g(q_idx).y <= g(kv_idx).x }",
    "text": "attention x { } #" + "x" * 2**21,
    "string": f'attention x {{ require q_len == 1, "{"x" * 200_000}" }}',
}


@pytest.mark.parametrize("name", LARGE)
def test_large_texts_are_read_or_refused_soon(name: str) -> None:
    with limited(20.0):
        try:
            (variant,) = parse(LARGE[name])
        except DiagnosticError as error:
            said = str(error)
        else:
            ast.parse(emit_source(variant))
            said = print_variant(variant)
    assert len(said) < 2**21


def test_what_doubles_stays_as_small_as_its_text() -> None:
    """Sixty lets, each twice the one before: 2**60 terms, printed and emitted as sixty."""
    with limited(20.0):
        (variant,) = parse(chain(60, "mask {0} > 0", "{0} + {0}"))
        assert len(print_variant(variant)) < 10_000
        assert len(emit_source(variant)) < 40_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of a process")
def test_memory_is_bounded() -> None:
    """All of them in one process that may have 400 MiB."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/faults']; from test_hostile_texts import LARGE, parse, "
        "DiagnosticError\n"
        "for text in LARGE.values():\n    try: parse(text)\n    except DiagnosticError: pass\n"
        "(peak,) = (line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(int(peak) // 1024, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peak, has_torch = done.stdout.split()
    # Not `ru_maxrss`, which starts at what the parent had. pytest and hypothesis take their share.
    assert int(peak) < 400
    assert has_torch == "False"


@pytest.mark.parametrize(
    "text",
    [
        "attention x { mask __import__('os').system('touch owned') }",
        "attention x { mask (lambda: kv_idx)() }",
        "attention x { mask kv_idx.__class__.__bases__ }",
        "attention x { score exec(score) }",
        "attention x { score open(score) }",
        "attention __init__ { mask eval(kv_idx) }",
        "import os\nattention x { }",
        "attention x { mask {{ kv_idx }} }",
        "attention x { require q_len == 1, \"{{ ''.__class__ }} %s {0.__class__}\" }",
    ],
)
def test_nothing_of_a_text_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus()
    with watched(set()):
        try:
            (variant,) = parse(text)
        except DiagnosticError:
            return
    emitted = emit_source(variant)
    assert "__class__" not in emitted.replace(print_variant(variant).split("\n")[1].strip(), "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../../escaped.attn", "a\nimport os\n.attn", 'q"""\nimport os\n"""', "\x1b[2J.attn", "é" * 200]
)
def test_a_source_by_any_name(name: str) -> None:
    """Names of files stand in comments and messages; they end no line and leave no string."""
    (variant,) = parse("attention x(window: int = 4) { mask q_idx - kv_idx < window score 2.0 * score }", name)
    for kernel in Compilation(variant).derivation.kernels:
        tree = ast.parse(emit_source(variant, kernel))
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert [ast.unparse(node) for node in imported] == ["import triton", "import triton.language as tl"]


def test_names_in_a_text_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of entries are made of kernels' names and hashes, whatever an attention is called."""
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", str(tmp_path / "cache"))
    (variant,) = parse("attention CON(aux: int = 1, nul: tensor[H]) { mask kv_idx < aux score score + nul[h] }")
    text = emit_source(variant)
    assert module_path(text, "forward").parent.parent == tmp_path / "cache"
    load_module(text, "forward", False)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("kind", ["folder", "device", "binary", "latin"])
def test_files_that_are_no_texts(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.attn"
    match kind:
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "binary":
            path.write_bytes(bytes(range(256)) * 100)
        case _:
            path.write_bytes(b"attention x { # \xe9\n }")
    with pytest.raises((DiagnosticError, OSError)), limited(10.0):
        read(path)


def test_fuzzed_texts(request: pytest.FixtureRequest) -> None:
    found: list[Finding] = []
    fuzzer = fuzz(FUZZED, 20, lambda _, finding: None if finding is None else found.append(finding))
    assert found == []
    assert fuzzer.programs > 5
    assert len(fuzzer.corpus) > 20


def test_the_fuzzer_finds_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front end that crashes, hangs, or does something is noticed."""
    import fuzzing

    def crashes(text: str) -> tuple[()]:
        raise KeyError(text)

    def hangs(text: str) -> tuple[()]:
        time.sleep(10)
        return ()

    def runs(text: str) -> tuple[()]:
        eval("1 + 1")
        return ()

    monkeypatch.setattr(fuzzing, "PARSE_SECONDS", 0.1)
    for broken, named in ((crashes, KeyError), (hangs, Slow), (runs, CodeRan)):
        monkeypatch.setattr(fuzzing, "parse", broken)
        finding = Fuzzer(random.Random(0), ["attention x { }"]).step()
        assert finding is not None
        assert named.__name__ in finding.what

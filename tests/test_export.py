"""Exported files: the same bytes for the same variant, well formed, right, and on their own."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from compare import assert_rows_close
from hypothesis import Phase, assume, given, settings
from normalizers import row
from strategies import Case, cases

import attndsl as ad
from attndsl.cli import main
from attndsl.codegen.plan import Specialisation
from attndsl.compiler import Compilation
from attndsl.diagnostics import UnsupportedError
from attndsl.exporting import exported
from attndsl.reference import attend

EXAMPLES = Path(__file__).parent.parent / "examples"
ALLOWED = {"torch", "triton"} | sys.stdlib_module_names
GENERAL = """attention general(width: int = 20, table: tensor[H, N], ids: int tensor[B, N], sink: tensor[H, M]) {
    let distance = q_idx - kv_idx
    mask distance >= 0 and distance < width and q_idx // 3 != kv_idx % 5 and ids[b, q_idx] == ids[b, kv_idx]
    score where(distance < 9, score + table[h, distance], score)
    normalizer softmax(sink = sink[h, q_idx])
}"""
COLUMNS = "attention columns(c: tensor[B, N], r: tensor[H, M]) { score tanh(score * c[b, kv_idx] + r[h, q_idx]) }"
BLOCKS = "attention blocks(block: int = 7) { mask q_idx // block == kv_idx // block }"
CLASHES = """attention clashes(lse: tensor[H], call: float = 2.0, row_x: float = 1.0, torch: tensor[H]) {
    score score * call + lse[h] * row_x + torch[h]
}"""
WEIGHTED = "attention weighted { mask kv_idx <= q_idx normalizer relu() weight weight * 2.0 }"
TEXTS = (GENERAL, COLUMNS, BLOCKS, CLASHES, WEIGHTED)

BLOCKER = """
import importlib.util, runpy, sys
sys.modules["attndsl"] = None
runpy.run_path(sys.argv[1], run_name="__main__")
assert not [name for name in sys.modules if name.startswith("attndsl.")]
"""
_numbers = count()


def module_at(path: Path) -> ModuleType:
    """An exported file, imported."""
    spec = importlib.util.spec_from_file_location(f"exported_{next(_numbers)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def declared(text: str) -> Any:
    """The attention of a text that declares one."""
    (found,) = ad.parse(text)
    return found


def subjects() -> list[Any]:
    """Attentions whose files are looked at."""
    examples = [declaration for path in sorted(EXAMPLES.glob("*.attn")) for declaration in ad.load(path)]
    grid = ad.grid(y=6, x=8)
    near = ad.attention(mask_mod=ad.masks.neighborhood(grid, window=(3, 3)), name="near")
    plus_one = ad.attention(mask_mod=ad.masks.causal, normalizer=ad.normalizers.softmax_plus_one(), name="plus_one")
    sparse = ad.attention(mask_mod=ad.masks.causal, normalizer=ad.normalizers.sparsemax(), name="sparse")
    largest = ad.attention(normalizer=ad.normalizers.topk(k=5), name="largest")
    return [*examples, *map(declared, TEXTS), near, plus_one, sparse, largest]


def files(folder: Path) -> list[Path]:
    return [
        subject.export(folder / f"{subject.name}.py", dtype=torch.float32, head_dim=16, v_head_dim=32)
        for subject in subjects()
    ]


def run(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a file where attndsl is neither on the path nor importable: no site, so no editable installation."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    clean |= {"PYTHONPATH": sysconfig.get_paths()["purelib"], **environment}
    command = [sys.executable, "-S", "-W", "error::UserWarning:__main__", "-c", BLOCKER, str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=path.parent, check=False)


def test_files_are_well_formed(tmp_path: Path) -> None:
    for path in files(tmp_path):
        tree = ast.parse(path.read_text("utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        # The interpreter of triton needs numpy, and functions that mend it import it.
        top = {
            node.name.split(".")[0]
            for statement in tree.body
            if isinstance(statement, ast.Import)
            for node in statement.names
        }
        assert top <= ALLOWED
        assert {name.split(".")[0] for name in imported} <= ALLOWED | {"numpy"}
        assert "attndsl" not in {name.split(".")[0] for name in imported}


@pytest.mark.skipif(shutil.which("ruff", path=str(Path(sys.executable).parent)) is None, reason="needs ruff")
def test_a_formatter_and_a_linter_have_nothing_to_say(tmp_path: Path) -> None:
    files(tmp_path)
    ruff = str(Path(sys.executable).parent / "ruff")
    for command in (["format", "--check", "--diff", "--line-length", "120"], ["check", "--select", "F4,F8,E9,I"]):
        ignored = ["--ignore", "F841"] if command[0] == "check" else []
        done = subprocess.run([ruff, *command, *ignored, "--isolated", str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = "import sys, attndsl as ad; ad.load(sys.argv[1]).gpt_oss.export(sys.argv[2])"
    texts = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(EXAMPLES / "gpt_oss.attn"), str(tmp_path / "file.py")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        texts.append((tmp_path / "file.py").read_bytes())
    assert texts[0] == texts[1]
    assert [path.name for path in tmp_path.iterdir()] == ["file.py"]


def test_the_head_says_where_a_file_came_from(tmp_path: Path) -> None:
    attention = ad.load(EXAMPLES / "gpt_oss.attn").gpt_oss(window=77, sink=torch.zeros(4))
    text = attention.export(tmp_path / "file.py").read_text("utf-8")
    head = ast.get_docstring(ast.parse(text)) or ""
    for wanted in (
        "attention gpt_oss(window: int = 77, sink: tensor[H]) {",
        attention.fingerprint,
        f"attndsl {ad.__version__}, torch {torch.__version__}",
        "SPDX-License-Identifier: MIT",
        "bfloat16",
        "Gradients: q, k, v, sink.",
        "Tiles: those the mask leaves empty are skipped",
    ):
        assert wanted in head
    assert "    window: int = 77,\n    sink: Tensor,\n" in text


def test_the_head_says_what_a_file_does_not_do(tmp_path: Path) -> None:
    bias = declared("attention bias(bias: tensor[B, H, N, M]) { score score + bias[b, h, q_idx, kv_idx] }")
    head = bias.export(tmp_path / "bias.py").read_text("utf-8")
    assert "None of `bias`, which is indexed by queries and keys together: a call refuses it" in head
    blocks = declared("attention documents(ids: int tensor[N]) { mask ids[q_idx] == ids[kv_idx] }")
    assert "Tiles: all are visited and masked" in blocks.export(tmp_path / "blocks.py").read_text("utf-8")


def test_a_name_is_data(tmp_path: Path) -> None:
    """A name is whatever its user likes, and nothing of it is code."""
    hostile = 'x"""\nraise SystemExit("run")\n"""\\'
    attention = ad.attention(mask_mod=ad.masks.causal, name=hostile)
    tree = ast.parse(attention.export(tmp_path / "file.py", head_dim=16).read_text("utf-8"))
    assert not any(isinstance(node, ast.Raise) for node in tree.body)


def test_what_cannot_be_exported_is_refused_with_every_reason(tmp_path: Path) -> None:
    grid = ad.grid(y=16, x=16, tile=(8, 8))
    table = torch.zeros(4)

    def by_score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return table[ad.clamp(score.to(torch.int64), 0, 3)]

    attention = ad.attention(mask_mod=ad.masks.neighborhood(grid, window=(3, 3)), score_mod=by_score)
    with pytest.raises(UnsupportedError) as caught:
        attention.export(tmp_path / "file.py")
    assert [found.code for found in caught.value.diagnostics] == ["not-exportable"] * 2
    assert "kept tile by tile" in str(caught.value)
    assert "depends on the score" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        declared(BLOCKS).export(tmp_path / "no" / "file.py")


def test_a_file_replaces_another_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.py"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            declared(BLOCKS).export(path)
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["file.py"]
    declared(BLOCKS).export(path)
    assert "blocks: an attention" in path.read_text()


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    arguments = ["export", str(EXAMPLES / "gpt_oss.attn"), str(path), "--dtype", "fp32", "--head-dim", "16"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "TRITON_INTERPRET=1" in result.output
    declaration = ad.load(EXAMPLES / "gpt_oss.attn").gpt_oss
    expected = declaration.export(tmp_path / "other.py", dtype=torch.float32, head_dim=16)
    assert path.read_bytes() == expected.read_bytes()
    arguments[2] = str(tmp_path / "no" / "file.py")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "error[unwritable-file]" in result.stderr


def test_calls_that_do_not_fit(tmp_path: Path) -> None:
    module = module_at(declared(GENERAL).export(tmp_path / "file.py", dtype=torch.float32, head_dim=16))
    q = torch.randn(1, 2, 8, 16)
    good = {"table": torch.zeros(2, 9), "ids": torch.zeros(1, 8, dtype=torch.int64), "sink": torch.zeros(2, 8)}
    assert module.reference(q, q, q, **good).shape == q.shape
    for wrong, message in (
        ({"q": q[0]}, "q, k and v are tensors"),
        ({"k": q[:, :, :, :8]}, "do not fit each other"),
        ({"k": q.double()}, "differ in dtype"),
        ({"q": q[:, [0, 1, 0]]}, "do not divide"),
        ({"table": torch.zeros(2, 9, dtype=torch.int64)}, "`table` is a tensor of float with 2"),
        ({"ids": torch.zeros(8, dtype=torch.int64)}, "`ids` is a tensor of int with 2"),
        ({"q_offset": torch.zeros(1)}, "q_offset is an int"),
    ):
        arguments = {"q": q, "k": q, "v": q, **good, **wrong}
        with pytest.raises(ValueError, match=message):
            module.reference(**arguments)
    with pytest.raises(ValueError, match=r"take torch\.float32, not torch\.float64"):
        module.attention(q.double(), q.double(), q.double(), **good)
    with pytest.raises(ValueError, match="head dims 16 and 16, not 8"):
        module.attention(q[..., :8], q[..., :8], q[..., :8], **good)
    if not os.environ.get("TRITON_INTERPRET"):
        with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
            module.attention(q, q, q, **good)


def test_numbers_among_numbers(tmp_path: Path) -> None:
    """What torch would take for Python's numbers, which its functions do not."""
    text = "attention numbers { mask max(min(max(7, -3), 9), h) > kv_idx score score + tanh(exp(0.5) * 2.0) }"
    module = module_at(declared(text).export(tmp_path / "file.py", dtype=torch.float32, head_dim=16))
    q = torch.randn(1, 2, 12, 16, dtype=torch.float64)
    assert_rows_close(module.reference(q, q, q), declared(text).reference(q, q, q), 1e-12)


def test_requirements_are_asked(tmp_path: Path) -> None:
    near = ad.attention(mask_mod=ad.masks.neighborhood(ad.grid(y=6, x=8), window=(3, 3)))
    module = module_at(near.export(tmp_path / "file.py", dtype=torch.float32, head_dim=16))
    q = torch.randn(1, 1, 8, 16)
    with pytest.raises(ValueError, match="has 48 places"):
        module.reference(q, q, q)


def exported_case(case: Case, dtype: str) -> tuple[ModuleType, dict[str, str]]:
    """The file of a random program, imported, and what its parameters are called there."""
    spec = Specialisation(dtype, case.head_dim, case.v_head_dim)
    try:
        text = exported(Compilation(case.variant), case.variant, spec)
    except UnsupportedError:
        assume(False)
    path = Path(os.environ["EXPORT_TEST_FOLDER"]) / f"case_{next(_numbers)}.py"
    path.write_text(text, "utf-8")
    return module_at(path), dict(zip(case.values, _parameters(text), strict=True))


def named_values(case: Case, names: dict[str, str]) -> dict[str, Any]:
    return {names[param]: value for param, value in case.values.items()}


PROGRAMS = cases(max_programs=4, max_length=17, tensor_offsets=True, weights=True, row=row)


@settings(max_examples=25, phases=[Phase.generate])
@given(PROGRAMS)
def test_references_agree_on_random_programs(case: Case) -> None:
    """The printed reference and the one that evaluates the program, in float64, gradients included."""
    module, names = exported_case(case, "fp32")
    q, k, v = case.inputs(dtype=torch.float64, requires_grad=True)
    expected = attend(case.variant, case.values, q, k, v, enable_gqa=True, q_offset=case.q_offset)
    values = named_values(case, names)
    out, lse = module.reference(q, k, v, **values, q_offset=case.q_offset, return_lse=True)
    assert_rows_close(out, expected.out, 1e-9)
    if expected.lse is not None:
        assert_rows_close(lse[..., None], expected.lse[..., None], 1e-9)
    both = [torch.autograd.grad(result.sum(), (q, k, v), materialize_grads=True) for result in (out, expected.out)]
    for found, wanted in zip(*both, strict=True):
        assert_rows_close(found, wanted, 1e-8)


@pytest.mark.interpreter
@settings(max_examples=6, phases=[Phase.generate])
@given(PROGRAMS)
def test_kernels_of_random_programs(case: Case) -> None:
    """Output, and gradients of q, k, v and of every capture a file has gradients of, against float64."""
    module, names = exported_case(case, "fp32")
    learns = hasattr(module, "_Attend")
    inputs, values = case.inputs(requires_grad=learns), named_values(case, names)
    learnt = [name for name in module._LEARNT if values[name].dtype is torch.float32]
    values |= {name: values[name].detach().clone().requires_grad_(learns) for name in learnt}
    out = module.attention(*inputs, **values, q_offset=case.q_offset)
    given = [*inputs, *(values[name] for name in learnt)]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    theirs = {symbol: param for param, symbol in names.items()}
    captured = {theirs[name]: tensor for name, tensor in zip(learnt, exact[3:], strict=True)}
    expected = attend(
        case.variant, {**case.values, **captured}, *exact[:3], enable_gqa=True, q_offset=case.q_offset
    ).out
    assert_rows_close(out, expected, 2e-4)
    if not learns:
        return
    both = [torch.autograd.grad(o.sum(), of, materialize_grads=True) for o, of in ((out, given), (expected, exact))]
    for found, wanted in zip(*both, strict=True):
        assert_rows_close(found.reshape(-1, 1), wanted.reshape(-1, 1), 2e-3)


def _parameters(text: str) -> list[str]:
    (function,) = (
        node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "reference"
    )
    return [
        argument.arg for argument in function.args.kwonlyargs if argument.arg not in ("scale", "q_offset", "return_lse")
    ]


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where random programs are written."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EXPORT_TEST_FOLDER", str(tmp_path_factory.mktemp("exported")))
        yield


def test_without_a_gpu_a_file_says_what_to_do(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run(declared(BLOCKS).export(tmp_path / "file.py", dtype=torch.float32, head_dim=16))
    assert done.returncode == 1
    assert done.stderr == "there is no GPU: set TRITON_INTERPRET=1\n"


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["bf16", "general", "columns", "weighted", "near", "largest"])
def test_a_file_tests_itself_where_attndsl_is_not(name: str, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    wanted = "gpt_oss" if name == "bf16" else name
    subject = next(subject for subject in subjects() if subject.name == wanted)
    done = run(subject.export(tmp_path / "file.py", dtype=dtype, head_dim=16), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("\nok\n")
    assert "q 0.0e+00, k 0.0e+00" not in done.stdout.splitlines()[-2]


@pytest.mark.interpreter
def test_a_wrong_kernel_does_not_pass_its_test(tmp_path: Path) -> None:
    path = declared(WEIGHTED).export(tmp_path / "file.py", dtype=torch.float32, head_dim=16)
    text = path.read_text("utf-8")
    assert text.count("tl.store(out_tile, ") == 1
    path.write_text(text.replace("tl.store(out_tile, ", "tl.store(out_tile, 1.01 * "), "utf-8")
    done = run(path, TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert "AssertionError: out is off by" in done.stderr


@pytest.mark.interpreter
def test_a_file_computes_what_the_attention_does(tmp_path: Path) -> None:
    """Strides, offsets by batch, grouped heads, gradients of what is captured: the same to rounding."""
    torch.manual_seed(0)
    attention = ad.parse(GENERAL).general(
        table=torch.randn(4, 9),
        ids=torch.arange(80).expand(2, 80) // 30,
        sink=torch.randn(4, 80, requires_grad=True),
        width=20,
    )
    values = {name: value.value for name, value in attention._bindings.captured.items() if name != "width"}
    module = module_at(attention.export(tmp_path / "file.py", dtype=torch.float32, head_dim=16))
    q = torch.randn(2, 33, 4, 16).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(2, 2, 70, 16).requires_grad_() for _ in range(2))
    offset = torch.tensor([0, 37])
    out, lse = module.attention(q, k, v, **values, q_offset=offset, return_lse=True)
    expected, aux = attention(q, k, v, enable_gqa=True, q_offset=offset, return_aux=True, backend="triton")
    assert_rows_close(out, expected, 1e-6)
    assert_rows_close(lse[..., None], aux.lse[..., None], 1e-6)
    inputs = (q, k, v, values["sink"])
    both = [
        torch.autograd.grad(sum(pair), inputs) for pair in ((out.sum(), lse.sum()), (expected.sum(), aux.lse.sum()))
    ]
    for found, wanted in zip(*both, strict=True):
        assert_rows_close(found, wanted, 1e-5)


@pytest.mark.interpreter
def test_a_file_refuses_what_it_would_get_wrong(tmp_path: Path) -> None:
    module = module_at(declared(GENERAL).export(tmp_path / "file.py", dtype=torch.float32, head_dim=16))
    q = torch.randn(1, 2, 20, 16, requires_grad=True)
    good = {"table": torch.zeros(2, 9), "ids": torch.zeros(1, 20, dtype=torch.int64), "sink": torch.zeros(2, 20)}
    out = module.attention(q, q, q, **good)
    with pytest.raises(IndexError, match=r"index `q_idx - kv_idx` of `table` leaves dimension 1"):
        module.attention(q, q, q, **{**good, "table": torch.zeros(2, 8)})
    with pytest.raises(ValueError, match="no gradient of `table`, which is indexed by queries and keys together"):
        module.attention(q, q, q, **{**good, "table": torch.zeros(2, 9, requires_grad=True)})
    (gradient,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="not gradients of gradients"):
        gradient.sum().backward()
    blocks = module_at(declared(BLOCKS).export(tmp_path / "blocks.py", dtype=torch.float32, head_dim=16))
    assert blocks.attention(q, q, q, block=3).shape == q.shape
    with pytest.raises(IndexError, match="divides by zero"):
        blocks.attention(q, q, q, block=0)

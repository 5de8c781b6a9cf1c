"""Emitted text read as text: deterministic, well formed, no mask code where every pair is live, nothing read twice."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from normalizers import row
from strategies import Case, affine_masks, cases

from attndsl.analysis.streaming import Streaming, stream
from attndsl.codegen.names import KERNEL_NAMES
from attndsl.codegen.placement import Statement
from attndsl.codegen.plan import Emitted, Specialisation
from attndsl.compiler import Compilation
from attndsl.frontend.parse import parse, read
from attndsl.ir.variant import ScalarParam, TensorParam, Variant

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
RANDOM = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    max_examples=60,
)
PIECES = ("", "_0", "_1")
"""What the names of tiles end in: of a head dim that is computed at once, and of one in pieces."""

SPECIALISATIONS = st.builds(
    Specialisation,
    st.sampled_from(("bf16", "fp32")),
    st.sampled_from((16, 64, 80)),
    st.sampled_from((16, 64, 80)),
    st.booleans(),
    st.booleans(),
)
NORMALIZED = cases(tensor_offsets=True, row=row)
STEPS = ("start_n", "start_m")
"""What counts the tiles of a loop."""
TEXTS = {
    "general": (
        "attention general(width: int, table: tensor[H, N], sink: tensor[H, M]) {"
        "  let distance = q_idx - kv_idx"
        "  mask distance >= 0 and distance < width and q_idx // 3 != kv_idx % 5"
        "  score where(distance < 9, score + table[h, distance], score)"
        "  normalizer softmax(sink = sink[h, q_idx - 4]) }",
        Specialisation("fp16", 80, 72, fast=False, offset_per_batch=True),
    ),
    "bias": (
        "attention bias(bias: tensor[B, H, N, M]) { score score + bias[b, h, q_idx, kv_idx] }",
        Specialisation("fp32", 96, 96),
    ),
    "sinks_and_window": (
        "attention sinks_and_window(first: int, width: int) {"
        "  mask kv_idx <= q_idx and (kv_idx < first or q_idx - kv_idx < width) }",
        Specialisation("bf16", 64, 64),
    ),
    "learned": (
        "attention learned(width: int, slopes: tensor[H], bias: tensor[H, D], kinds: int tensor[N],"
        "                  table: tensor[S, S], sink: tensor[H]) {"
        "  mask kv_idx <= q_idx and q_idx - kv_idx < width"
        "  score score - slopes[h] * float(q_idx - kv_idx) + bias[h, q_idx - kv_idx]"
        "        + table[kinds[q_idx], kinds[kv_idx]]"
        "  normalizer softmax(sink = sink[h]) }",
        Specialisation("bf16", 64, 64),
    ),
    "rectified": (
        "attention rectified(rate: tensor[N]) { mask kv_idx <= q_idx let r = max(score, 0.0)"
        "  normalizer r / row_sum(r) weight weight * rate[kv_idx] }",
        Specialisation("bf16", 64, 64),
    ),
    "thresholds": (
        "attention thresholds() { mask kv_idx <= q_idx normalizer sparsemax() }",
        Specialisation("bf16", 64, 64),
    ),
    "dilated": ("attention dilated() { mask (q_idx - kv_idx) % 4 == 0 }", Specialisation("bf16", 64, 64)),
}


USUAL = Specialisation()


def emit(variant: Variant, spec: Specialisation = USUAL, kernel: str = "forward") -> Emitted:
    return Compilation(variant).kernel(kernel, spec)


def kernels_of(variant: Variant, spec: Specialisation = USUAL) -> list[Emitted]:
    """Every kernel of a variant, in the order they run, with the gradients of all it may learn."""
    compilation, spec = Compilation(variant), learning_all(variant, spec)
    return [compilation.kernel(name, spec) for name in compilation.derivation.kernels]


def learning_all(variant: Variant, spec: Specialisation) -> Specialisation:
    """The gradients of everything a variant may learn."""
    learnt = (param.name for param in variant.params if isinstance(param, TensorParam) and param.dtype.is_float)
    return replace(spec, gradients=frozenset(learnt))


def examples() -> list[Variant]:
    return [variant for path in sorted(EXAMPLES.glob("*.attn")) for variant in read(path)]


def kernel_of(emitted: Emitted) -> ast.FunctionDef:
    functions = (node for node in ast.parse(emitted.text).body if isinstance(node, ast.FunctionDef))
    return next(function for function in functions if function.name == emitted.plan.kernel)


def names_in(*nodes: ast.AST) -> set[str]:
    return {node.id for root in nodes for node in ast.walk(root) if isinstance(node, ast.Name)}


def key_loops(emitted: Emitted) -> Iterator[tuple[str, ast.For]]:
    """The loops over tiles of keys or of queries, with the comment above each."""
    lines = emitted.text.splitlines()
    for node in ast.walk(kernel_of(emitted)):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and node.target.id in STEPS:
            yield lines[node.lineno - 2].strip(), node


def full_loops(emitted: Emitted) -> list[ast.For]:
    return [loop for comment, loop in key_loops(emitted) if comment.startswith("# Full tiles")]


def loads_in(node: ast.AST) -> Iterator[ast.Call]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "tl.load":
            yield call


def named(*statements: tuple[Statement, ...]) -> set[str]:
    return {line.name for part in statements for line in part}


@pytest.mark.parametrize("name", TEXTS)
def test_kernel(name: str, golden: Callable[..., None]) -> None:
    """The goldens are Python files, so that the linter's format check covers what is emitted."""
    text, spec = TEXTS[name]
    golden(emit(parse(text, "golden.attn")[0], spec).text, "triton", name=name, suffix=".py")


@pytest.mark.parametrize("name", ["learned", "rectified", "thresholds"])
def test_backward_kernels(name: str, golden: Callable[..., None]) -> None:
    """Each kernel of a variant with its gradients, statistics and sums of rows among them."""
    text, spec = TEXTS[name]
    for emitted in kernels_of(parse(text, "golden.attn")[0], spec):
        if emitted.plan.kernel != "forward":
            golden(emitted.text, "triton", name=f"{name}.{emitted.plan.kernel}", suffix=".py")


def test_goldens_have_every_kernel() -> None:
    """The texts reach each kind of kernel there is."""
    met = {emitted.plan.kernel for text, spec in TEXTS.values() for emitted in kernels_of(parse(text)[0], spec)}
    assert met >= {
        "forward",
        "statistics",
        "backward_rows",
        "backward_dq",
        "backward_dkv",
        "backward_diagonal",
        "backward_pairs",
    }


def test_two_processes_print_the_same_bytes() -> None:
    script = textwrap.dedent(
        """
        import sys
        from test_emission import TEXTS, USUAL, examples, kernels_of, parse
        subjects = [(variant, USUAL) for variant in examples()]
        subjects += [(parse(text)[0], spec) for text, spec in TEXTS.values()]
        for variant, spec in subjects:
            for emitted in kernels_of(variant, spec):
                sys.stdout.write(emitted.text)
        """
    )
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), *sys.path])
    printed = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    for kernel in (b"forward", b"backward_dq", b"backward_dkv"):
        assert printed[0].count(b"\ndef " + kernel + b"(") == len(examples()) + len(TEXTS)


@pytest.mark.skipif(shutil.which("ruff", path=str(Path(sys.executable).parent)) is None, reason="needs ruff")
def test_a_formatter_and_a_linter_have_nothing_to_say(tmp_path: Path) -> None:
    subjects = [(parse(text)[0], spec) for text, spec in TEXTS.values()]
    for variant, spec in (*subjects, *((variant, USUAL) for variant in examples())):
        for emitted in kernels_of(variant, spec):
            (tmp_path / f"{variant.name}_{emitted.plan.kernel}.py").write_text(emitted.text, encoding="utf-8")
    ruff = str(Path(sys.executable).parent / "ruff")
    for command in (["format", "--check", "--line-length", "120"], ["check", "--select", "F,E9"]):
        done = subprocess.run([ruff, *command, "--isolated", str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@RANDOM
@given(st.one_of(cases(tensor_offsets=True), affine_masks(), NORMALIZED), SPECIALISATIONS)
def test_random_programs_are_python_over_known_names(case: Case, spec: Specialisation) -> None:
    assume(isinstance(stream(Compilation(case.variant).program), Streaming))
    for emitted in kernels_of(case.variant, spec):
        check_names(emitted)


def check_names(emitted: Emitted) -> None:
    kernel, plan = kernel_of(emitted), emitted.plan
    stages = (plan.placement, plan.peaks, plan.rest, plan.last)
    statements = named(*(part.statements for part in stages)) - {"p", "ds", "divisor"}
    arguments = {arg.arg for arg in kernel.args.args}
    helpers = {node.name for node in ast.parse(emitted.text).body if isinstance(node, ast.FunctionDef)}
    ends = {name for name in names_in(kernel) if re.fullmatch(r"(key|row|full)_(lo|hi)_\d", name)}
    numbered = {name for name in names_in(kernel) if re.fullmatch(r"(p|acc|scale|alpha|shift)_\d(_[01])?", name)}
    statistics = {name for part in plan.statistics for name in (part.name, part.grown.name)} | set(plan.kept)
    assert names_in(kernel) - (KERNEL_NAMES | statements | statistics | arguments | helpers | ends | numbered) == set()
    assert not statements & (KERNEL_NAMES | arguments | ends)


@RANDOM
@given(st.one_of(cases(), affine_masks(), NORMALIZED), SPECIALISATIONS)
def test_full_tiles_know_nothing_of_the_mask(case: Case, spec: Specialisation) -> None:
    assume(isinstance(stream(Compilation(case.variant).program), Streaming))
    for emitted in kernels_of(case.variant, spec):
        check_full_tiles(emitted)


def check_full_tiles(emitted: Emitted) -> None:
    allowed = {f"{name}{piece}" for name in ("offs_d", "offs_dv") for piece in PIECES} | (
        {"seen"} if emitted.plan.hides_keys else set()
    )
    hidden = {"live"} if emitted.plan.hides_keys else set()
    # What is written pair by pair stays inside of the tensor it is written to.
    score = named(emitted.plan.placement.full_walked, emitted.plan.placement.full_tile) | {"s", "inside"}
    for loop in full_loops(emitted):
        for line in loop.body:
            if isinstance(line, ast.Assign) and names_in(*line.targets) & score:
                continue
            assert not (names_in(line) - hidden) & {"live", "kv_len", "q_len", "row_ok"}, ast.unparse(line)
            masks = [keyword.value for load in loads_in(line) for keyword in load.keywords if keyword.arg == "mask"]
            assert names_in(*masks) <= allowed, ast.unparse(line)


@RANDOM
@given(st.one_of(cases(tensor_offsets=True), NORMALIZED), SPECIALISATIONS)
def test_what_is_computed_is_read(case: Case, spec: Specialisation) -> None:
    assume(isinstance(stream(Compilation(case.variant).program), Streaming))
    for emitted in kernels_of(case.variant, spec):
        assert unread(emitted) == set(), repr(case)


def unread(emitted: Emitted) -> set[str]:
    """The values that have a name in a kernel which nothing reads."""
    plan, names = emitted.plan, [node for node in ast.walk(kernel_of(emitted)) if isinstance(node, ast.Name)]
    read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    values = named(*(part.statements for part in (plan.placement, plan.peaks, plan.rest, plan.last)))
    return {name.id for name in names} & values - read


def test_rescales_that_share_a_difference_write_it_down_nowhere() -> None:
    (variant,) = parse(
        "attention two(t: tensor[H]) { let d = score - row_max(score) let e = exp(d) let f = exp(t[h] * d)"
        "  normalizer e / row_sum(e) + f / row_sum(f) }"
    )
    (emitted, *_) = kernels_of(variant)
    assert emitted.text.count("alpha_1 = ") == 2, "partial tiles and full ones"
    assert unread(emitted) == set()


def test_full_tiles_are_met() -> None:
    """What the test above reads is there to be read; at a power of two nothing in it is masked."""
    for variant in examples():
        loops = full_loops(emit(variant))
        assert loops, variant.name
        assert not any(load.keywords for loop in loops for load in loads_in(loop))
        assert not any(isinstance(node, ast.Compare) for node in ast.walk(loops[0]) if "INF" not in ast.unparse(node))
    assert not full_loops(emit(parse("attention t() { mask sin(float(kv_idx)) < float(q_idx) * 1.5 }")[0]))


@RANDOM
@given(cases(tensor_offsets=True), SPECIALISATIONS)
def test_what_is_free_of_the_key_is_read_before_the_loops(case: Case, spec: Specialisation) -> None:
    emitted = emit(case.variant, spec)
    placed = emitted.plan.placement
    along_keys = named(placed.walked, placed.tile) | {"kv_idx"}
    along_keys |= {f"{name}{piece}" for name in ("k_tile", "v_tile") for piece in PIECES}
    for _, loop in key_loops(emitted):
        stored = {node.id for node in ast.walk(loop) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        assert not stored & named(placed.program, placed.own)
        for load in loads_in(loop):
            assert names_in(load) & along_keys, ast.unparse(load)


def test_a_slope_and_the_document_of_a_query_are_read_once() -> None:
    alibi, documents = (emit(variant).text for variant in examples() if variant.name in ("alibi", "documents"))
    assert alibi.count("tl.load(slopes") == 1
    assert alibi.index("tl.load(slopes") < alibi.index("for start_n")
    before, _, loops = documents.partition("\n    for ")
    assert "q_idx * stride_doc_1" in before
    assert "q_idx * stride_doc_1" not in loops
    assert "kv_idx * stride_doc_1" in loops


@RANDOM
@given(cases(tensor_offsets=True), SPECIALISATIONS)
def test_lengths_and_values_are_never_specialised_on(case: Case, spec: Specialisation) -> None:
    emitted = emit(case.variant, spec)
    body = ast.parse(emitted.text).body
    listed = next(
        node.value for node in body if isinstance(node, ast.Assign) and names_in(*node.targets) == {"RUNTIME"}
    )
    runtime = set(ast.literal_eval(listed))
    symbols, params = emitted.plan.symbols, emitted.plan.params
    scalars = {symbols[param.name] for param in params if isinstance(param, ScalarParam)}
    tensors = {symbols[param.name] for param in params if isinstance(param, TensorParam)}
    arguments = {arg.arg for arg in kernel_of(emitted).args.args}
    sizes = {name for name in arguments if name.startswith("size_")}
    offset = set() if spec.offset_per_batch else {"q_offset"}
    assert {"q_len", "kv_len", "heads", "group", "sm_scale"} | scalars | sizes | offset <= runtime <= arguments
    assert not runtime & ({"Q", "K", "V", "Out", "stride_qm", "stride_kn"} | tensors)


def test_comments_name_files_without_their_folders(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "causal.attn"
    path.parent.mkdir()
    path.write_text("attention causal() {\n    mask kv_idx <= q_idx\n}\n", encoding="utf-8")
    text = emit(read(path)[0]).text
    assert "# causal.attn:2" in text
    assert str(tmp_path) not in text
    assert "deep" not in text


def test_both_front_ends_print_the_same_kernel() -> None:
    import attndsl as ad

    @ad.mask_mod
    def window(q_idx, kv_idx, *, width):
        return (kv_idx <= q_idx) & (q_idx - kv_idx < width)

    @ad.score_mod
    def capped(score, *, cap):
        return cap * ad.tanh(score / cap)

    python = ad.attention(mask_mod=window(width=128), score_mod=capped(cap=50.0), name="both")
    text = ad.parse(
        "attention both(cap: float = 50.0, width: int = 128) {"
        "  score cap * tanh(score / cap) mask kv_idx <= q_idx and q_idx - kv_idx < width }"
    ).both
    assert python.fingerprint == text.fingerprint

    def code(source: str) -> str:
        """Without comments, which say where the program was written."""
        return ast.unparse(ast.parse(source))

    assert code(python.source()) == code(text.source())

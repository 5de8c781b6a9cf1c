"""Compilation ahead of time: every target with no GPU at hand, and what the reports say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch

import attndsl as ad
from attndsl.attention import Attention
from attndsl.codegen.plan import Target
from attndsl.codegen.templates import triton_helpers
from attndsl.diagnostics import UnsupportedError
from attndsl.inspection import specialisation
from attndsl.runtime.aot import TARGETS, compile_for
from attndsl.runtime.reports import CompileReport, KernelReport

CAUSAL = "attention causal {\n    mask  kv_idx <= q_idx\n}"
CAPTURES = """
attention captures(doc: int tensor[B, N], keep: bool tensor[N], slopes: tensor[H], window: int, cap: float) {
    mask   doc[b, q_idx] == doc[b, kv_idx] and keep[kv_idx] and q_idx - kv_idx < window
    score  cap * tanh((score - slopes[h] * float(q_idx - kv_idx)) / cap)
}
"""

WINDOW = "kv_idx <= q_idx and q_idx - kv_idx < w"
PROGRAMS = {
    "dense": "attention dense {}",
    "causal": CAUSAL,
    "window": f"attention window(w: int) {{ mask {WINDOW} }}",
    "soft cap": "attention capped(cap: float) { mask kv_idx <= q_idx score cap * tanh(score / cap) }",
    "learned alibi": (
        "attention alibi(t: tensor[H]) { mask kv_idx <= q_idx score score + t[h] * float(kv_idx - q_idx) }"
    ),
    "documents": "attention docs(doc: int tensor[B, N]) { mask kv_idx <= q_idx and doc[b, q_idx] == doc[b, kv_idx] }",
    "sinks": f"attention sinks(w: int, t: tensor[H]) {{ mask {WINDOW} normalizer softmax(sink = t[h]) }}",
    "sparsemax": "attention sparse { mask kv_idx <= q_idx normalizer sparsemax() }",
    "learned bias": "attention biased(t: tensor[H, N, M]) { mask kv_idx <= q_idx score score + t[h, q_idx, kv_idx] }",
}
HELPERS = """
attention helpers(n: int, x: float, seen: bool tensor[Q, K]) {
    mask   bit_length(q_idx ^ kv_idx) < 6 and (q_idx - kv_idx) // n % n != 1 and seen[q_idx, kv_idx // 8]
    score  x ** 3.0 + tan(score % x) + gelu(score // x) + round(min(score, x)) + silu(max(score, x)) + tanh(score) ** x
}
"""
COMPILED = [
    *(("causal", target, 64) for target in ("cuda:80", "cuda:90", "cuda:100")),
    ("dense", "cuda:90", 128),
    ("window", "cuda:80", 128),
    ("window", "cuda:90", 128),
    ("window", "cuda:100", 128),
    ("soft cap", "cuda:90", 128),
    ("learned alibi", "cuda:80", 128),
    ("learned alibi", "cuda:90", 64),
    ("documents", "cuda:80", 64),
    ("documents", "cuda:90", 128),
    ("sinks", "cuda:80", 64),
    ("sinks", "cuda:90", 64),
    ("sparsemax", "cuda:80", 64),
    ("learned bias", "cuda:90", 128),
]
"""Each program where registers are short; `benchmarks.compile` does all of them everywhere."""

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="compiles in this process; one test below sets the variable"
)


def one(source: str) -> Attention:
    (declared,) = ad.parse(source)
    return declared


@cache
def report(target: str, source: str = CAUSAL, dtype: torch.dtype = torch.bfloat16, dim: int = 64) -> CompileReport:
    return one(source).compile_for(target, dtype=dtype, head_dim=dim)


def test_the_names_of_a_report() -> None:
    pinned = {"name", "registers", "spilled_bytes", "shared_bytes", "instructions", "assembly"}
    assert pinned <= {field.name for field in fields(KernelReport)}
    assert {"target", "kernels"} <= {field.name for field in fields(CompileReport)}


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "cpu"])
def test_every_gpu(target: str) -> None:
    found = report(target)
    assert found.target == target
    assert [kernel.name for kernel in found.kernels] == ["forward", "backward_dq", "backward_dkv"]
    kernel = found.kernels[0]
    assert 16 <= kernel.registers <= 255
    assert kernel.spilled_bytes == 0
    assert 0 < kernel.shared_bytes <= (228 if target.startswith("cuda") else 64) * 1024
    assert sum(kernel.instructions.values()) > 100
    assert all(count > 0 for count in kernel.instructions.values())
    head, forward = (".version", ".entry forward") if target.startswith("cuda") else (".amdgcn_target", "forward:")
    assert head in kernel.assembly
    assert forward in kernel.assembly
    printed = str(found)
    assert printed.startswith(target)
    assert f"{kernel.registers} registers" in printed


@pytest.mark.parametrize(
    "target, product",
    [("cuda:80", "mma"), ("cuda:90", "wgmma"), ("cuda:100", "tcgen05"), ("hip:gfx942", "v_mfma_f32_32x32x8_bf16")],
)
def test_products_are_those_of_the_machine(target: str, product: str) -> None:
    instructions = report(target).kernels[0].instructions
    assert instructions.get(product, 0) > 0, sorted(instructions)


@pytest.mark.parametrize("name, target, dim", COMPILED)
def test_nothing_is_spilled(name: str, target: str, dim: int) -> None:
    """Of the tiles launches use by default; on Hopper, products are those of warp groups in every kernel."""
    found = {kernel.name: kernel for kernel in report(target, PROGRAMS[name], dim=dim).kernels}
    assert {"forward", "backward_dq", "backward_dkv"} <= found.keys()
    assert {kernel.name: kernel.spilled_bytes for kernel in found.values()} == dict.fromkeys(found, 0)
    if target == "cuda:90":
        assert all(found[kernel].instructions.get("wgmma", 0) > 0 for kernel in WARP_GROUPS)


WARP_GROUPS = ("forward", "backward_dq", "backward_dkv")


def test_gradients_of_what_is_learnt_are_compiled() -> None:
    """Of tensors that require grad, and of those that have no value yet; a kernel with none of them is left out."""
    declared = one("attention biased(t: tensor[H, D]) { mask kv_idx <= q_idx score score + t[h, q_idx - kv_idx] }")
    table = torch.zeros(2, 8)
    kinds = [declared, declared.bind(t=table.clone().requires_grad_()), declared.bind(t=table)]
    names = [[kernel.name for kernel in compiled(kind).kernels] for kind in kinds]
    assert ["backward_diagonal" in listed for listed in names] == [True, True, False]
    assert names[0][:-1] == names[2]
    assert "d_t_0" in declared.source("backward_diagonal")
    assert "d_t_0" not in kinds[2].source("backward_diagonal")


def compiled(attention: Attention) -> CompileReport:
    return attention.compile_for("cuda:80", dtype=torch.bfloat16, head_dim=16)


def test_captured_values_of_every_kind() -> None:
    kernel = report("cuda:80", CAPTURES, dim=16).kernels[0]
    pointers, floats = (kernel.assembly.count(f".param .{kind} ") for kind in ("u64 .ptr", "f32"))
    plain = report("cuda:80").kernels[0].assembly
    assert pointers >= plain.count(".param .u64 .ptr ") + 3  # doc, keep and slopes
    assert floats == plain.count(".param .f32 ") + 1 == 2  # the scale, and cap


def test_every_helper_is_compiled() -> None:
    """What the interpreter runs need not compile: `bit_length` once did not."""
    text = one(HELPERS).source() + one(PROGRAMS["sparsemax"]).source("statistics_1")
    library = Path(triton_helpers.__file__).read_text(encoding="utf-8")
    defined = set(re.findall(r"^def (\w+)", library, re.MULTILINE))
    assert defined
    assert defined <= set(re.findall(r"^def (\w+)", text, re.MULTILINE))
    helpers = one(HELPERS)
    spec = specialisation(helpers._compilation, {}, Target.TRITON, torch.bfloat16, 16, None)
    assert compile_for({"forward": helpers._compilation.kernel("forward", spec)}, "cuda:90").kernels[0].registers > 0


def test_elements_and_head_dims_reach_the_assembler() -> None:
    narrow = one(CAUSAL).compile_for("cuda:80", dtype=torch.float16, head_dim=16, v_head_dim=32).kernels[0]
    assert "f16" in narrow.assembly
    assert "bf16" not in narrow.assembly
    assert narrow.shared_bytes < report("cuda:80").kernels[0].shared_bytes


@pytest.mark.parametrize(
    "target", ["cuda", "cuda:", "cuda:9", "cuda:75", "cuda:999", "hip:gfx1", "rocm:gfx942", "", None]
)
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(UnsupportedError, match="unknown-target") as caught:
        one(CAUSAL).compile_for(target, dtype=torch.bfloat16, head_dim=64)
    assert all(f'"{known}"' in str(caught.value) for known in TARGETS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_of_this_cpu(dtype: torch.dtype) -> None:
    built = one(CAUSAL).compile_for("cpu", dtype=dtype, head_dim=64)
    assert [kernel.name for kernel in built.kernels] == list(one(CAUSAL).kernels("cpp"))
    kernel = built.kernels[0]
    assert kernel.assembly == one(CAUSAL).source(target="cpp", dtype=dtype, head_dim=64)
    assert kernel.assembly == one(CAUSAL).source(target="cpu", dtype=dtype, head_dim=64), "the backend names it too"
    assert kernel.registers >= 8
    assert kernel.instructions["ret"] >= 1
    assert sum(kernel.instructions.values()) > 500
    assert (kernel.spilled_bytes, kernel.shared_bytes) == (None, 0)
    assert f"cpu\n  forward: {kernel.registers} registers, 0 bytes of shared memory" in str(built)


@pytest.mark.parametrize("dtype, dim", [(torch.float64, 64), (torch.bfloat16, 0), (torch.bfloat16, 257)])
def test_what_kernels_do_not_take_is_refused_before_compiling(dtype: torch.dtype, dim: int) -> None:
    with pytest.raises(UnsupportedError, match="kernels take"):
        one(CAUSAL).compile_for("cuda:80", dtype=dtype, head_dim=dim)


def test_a_process_that_interprets_compiles_too() -> None:
    code = f"""
import json, torch, attndsl as ad
q = torch.ones(1, 1, 4, 16)
(causal,) = ad.parse({CAUSAL!r})
assert causal(q, q, q, backend="triton").shape == q.shape
kernel = causal.compile_for("cuda:80", dtype=torch.bfloat16, head_dim=64).kernels[0]
print(json.dumps([kernel.name, kernel.registers, kernel.spilled_bytes, kernel.shared_bytes]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = report("cuda:80").kernels[0]
    assert json.loads(done.stdout) == ["forward", here.registers, here.spilled_bytes, here.shared_bytes]

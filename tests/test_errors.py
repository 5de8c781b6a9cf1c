"""Every mistake a call, a plan or a declaration can hold: its message as a user reads it, in one golden file each."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention
from attndsl.diagnostics import DiagnosticError
from attndsl.loading import Declaration, Namespace

ROOT = Path(__file__).parents[1]
GOLDENS = sorted((ROOT / "tests" / "golden").rglob("*.txt"))

TEXT = """\
attention causal {
    mask  kv_idx <= q_idx
}
attention window(window: int) {
    mask  kv_idx <= q_idx and q_idx - kv_idx < window
}
attention slopes(slopes: tensor[H], window: int = 4) {
    mask   kv_idx <= q_idx and q_idx - kv_idx < window
    score  score - slopes[h] * float(q_idx - kv_idx)
}
attention relative(table: tensor[N]) {
    mask   kv_idx <= q_idx
    score  score + table[q_idx - kv_idx]
}
attention scattered(order: int tensor[N], table: tensor[N]) {
    mask   order[q_idx] >= 0
    score  score + table[order[kv_idx]]
}
attention documents(doc: int tensor[B, N]) {
    mask  doc[b, q_idx] == doc[b, kv_idx]
}
attention blocks(size: int) {
    mask  q_idx // size == kv_idx // size
}
attention stride(n: int) {
    mask  q_idx * n * n < kv_idx
}
attention bits(n: int) {
    mask  q_idx >> n == kv_idx >> n
}
attention sigmoid {
    normalizer  sigmoid(score)
}
attention centred {
    let mean = row_sum(score) / row_sum(1.0)
    normalizer  (score - mean) / sqrt(row_sum((score - mean) * (score - mean)))
}
attention raised {
    normalizer  exp(score - row_max(score))
}
attention drained(sink: tensor[H]) {
    normalizer  softmax(sink = sink[h])
}
attention largest(k: int) {
    normalizer  topk(k)
}
attention root {
    mask    kv_idx <= q_idx
    weight  sqrt(weight - 0.25)
}
attention logarithm {
    normalizer  log(score) / row_sum(log(score))
}
"""


def texts() -> Namespace:
    return ad.parse(TEXT, "calls.attn")


def qkv(*sizes: int, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of batch 1, 2 heads, 5 queries and keys, 8 columns, or of other sizes in that order."""
    shape = (*sizes, *(1, 2, 5, 8)[len(sizes) :])
    return torch.zeros(shape, **how), torch.zeros(shape, **how), torch.zeros(shape, **how)


def causal(*tensors: Any, **how: Any) -> Any:
    """A call of the causal attention, by default on what fits."""
    attention: Attention = texts().causal.bind()
    return attention(*(tensors or qkv()), **how)


def learning() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv()
    return q.requires_grad_(), k, v.requires_grad_()


def slopes(value: Any = None, **how: Any) -> Attention:
    declared: Declaration = texts().slopes
    return declared.bind(slopes=torch.ones(2) if value is None else value, **how)


def mean_of(table: Tensor) -> Callable[..., Any]:
    return lambda score, h: score + table[h] / table.shape[0]


def first_of(table: Tensor) -> Any:
    """A predicate without a place, which is that of this file."""
    return eval("lambda kv_idx: table[kv_idx] == 0", {"table": table})


order = torch.tensor([0, 1, 7, -1, 2])

# Each entry is named after the codes its message must start with.
CALLS: dict[str, Callable[[], Any]] = {
    # What q, k and v are.
    "not-a-tensor-call": lambda: causal([1.0], None, qkv()[2]),
    "wrong-rank": lambda: causal(torch.zeros(2, 5, 8), torch.zeros(5, 8), qkv()[2]),
    "wrong-dtype": lambda: causal(*qkv(dtype=torch.int32)),
    "mixed-dtypes": lambda: causal(torch.zeros(1, 2, 5, 8, dtype=torch.float16), *qkv()[1:]),
    "mixed-devices": lambda: causal(torch.zeros(1, 2, 5, 8, device="meta"), *qkv()[1:]),
    "batch-mismatch": lambda: causal(qkv()[0], *qkv(3)[1:]),
    "heads-mismatch": lambda: causal(qkv(1, 4)[0], *qkv()[1:]),
    "heads-mismatch-kv": lambda: causal(*qkv()[:2], qkv(1, 4)[2]),
    "heads-do-not-divide": lambda: causal(qkv(1, 3)[0], *qkv()[1:], enable_gqa=True),
    "length-mismatch": lambda: causal(*qkv()[:2], qkv(1, 2, 7)[2]),
    "head-dim-mismatch": lambda: causal(qkv(1, 2, 5, 16)[0], *qkv()[1:]),
    "head-dim-zero": lambda: causal(*qkv(1, 2, 5, 0)),
    "length-too-large": lambda: causal(*qkv(1, 2, 2**31, device="meta")),
    # How it is called.
    "bad-scale": lambda: causal(scale=float("nan")),
    "bad-scale-tensor": lambda: causal(scale=torch.tensor(0.5)),
    "bad-offset": lambda: causal(q_offset=1.5),
    "bad-offset-tensor": lambda: causal(q_offset=torch.zeros(3)),
    "mixed-devices-offset": lambda: causal(q_offset=torch.zeros(1, dtype=torch.int64, device="meta")),
    "offset-too-large": lambda: causal(q_offset=2**63),
    "unknown-backend": lambda: causal(backend="cuda"),
    "bad-aux": lambda: causal(return_aux="lse"),
    "unknown-aux": lambda: causal(return_aux=["lse", "entropy", "loss"]),
    "unknown-aux-mass": lambda: causal(return_aux=["mass"]),
    "index-out-of-bounds-mass": lambda: causal(return_aux=[ad.aux.mass(first_of(torch.zeros(3)))]),
    "no-lse": lambda: texts().sigmoid.bind()(*qkv(), return_aux=["lse"]),
    # Captured tensors and scalars.
    "mixed-devices-capture": lambda: slopes(torch.ones(2, device="meta"))(*qkv()),
    "index-out-of-bounds": lambda: slopes(torch.ones(1))(*qkv()),
    "index-out-of-bounds-batch": lambda: texts().documents(doc=torch.zeros(1, 5, dtype=torch.int64))(*qkv(2)),
    "index-out-of-bounds-distance": lambda: texts().relative(table=torch.ones(4))(*qkv()),
    "index-out-of-bounds-found": lambda: texts().scattered(order=order.abs(), table=torch.ones(5))(*qkv()),
    "index-negative": lambda: texts().scattered(order=order.clamp(max=4), table=torch.ones(5))(*qkv()),
    "division-by-zero-scalar": lambda: texts().blocks(size=0)(*qkv()),
    "shift-out-of-range-scalar": lambda: texts().bits(n=64)(*qkv()),
    "integer-overflow": lambda: texts().stride(n=2**40)(*qkv()),
    "integer-overflow-scalar": lambda: texts().window(window=2**70)(*qkv()),
    # Parameters of a declaration, and of an attention.
    "missing-parameter": lambda: texts().slopes(),
    "missing-parameter-call": lambda: texts().window(*qkv()),
    "unknown-parameter": lambda: texts().window(windw=3, size=4, window=2),
    "unknown-parameter-bind": lambda: slopes().bind(slope=torch.ones(2)),
    "parameter-type-declared": lambda: texts().slopes(slopes=torch.ones(2, 3, dtype=torch.int32), window=1.5),
    "parameter-type-list": lambda: texts().slopes(slopes=[1.0, 2.0], window=True),
    "parameter-type-bind": lambda: slopes().bind(window=1.5, slopes=torch.ones(2, dtype=torch.int64)),
    "parameter-shape": lambda: ad.attention(score_mod=mean_of(torch.ones(4))).bind(table=torch.ones(3)),
    "sink-shape": lambda: ad.softmax(sink=torch.ones(2, 2, 2, 2, 2)),
    "index-out-of-bounds-sink": lambda: texts().drained.bind(sink=torch.ones(1))(*qkv()),
    "parameter-shape-bias": lambda: ad.normalizers.sigmoid(torch.ones(2, 2, 2, 2)),
    "parameter-shape-prior": lambda: ad.normalizers.prior([1.0, 2.0]),
    "requirement-topk": lambda: texts().largest.bind(k=6)(*qkv()),
    "requirement-topk-none": lambda: texts().largest.bind(k=0)(*qkv()),
    "weight-not-finite": lambda: texts().root.bind()(*qkv(), check=True),
    "weight-not-finite-normalizer": lambda: texts().logarithm.bind()(*qkv(), check=True, q_offset=3),
    "grid-mask": lambda: ad.masks.sliding_tiles(ad.grid(y=4, x=6), (2, 2, 2), (3.5, 2)),
    "tensor-dtype": lambda: ad.attention(score_mod=mean_of(torch.ones(4, dtype=torch.complex64))),
    "unknown-attention": lambda: texts().casual,
    # What kernels cannot do, and what is asked of an attention otherwise.
    "kernel-device": lambda: causal(backend="triton"),
    "kernel-dtype": lambda: causal(*qkv(dtype=torch.float64), backend="triton"),
    "kernel-device-cpu": lambda: causal(*qkv(device="meta"), backend="cpu"),
    "kernel-head-dim-v": lambda: causal(*qkv()[:2], qkv(1, 2, 5, 300)[2], backend="triton"),
    "heads-mismatch-kv-odd": lambda: causal(*qkv()[:2], qkv(1, 3)[2]),
    "kernel-head-dim": lambda: causal(*qkv(1, 2, 5, 257), backend="triton"),
    "kernel-dtype-source": lambda: texts().causal.source(dtype=torch.float64, head_dim=512),
    "normalizer-needs-more-passes": lambda: texts().centred.source(),
    "maximum-not-invariant": lambda: texts().raised.source("backward_dq"),
    "unknown-kernel": lambda: texts().causal.source("backward"),
    "unknown-target": lambda: texts().causal.source(target="cuda"),
    "unknown-target-compile": lambda: compile_for("cuda:75"),
    "kernel-dtype-compile": lambda: texts().causal.compile_for("cpu", dtype=torch.int32, head_dim=64),
    "unknown-pass-ir": lambda: texts().causal.ir(after="simplify"),
    # Plans.
    "bad-length": lambda: texts().causal.plan(-1, 10.5, batch=True),
    "bad-block": lambda: texts().causal.plan(100, block=128),
    "bad-offset-plan": lambda: texts().causal.plan(100, batch=2, q_offset=torch.tensor([1, 2, 3])),
    "index-out-of-bounds-plan": lambda: texts().documents(doc=torch.zeros(1, 64, dtype=torch.int64)).plan(100),
}


def compile_for(target: str) -> Any:
    return texts().causal.compile_for(target, dtype=torch.bfloat16, head_dim=64)


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str, golden: Callable[..., None]) -> None:
    with pytest.raises(DiagnosticError) as caught:
        CALLS[name]()
    assert any(name.startswith(diagnostic.code) for diagnostic in caught.value.diagnostics)
    golden(str(caught.value), "diagnostics")


def test_everything_wrong_is_reported_at_once() -> None:
    q, k, v = qkv(2, 3)[0], qkv(1, 2, 6, 9)[1], qkv(3, 4, 7)[2]
    with pytest.raises(DiagnosticError) as caught:
        slopes(torch.ones(2, device="meta"))(q, k, v, enable_gqa=True, scale=float("inf"), q_offset="0")
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == [
        "batch-mismatch",
        "heads-mismatch",
        "length-mismatch",
        "head-dim-mismatch",
        "heads-do-not-divide",
        "bad-scale",
        "bad-offset",
        "mixed-devices",
    ]


def test_an_error_survives_pickling() -> None:
    """Worker processes send their errors home."""
    with pytest.raises(DiagnosticError) as caught:
        texts().window(*qkv())
    copied = pickle.loads(pickle.dumps(caught.value))
    assert type(copied) is type(caught.value)
    assert str(copied) == str(caught.value)


CODE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")
NOT_CODES = {"attndsl-1", "utf-8"}


def codes_of(source: str) -> Iterator[str]:
    """The codes a module can report: every literal of that form it hands to a call or chooses between."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(args=args):
                candidates = args
            case ast.IfExp(body=body, orelse=orelse):
                candidates = [body, orelse]
            case _:
                continue
        for candidate in candidates:
            match candidate:
                case ast.Constant(value=str(text)) if CODE.fullmatch(text) and text not in NOT_CODES:
                    yield text


def test_codes_are_found_in_every_way_they_are_written() -> None:
    source = """
def f(reporter):
    reporter.error("first-code", "message")
    code = "second-code" if reporter else "third-code"
    raise fail(Kind, "fourth-code", "a message", help="not-this-one")
"""
    assert set(codes_of(source)) == {"first-code", "second-code", "third-code", "fourth-code"}


def test_every_code_is_in_a_golden_or_a_test() -> None:
    sources = (path.read_text() for path in (ROOT / "attndsl").rglob("*.py"))
    codes = {code for source in sources for code in codes_of(source)}
    assert len(codes) > 80
    written = "".join(path.read_text() for path in GOLDENS)
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    shown = set(re.findall(r"^error\[([a-z0-9-]+)\]", written, re.MULTILINE))
    asserted = set(re.findall(rf"(?<![\w-]){CODE.pattern}(?![\w-])", tests))
    assert sorted(codes - shown - asserted) == []


def test_messages_read_alike() -> None:
    """Lower case, no full stop, names in backquotes and not in quotes, `help` and `note` behind."""
    for path in GOLDENS:
        for line in re.findall(r"^error\[[a-z0-9-]+\]: (.*)$", path.read_text(), re.MULTILINE):
            assert not line[0].isupper() or not line[1].islower() or line.startswith("Triton"), f"{path.name}: {line}"
            assert not line.endswith("."), f"{path.name}: {line}"

"""The object users hold, through its public names: signatures, outputs, backends, values, promises about NaN."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from launches import INTERPRETING, on_kernels
from torch import Tensor

import attndsl as ad
from attndsl import calling, compiler
from attndsl.attention import Attention
from attndsl.codegen.plan import KernelPlan, Target
from attndsl.diagnostics import CallError, DiagnosticError, UnsupportedError, VerifyError
from attndsl.runtime import facts
from attndsl.runtime.native.build import text_of

not_interpreted = pytest.mark.skipif(INTERPRETING, reason="under the interpreter Triton's kernels run")
KERNELS = "triton" if INTERPRETING else "cpu"

CAUSAL = "attention causal {\n    mask  kv_idx <= q_idx\n}"
ALIBI = """
attention alibi(slopes: tensor[H], window: int = 64) {
    mask   kv_idx <= q_idx and q_idx - kv_idx < window
    score  score - slopes[h] * float(q_idx - kv_idx)
}
"""
DOCUMENTS = "attention documents(doc: int tensor[B, N]) {\n    mask  doc[b, q_idx] == doc[b, kv_idx]\n}"
PERMUTED = "attention a(order: int tensor[B, N], table: tensor[M]) {\n    score  score + table[order[b, kv_idx]]\n}"
SINK = "attention sink(sink: tensor[H]) {\n    mask  kv_idx < q_idx\n    normalizer  softmax(sink = sink[h])\n}"


def text(source: str, **values: Any) -> Attention:
    """The one attention of a text, with values."""
    (declared,) = ad.parse(source)
    bound: Attention = declared.bind(**values)
    return bound


def traced_alibi(slopes: Tensor, window: int = 64) -> Attention:
    @ad.mask_mod
    def near(q_idx: Any, kv_idx: Any, *, window: Any) -> Any:
        return (kv_idx <= q_idx) & (q_idx - kv_idx < window)

    @ad.score_mod
    def linear(score: Any, h: Any, q_idx: Any, kv_idx: Any, *, slopes: Any) -> Any:
        return score - slopes[h] * (q_idx - kv_idx)

    return ad.attention(mask_mod=near(window=window), score_mod=linear(slopes=slopes), name="alibi")


def qkv(
    batch: int = 1,
    heads: int = 2,
    q_len: int = 5,
    kv_len: int | None = None,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
    kv_heads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys = (batch, kv_heads or heads, q_len if kv_len is None else kv_len, dim)
    shapes = ((batch, heads, q_len, dim), keys, keys)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, live: Tensor, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Softmax attention written out: output and log of the divisor."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    scores = scores.masked_fill(~live, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1)


def lower(q_len: int, kv_len: int, offset: int = 0) -> Tensor:
    return torch.ones(q_len, kv_len).tril(offset).bool()


# Signatures.


def signature(function: Callable[..., Any]) -> dict[str, Any]:
    """Names with defaults, keyword-only ones after `*`."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found.setdefault("*", None)
        found[name] = ... if parameter.default is parameter.empty else parameter.default
    found.pop("self", None)
    return found


def test_attention_signature() -> None:
    mods = {"*": None, "score_mod": None, "mask_mod": None, "normalizer": None, "weight_mod": None, "name": None}
    assert list(signature(ad.attention).items()) == list(mods.items())


def test_call_signature() -> None:
    assert list(signature(Attention.__call__).items()) == [
        *(("q", ...), ("k", ...), ("v", ...), ("*", None), ("scale", None), ("enable_gqa", False), ("q_offset", 0)),
        *(("blocks", None), ("return_aux", False), ("backend", "auto"), ("check", False)),
    ]


def test_plan_signature() -> None:
    assert list(signature(Attention.plan).items()) == [
        *(("q_len", ...), ("kv_len", None), ("*", None), ("batch", 1), ("heads", 1), ("block", (128, 128))),
        *(("q_offset", 0), ("blocks", None), ("exact", False)),
    ]


def test_other_signatures() -> None:
    dtype = {"dtype": torch.bfloat16, "head_dim": 128, "v_head_dim": None}
    assert signature(Attention.source) == {"kernel": "forward", "target": "triton", "*": None, **dtype}
    assert signature(Attention.kernels) == {"target": "triton"}
    assert signature(Attention.ir) == {"after": None}
    required = {"dtype": ..., "head_dim": ..., "v_head_dim": None}
    assert signature(Attention.compile_for) == {"target": ..., "*": None, **required}
    assert signature(Attention.invalidate) == {}


# Outputs.


def test_output_and_statistics_by_hand() -> None:
    q, k, v = qkv(2, 3, 17, 23, dtype=torch.float64)
    out, aux = text(CAUSAL)(q, k, v, return_aux=True)
    expected, lse = by_hand(q, k, v, lower(17, 23))
    assert_rows_close(out, expected, 1e-12)
    assert_rows_close(aux.lse, lse, 1e-12)
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~lower(17, 23), -torch.inf)
    assert_rows_close(aux.max_score, scores.amax(-1), 1e-12)


def test_statistics_by_name() -> None:
    attention, tensors = text(CAUSAL), qkv()
    out, aux = attention(*tensors, return_aux=["lse"])
    assert aux.lse.shape == (1, 2, 5)
    assert aux.max_score is None
    assert torch.equal(out, attention(*tensors))
    _, aux = attention(*tensors, return_aux=("max_score",))
    assert aux.lse is None
    assert attention(*tensors, return_aux=[])[1] == ad.Aux()


@not_interpreted
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_maximum_is_a_constant_on_every_backend(backend: str) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in qkv())
    out, aux = text(CAUSAL)(q, k, v, backend=backend, return_aux=True)
    assert (out.requires_grad, aux.lse.requires_grad, aux.entropy.requires_grad) == (True, True, True)
    assert not aux.max_score.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        aux.max_score.sum().backward()


def test_everything_defined_is_returned_where_there_is_no_lse() -> None:
    _, aux = text("attention a {\n    normalizer  sigmoid(score)\n}")(*qkv(), return_aux=True, backend="reference")
    assert aux.lse is None
    assert aux.max_score is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_of_what_is_returned(dtype: torch.dtype) -> None:
    out, aux = text(CAUSAL)(*qkv(dtype=dtype), return_aux=True)
    assert out.dtype is dtype
    assert aux.lse.dtype is aux.max_score.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)


def test_scale_offset_and_groups_by_hand() -> None:
    q, k, v = qkv(2, 4, 6, 9, dtype=torch.float64, kv_heads=2)
    out = text(CAUSAL)(q, k, v, scale=0.25, enable_gqa=True, q_offset=3)
    wide_k, wide_v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    expected, _ = by_hand(q * (0.25 * 8**0.5), wide_k, wide_v, lower(6, 9, 3))
    assert_rows_close(out, expected, 1e-12)


def test_an_offset_for_each_batch() -> None:
    q, k, v = qkv(2, 1, 4, 8, dtype=torch.float64)
    out = text(CAUSAL)(q, k, v, q_offset=torch.tensor([0, 4]))
    live = torch.stack([lower(4, 8), lower(4, 8, 4)])[:, None]
    assert_rows_close(out, by_hand(q, k, v, live)[0], 1e-12)


def test_numbers_of_numpy_are_numbers() -> None:
    np = pytest.importorskip("numpy")
    attention, tensors = text(ALIBI, slopes=torch.ones(2), window=np.int64(3)), qkv()
    found = attention(*tensors, q_offset=np.int32(1), scale=np.float32(0.5))
    assert torch.equal(found, text(ALIBI, slopes=torch.ones(2), window=3)(*tensors, q_offset=1, scale=0.5))


def test_rows_without_a_live_key() -> None:
    q, k, v = qkv(q_len=3, kv_len=4)
    out, aux = text(DOCUMENTS, doc=torch.tensor([[1, 2, 2, 2]]))(q, k, v, q_offset=0, return_aux=True)
    assert aux.lse.isfinite().all()
    out, aux = text("attention a {\n    mask  kv_idx < q_idx\n}")(q, k, v, return_aux=True)
    assert out[..., 0, :].eq(0).all()
    assert aux.lse[..., 0].eq(-torch.inf).all()
    assert aux.max_score[..., 0].eq(-torch.inf).all()


def test_the_sink_of_a_row_without_a_live_key() -> None:
    sink = torch.tensor([0.5, -2.0])
    out, aux = text(SINK, sink=sink)(*qkv(), return_aux=True)
    assert out[..., 0, :].eq(0).all()
    assert torch.equal(aux.lse[0, :, 0], sink)


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 0, 3, 3), (1, 2, 0, 3), (1, 2, 3, 0), (0, 0, 0, 0)])
def test_nothing_to_attend(shape: tuple[int, int, int, int]) -> None:
    batch, heads, q_len, kv_len = shape
    q, k, v = torch.ones(batch, heads, q_len, 8), *(torch.ones(batch, heads, kv_len, 8) for _ in "kv")
    out, aux = text(ALIBI, slopes=torch.ones(heads))(q, k, v, return_aux=True)
    assert out.shape == q.shape
    assert out.eq(0).all()
    assert aux.lse.shape == (batch, heads, q_len)
    assert aux.lse.eq(-torch.inf).all()


def test_values_without_columns() -> None:
    q, k, _ = qkv()
    assert text(CAUSAL)(q, k, torch.ones(1, 2, 5, 0)).shape == (1, 2, 5, 0)


# NaN and what nobody sees.


def poisoned() -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Inputs of 6 queries and 9 keys of which a window of 3 at offset 2 sees keys 0 to 7, clean and poisoned."""
    clean = qkv(1, 2, 6, 9)
    dirty = tuple(tensor.clone() for tensor in clean)
    dirty[1][:, :, 8], dirty[2][:, :, 8] = torch.nan, torch.inf
    return clean, (dirty[0], dirty[1], dirty[2])


def test_keys_that_nobody_sees_never_contribute() -> None:
    attention = text(ALIBI, slopes=torch.ones(2), window=3)
    clean, dirty = poisoned()
    expected = attention(*clean, q_offset=2, return_aux=True)
    found = attention(*dirty, q_offset=2, return_aux=True)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].lse, expected[1].lse)


def test_queries_without_a_live_key_never_contribute() -> None:
    q, k, v = qkv()
    q[:, :, 0] = torch.nan
    out, aux = text("attention a {\n    mask  kv_idx < q_idx\n}")(q, k, v, return_aux=True)
    assert out.isfinite().all()
    assert aux.lse[..., 1:].isfinite().all()


def test_gradients_of_what_nobody_sees_are_zero() -> None:
    attention = text(ALIBI, slopes=torch.ones(2), window=3)
    _, dirty = poisoned()
    tensors = [tensor.requires_grad_() for tensor in dirty]
    attention(*tensors, q_offset=2).sum().backward()
    for tensor in tensors:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert tensors[1].grad is not None
    assert tensors[1].grad[:, :, 8].eq(0).all()


def test_what_lies_beyond_the_lengths_never_shows() -> None:
    """Views into larger buffers: rows behind the last key hold NaN."""
    clean = qkv(1, 2, 6, 9)
    views = []
    for tensor in clean:
        buffer = torch.full((1, 2, 32, 16), torch.nan)
        buffer[:, :, : tensor.shape[2], :8] = tensor
        views.append(buffer[:, :, : tensor.shape[2], :8])
    assert torch.equal(text(CAUSAL)(*views), text(CAUSAL)(*clean))


# Backends.


@not_interpreted
def test_auto_is_native_kernels_on_the_cpu() -> None:
    attention, tensors = text(CAUSAL), qkv(dtype=torch.float64)
    found = attention(*tensors)
    assert torch.equal(found, attention(*tensors, backend="cpu"))
    assert not torch.equal(found, attention.reference(*tensors))
    assert_rows_close(found, attention.reference(*tensors), 1e-12)


@not_interpreted
def test_auto_gives_gradients_by_native_kernels() -> None:
    attention, (q, k, v) = text(CAUSAL), qkv(dtype=torch.float64)
    learnt = [k.clone().requires_grad_() for _ in range(2)]
    found, exact = attention(q, learnt[0], v), attention.reference(q, learnt[1], v)
    assert torch.equal(found, attention(q, k, v, backend="cpu"))
    (dk,), (expected,) = (
        torch.autograd.grad(out.square().sum(), one) for out, one in zip((found, exact), learnt, strict=True)
    )
    assert not torch.equal(dk, expected)
    assert_rows_close(dk, expected, 1e-12)


@not_interpreted
@pytest.mark.parametrize("setting", ["", "0"])
def test_native_kernels_run_without_triton(setting: str) -> None:
    code = f"""
import sys, torch, attndsl as ad
(causal,) = ad.parse({CAUSAL!r})
q = torch.ones(1, 1, 4, 16)
assert causal(q, q, q).shape == q.shape
print("triton" in sys.modules)
"""
    environment = {**os.environ, "TRITON_INTERPRET": setting}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"


def test_the_reference_takes_what_a_call_takes() -> None:
    tensors = qkv(1, 4, 6, 9, kv_heads=2)
    how: dict[str, Any] = {"scale": 0.3, "enable_gqa": True, "q_offset": 2, "return_aux": ["lse"]}
    attention = text(CAUSAL)
    assert torch.equal(attention.reference(*tensors, **how)[0], attention(*tensors, backend="reference", **how)[0])


def test_the_reference_is_differentiable() -> None:
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64, requires_grad=True)
    attention = text(ALIBI, slopes=slopes)
    q, k, v = (tensor.requires_grad_() for tensor in qkv(dtype=torch.float64, q_len=4))
    assert torch.autograd.gradcheck(lambda q, k, v, _: attention.reference(q, k, v), (q, k, v, slopes))


def refused(call: Callable[[], Any], kind: type[DiagnosticError]) -> dict[str, str]:
    with pytest.raises(kind) as caught:
        call()
    return {diagnostic.code: str(diagnostic) for diagnostic in caught.value.diagnostics}


def test_kernels_refuse_float64_and_say_why() -> None:
    message = refused(lambda: text(CAUSAL)(*qkv(dtype=torch.float64, dim=300), backend="triton"), UnsupportedError)
    assert {"kernel-dtype", "kernel-head-dim"} <= message.keys()
    assert "torch.float64" in message["kernel-dtype"]


# Values.


@pytest.fixture
def emissions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were emitted, one entry each."""
    found: list[str] = []
    original = compiler.plan_kernel

    def counted(derivation: Any, name: str, spec: Any) -> KernelPlan:
        found.append(name)
        return original(derivation, name, spec)

    monkeypatch.setattr(compiler, "plan_kernel", counted)
    return found


def test_new_values_are_the_same_kernel(emissions: list[str]) -> None:
    attention = text(ALIBI, slopes=torch.ones(2))
    sources = {attention.source(), attention.bind(window=7).source()}
    sources.add(attention.bind(window=9, slopes=torch.zeros(4)).source())
    assert len(sources) == 1
    assert emissions == ["forward"]


def test_new_values_give_new_results() -> None:
    tensors = qkv(dtype=torch.float64)
    attention = text(ALIBI, slopes=torch.zeros(2, dtype=torch.float64), window=2)
    live = lower(5, 5) & ~lower(5, 5, -2)
    assert_rows_close(attention(*tensors), by_hand(*tensors, live)[0], 1e-12)
    assert_rows_close(attention.bind(window=64)(*tensors), by_hand(*tensors, lower(5, 5))[0], 1e-12)
    assert_rows_close(attention(*tensors), by_hand(*tensors, live)[0], 1e-12)  # binding changed another attention


@pytest.mark.parametrize("make", [lambda slopes: text(ALIBI, slopes=slopes), traced_alibi], ids=["text", "python"])
def test_captured_tensors_are_read_at_each_call(make: Callable[[Tensor], Attention]) -> None:
    slopes, tensors = torch.zeros(2), qkv()
    attention = make(slopes)
    distance = (torch.arange(5)[:, None] - torch.arange(5)).float()
    for step in range(3):
        slopes.fill_(step / 2)
        expected, _ = by_hand(*tensors, lower(5, 5), -step / 2 * distance)
        assert_rows_close(attention.reference(*tensors), expected, 1e-5)


def test_fingerprints_are_of_the_structure() -> None:
    one = text(ALIBI, slopes=torch.ones(2))
    assert one.fingerprint == text(ALIBI, slopes=torch.zeros(4), window=9).fingerprint
    assert one.fingerprint == one.bind(window=3).fingerprint
    renamed = ALIBI.replace("slopes", "s").replace("window", "w").replace("alibi", "other")
    assert one.fingerprint == text(renamed, s=torch.ones(2)).fingerprint
    assert one.fingerprint != text(ALIBI.replace("<=", "<", 1), slopes=torch.ones(2)).fingerprint
    assert one.fingerprint != text(ALIBI.replace("score - slopes", "score + slopes"), slopes=torch.ones(2)).fingerprint


def test_python_and_text_are_one_program() -> None:
    slopes = torch.ones(2)
    written, traced = text(ALIBI, slopes=slopes), traced_alibi(slopes)
    assert written.fingerprint == traced.fingerprint
    plain = [[line for line in attention.source().splitlines() if "# " not in line] for attention in (written, traced)]
    assert sorted(plain[0]) == sorted(plain[1])
    tensors = qkv()
    assert torch.equal(written.reference(*tensors), traced.reference(*tensors))


def test_fingerprints_and_sources_are_those_of_another_process() -> None:
    code = f"import attndsl as ad\n(a,) = ad.parse({ALIBI!r})\nprint(a.fingerprint)\nprint(a.source())"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    ).stdout
    attention = text(ALIBI, slopes=torch.ones(2))
    assert printed == f"{attention.fingerprint}\n{attention.source()}\n"


def test_copies_have_tensors_of_their_own() -> None:
    slopes, tensors = torch.ones(2), qkv()
    attention = text(ALIBI, slopes=slopes)
    copied = copy.deepcopy(attention)
    before = attention.reference(*tensors)
    slopes.zero_()
    assert torch.equal(copied.reference(*tensors), before)
    assert not torch.equal(attention.reference(*tensors), before)


def test_copies_share_tensors_with_what_is_copied_beside_them() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slopes = torch.nn.Parameter(torch.ones(2))
            self.attention = text(ALIBI, slopes=self.slopes)

    layer, tensors = copy.deepcopy(Layer()), qkv()
    layer.attention.reference(*tensors).square().sum().backward()
    assert layer.slopes.grad is not None
    assert layer.slopes.grad.ne(0).any()


@pytest.mark.parametrize("make", [lambda slopes: text(ALIBI, slopes=slopes), traced_alibi], ids=["text", "python"])
def test_pickles_are_the_same_attention(make: Callable[[Tensor], Attention]) -> None:
    attention, tensors = make(torch.tensor([0.5, 2.0])), qkv()
    copied = pickle.loads(pickle.dumps(attention))
    assert copied.fingerprint == attention.fingerprint
    assert copied.name == attention.name
    assert torch.equal(copied.reference(*tensors), attention.reference(*tensors))
    assert copied.bind(window=2).plan(100).counts == attention.bind(window=2).plan(100).counts


def test_an_attention_lets_go_of_calls() -> None:
    """Remembered facts keep neither the tensors of a call nor captured ones of another attention alive."""
    attention, tensors = text(DOCUMENTS, doc=torch.zeros(1, 5, dtype=torch.int64)), qkv()
    attention(*tensors)
    held = weakref.ref(tensors[0])
    del tensors
    assert held() is None
    doc = torch.zeros(1, 5, dtype=torch.int64)
    bound = attention.bind(doc=doc)
    bound(*qkv())
    held = weakref.ref(doc)
    del doc, bound
    assert held() is None


# What is asked of an attention.


def test_invalidate_sees_what_torch_does_not() -> None:
    doc = torch.zeros(1, 5, dtype=torch.int64)
    attention, tensors = text(PERMUTED, order=doc, table=torch.ones(3)), qkv()
    attention(*tensors)
    doc.numpy()[0, 2] = 7
    attention(*tensors)
    attention.invalidate()
    with pytest.raises(CallError, match="it is 7 at"):
        attention(*tensors)


def test_printed_forms() -> None:
    attention = text(ALIBI, slopes=torch.ones(2), window=7)
    assert repr(attention) == f"<attention alibi {attention.fingerprint[:12]}>"
    assert "window: int = 7" in attention.text
    assert text(attention.text, slopes=torch.ones(2)).fingerprint == attention.fingerprint
    assert attention.kernels() == ("forward", "backward_dq", "backward_dkv")
    assert attention.ir(after="fold_constants").startswith("attention alibi(")


def test_plan_of_a_call() -> None:
    attention = text(CAUSAL)
    plan = attention.plan(512)
    assert plan.counts == {"full": 6, "partial": 4, "empty": 6}
    assert plan.strategy == "closed_form"
    assert plan.nbytes == 0
    assert plan.sparsity == 6 / 16
    assert plan.classes().shape == (1, 1, 4, 4)
    assert attention.plan(512, batch=3, heads=2).classes().shape == (1, 1, 4, 4)
    assert attention.plan(128, 512, q_offset=384).counts == {"full": 3, "partial": 1, "empty": 0}


def test_a_plan_leaves_scores_alone() -> None:
    """The slopes of ALiBi have no say in what is masked: a plan for one head needs no more of them than it has."""
    assert text(ALIBI, slopes=torch.ones(1)).plan(256, heads=4).counts["empty"] == 1


def test_explain_names_the_reasons() -> None:
    explained = str(text(ALIBI, slopes=torch.ones(2), window=100).explain(16384))
    for words in ("closed_form", "keys end at `q_idx`", "full", "empty", "GFLOP", "forward"):
        assert words in explained


def test_explain_of_what_kernels_cannot_do() -> None:
    nested = "score / row_sum(abs(score - row_sum(score)))"
    assert "normalizer-needs-more-passes" in str(text(f"attention a {{\n    normalizer  {nested}\n}}").explain(256))


# Through the kernel.


@pytest.fixture
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails every call of the reference."""

    def used(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the kernel path evaluated the reference")

    monkeypatch.setattr(calling, "attend", used)
    return


@pytest.mark.usefixtures("kernels_only")
class TestKernel:
    pytestmark = on_kernels

    @pytest.mark.parametrize("backend", ["auto", KERNELS])
    def test_output_and_statistics_by_hand(self, backend: str) -> None:
        q, k, v = qkv(1, 2, 33, 40)
        out, aux = text(CAUSAL)(q, k, v, backend=backend, return_aux=True)
        expected, lse = by_hand(q.double(), k.double(), v.double(), lower(33, 40))
        assert_rows_close(out, expected, 1e-5)
        assert_rows_close(aux.lse, lse, 1e-5)
        assert aux.max_score.shape == (1, 2, 33)

    @pytest.mark.skipif(not INTERPRETING, reason="native kernels take float64")
    def test_float64_is_refused(self) -> None:
        with pytest.raises(UnsupportedError, match=r"torch\.float64"):
            text(CAUSAL)(*qkv(dtype=torch.float64))

    def test_new_values_are_the_same_kernel(self, emissions: list[str]) -> None:
        slopes = torch.zeros(2)
        attention, (q, k, v) = text(ALIBI, slopes=slopes, window=3), qkv()
        wide = by_hand(q, k, v, lower(5, 5))[0]
        assert not torch.allclose(attention(q, k, v), wide)
        assert_rows_close(attention.bind(window=5)(q, k, v), wide, 1e-5)
        slopes.fill_(100.0)
        assert_rows_close(attention(q, k, v), v, 1e-5)
        assert emissions == ["forward"]

    def test_keys_that_nobody_sees_never_contribute(self) -> None:
        attention = text(ALIBI, slopes=torch.ones(2), window=3)
        clean, dirty = poisoned()
        assert torch.equal(attention(*dirty, q_offset=2), attention(*clean, q_offset=2))

    @pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 0, 3, 3), (1, 2, 0, 3), (1, 2, 3, 0)])
    def test_nothing_to_attend(self, shape: tuple[int, int, int, int]) -> None:
        batch, heads, q_len, kv_len = shape
        q, k, v = torch.ones(batch, heads, q_len, 8), *(torch.ones(batch, heads, kv_len, 8) for _ in "kv")
        out, aux = text(ALIBI, slopes=torch.ones(max(heads, 1)))(q, k, v, return_aux=True)
        assert out.shape == q.shape
        assert out.eq(0).all()
        assert aux.lse.eq(-torch.inf).all()

    def test_values_without_columns(self) -> None:
        q, k, v = qkv()
        out, aux = text(CAUSAL)(q, k, v[..., :0], return_aux=True)
        assert out.shape == (1, 2, 5, 0)
        assert_rows_close(aux.lse, by_hand(q, k, v, lower(5, 5))[1], 1e-5)

    def test_a_copy_and_a_pickle_run(self) -> None:
        attention, tensors = text(ALIBI, slopes=torch.ones(2)), qkv()
        expected = attention(*tensors)
        assert torch.equal(copy.deepcopy(attention)(*tensors), expected)
        assert torch.equal(pickle.loads(pickle.dumps(attention))(*tensors), expected)


BREAKS = {
    "mask": ("live = kv_idx <= q_idx", "live = kv_idx < q_idx", "out"),
    "output": ("out = acc /", "out = 1.001 * acc /", "out"),
    "nan": ("out = acc /", "out = float('nan') * acc /", "out"),
    "lse": ("m_i + tl.log(l_i)", "m_i + 1.01 * tl.log(l_i)", "lse"),
    "max": ("m_i, mask=row_ok", "m_i + 0.1, mask=row_ok", "max_score"),
}
NATIVE_BREAKS = {
    "mask": ("vbool(kv_idx <= q_idx)", "vbool(kv_idx < q_idx)", "out"),
    "output": ("return factor *", "return 1.001f * factor *", "out"),
    "nan": ("return factor *", "return NAN * factor *", "out"),
    "lse": ("m_i + log(l_i)", "m_i + 1.01f * log(l_i)", "lse"),
    "max": ("= max_score[lane]", "= max_score[lane] + 0.1f", "max_score"),
}
"""Right text of a kernel, what to put in its place, and where that shows."""


class TestCheck:
    """`check=True` holds the kernel against the reference."""

    pytestmark = on_kernels

    def test_a_right_kernel_passes(self) -> None:
        tensors = qkv()
        attention = text(ALIBI, slopes=torch.ones(2))
        assert torch.equal(attention(*tensors, check=True), attention(*tensors))

    @pytest.mark.parametrize("right, wrong, what", (BREAKS if INTERPRETING else NATIVE_BREAKS).values(), ids=BREAKS)
    def test_a_broken_kernel_is_caught(
        self, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str, what: str
    ) -> None:
        target = Target.TRITON if INTERPRETING else Target.CPP
        original = compiler.EMITTERS[target]

        def broken(plan: KernelPlan) -> str:
            written = text_of(original(plan))
            assert right in written
            return written.replace(right, wrong)

        monkeypatch.setitem(compiler.EMITTERS, target, broken)
        with pytest.raises(VerifyError, match=f"kernel's {what} differs"):
            text(CAUSAL)(*qkv(), check=True)

    def test_a_divisor_of_zero_is_no_weight_that_is_not_finite(self) -> None:
        q, k, v = (tensor.abs() for tensor in qkv())
        rectified = text("attention rectified { normalizer max(score, 0.0) / row_sum(max(score, 0.0)) }")
        assert not rectified(-q, k, v, check=True).any()
        assert rectified(q, k, v, check=True).any()

    def test_nan_at_a_key_that_is_seen_is_the_callers(self) -> None:
        q, k, v = qkv()
        v[:, :, 0] = torch.nan
        assert text(CAUSAL)(q, k, v, check=True).isnan().all()


def test_facts_are_learnt_once_and_tensors_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    original = facts.summarize

    def counted(tensor: Tensor) -> Any:
        reads.append(tensor.numel())
        return original(tensor)

    monkeypatch.setattr(facts, "summarize", counted)
    doc, tensors = torch.zeros(1, 5, dtype=torch.int64), qkv()
    attention = text(DOCUMENTS, doc=doc)
    for _ in range(3):
        attention(*tensors)
    attention(*qkv(q_len=4))
    attention.plan(5)
    assert reads == [5]
    doc[0, 1] = 1
    attention(*tensors)
    assert reads == [5, 5]

"""What torch may ask of a differentiable call: modes, checkpoints, autocast, tensors written to, second derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from engines import DenseEngine
from launches import inputs, variant
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from attndsl.analysis.structure import Structure, structure_of
from attndsl.diagnostics import CallError, UnsupportedError
from attndsl.ir.nodes import Load
from attndsl.reference import attend as dense
from attndsl.runtime.arguments import Call, check_call
from attndsl.runtime.autograd import attend, cast_by_autocast
from attndsl.runtime.engine import Chunk, Pieces, Task
from attndsl.runtime.gradients.captures import CHUNK_PLACES, keys_of_chunk
from attndsl.runtime.launch import Rows

TEXT = """attention a(slopes: tensor[H], temperature: tensor[], words: int tensor[N]) {
    mask  kv_idx <= q_idx and words[q_idx] == words[kv_idx]
    score temperature * score - slopes[h] * float(q_idx - kv_idx)
}"""


@dataclass
class Setting:
    """A call with two heads, everything of it a leaf that requires grad."""

    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor
    temperature: Tensor
    words: Tensor
    engine: DenseEngine

    def __call__(self, **other: Any) -> Rows:
        now = replace(self, **other)
        values = {"slopes": now.slopes, "temperature": now.temperature, "words": now.words}
        return attend(self.engine, check_call(self.engine.variant, values, now.q, now.k, now.v))

    @property
    def learnt(self) -> tuple[Tensor, ...]:
        return (self.q, self.k, self.v, self.slopes, self.temperature)


@pytest.fixture
def setting() -> Setting:
    q, k, v = (tensor.requires_grad_() for tensor in inputs(heads=2, q_len=20, head_dim=4))
    slopes, temperature = torch.tensor([0.1, 0.3]).requires_grad_(), torch.tensor(1.5).requires_grad_()
    return Setting(q, k, v, slopes, temperature, torch.arange(20) // 7, DenseEngine(variant(TEXT)))


def test_only_what_is_needed(setting: Setting) -> None:
    """The engine is asked for no gradient nobody wants, and no gradient is given to what has none."""
    frozen = {"q": setting.q.detach(), "slopes": setting.slopes.detach()}
    setting(**frozen).out.sum().backward()
    wanted = setting.engine.tasks[-1].wanted
    assert (wanted.q, wanted.k, wanted.v) == (False, True, True)
    assert [load.tensor for load in wanted.loads] == ["temperature"]
    assert setting.q.grad is None
    assert setting.k.grad is not None
    torch.autograd.grad(setting().out.sum(), setting.slopes)
    assert setting.engine.tasks[-1].wanted.q, "which gradients a graph needs is known when it is recorded"


def test_statistics_of_rows(setting: Setting) -> None:
    rows = setting()
    assert rows.lse.requires_grad
    assert not rows.max_score.requires_grad
    found = torch.autograd.grad(rows.lse.sum(), setting.learnt, materialize_grads=True)
    expected = dense(setting.engine.variant, {**vars(setting)}, setting.q, setting.k, setting.v)
    assert expected.lse is not None
    others = torch.autograd.grad(expected.lse.sum(), setting.learnt, materialize_grads=True)
    for gradient, other in zip(found, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_saved_where_nothing_is_recorded(setting: Setting, mode: Any) -> None:
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda _: None):
        with mode():
            rows = setting()
        detached = setting(
            **{name: getattr(setting, name).detach() for name in ("q", "k", "v", "slopes", "temperature")}
        )
    assert not packed
    assert not rows.out.requires_grad
    assert torch.equal(detached.out, rows.out)
    with torch.no_grad():
        assert torch.equal(setting().out, rows.out)


def test_tensors_made_in_inference_mode(setting: Setting) -> None:
    """They are no leaves, but a call that learns something else may read them."""
    with torch.inference_mode():
        words, k = setting.words.clone(), setting.k.detach().clone()
    found = torch.autograd.grad(setting(words=words, k=k).out.sum(), setting.slopes)
    expected = torch.autograd.grad(setting().out.sum(), setting.slopes)
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(setting: Setting, use_reentrant: bool) -> None:
    expected = torch.autograd.grad(setting().out.square().sum(), (setting.q, setting.slopes))
    out = checkpoint(lambda q: setting(q=q).out, setting.q, use_reentrant=use_reentrant)
    out.square().sum().backward()
    assert torch.equal(setting.q.grad, expected[0])
    assert torch.equal(setting.slopes.grad, expected[1])


def test_a_graph_is_retained_when_asked(setting: Setting) -> None:
    rows = setting()
    first = torch.autograd.grad(rows.out.sum(), setting.learnt, retain_graph=True)
    second = torch.autograd.grad(rows.out.sum(), setting.learnt)
    assert all(torch.equal(gradient, other) for gradient, other in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(rows.out.sum(), setting.learnt)


@pytest.mark.parametrize("leads", [True, False], ids=["dout varies", "dout is constant"])
def test_second_derivatives(setting: Setting, leads: bool) -> None:
    out = setting().out
    (first,) = torch.autograd.grad((out.square() if leads else out).sum(), setting.q, create_graph=True)
    assert first.requires_grad
    with pytest.raises(UnsupportedError, match=r"double-backward.*\n.*reference"):
        torch.autograd.grad(first.sum() + setting.q.sum(), setting.q)
    out = setting(q=setting.q.detach()).out
    (first,) = torch.autograd.grad((out.square() if leads else out).sum(), setting.k, create_graph=True)
    for tensor in (setting.v, setting.slopes):
        with pytest.raises(UnsupportedError, match="double-backward"):
            torch.autograd.grad(first.sum(), tensor, retain_graph=True)
    first.mul_(0.5)  # clipping is no derivative


@pytest.mark.parametrize("name", ["slopes", "temperature", "words", "q", "v"])
@pytest.mark.parametrize("recompute", [False, True])
def test_tensors_written_to(setting: Setting, name: str, recompute: bool) -> None:
    """Between forward and backward; under a checkpoint torch itself would not notice."""
    out = checkpoint(setting, use_reentrant=False).out if recompute else setting().out
    with torch.no_grad():
        getattr(setting, name).mul_(2)
    with pytest.raises(CallError, match=rf"written-in-place.*`{name}` was written to"):
        out.sum().backward()


def test_views_written_to(setting: Setting) -> None:
    """A view shares the version of what it is a view of; what comes back is read too."""
    rows = setting(slopes=(setting.slopes * 2)[:2])
    setting.slopes.data.mul_(3)  # what is read is a tensor of its own
    rows.out.sum().backward()
    base = torch.rand(4)
    rows = setting(slopes=base[:2])
    base.mul_(2)
    with pytest.raises(CallError, match=r"written-in-place.*`slopes`"):
        rows.out.sum().backward()
    rows = setting()
    with torch.no_grad():
        rows.out.mul_(2)
    with pytest.raises(CallError, match=r"written-in-place.*given or returned"):
        rows.out.sum().backward()


def test_autocast(setting: Setting) -> None:
    """q, k and v are cast, captured tensors and gradients keep their dtypes, and the backward is not autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = cast_by_autocast(setting.q, setting.k, setting.v)
        rows = setting(q=q, k=k, v=v)
        inside = torch.autograd.grad(rows.out.sum(), setting.learnt, retain_graph=True)
    outside = torch.autograd.grad(rows.out.sum(), setting.learnt)
    assert rows.out.dtype is torch.bfloat16
    assert rows.lse.dtype is torch.float32
    for gradient, other, tensor in zip(inside, outside, setting.learnt, strict=True):
        assert gradient.dtype is tensor.dtype
        assert torch.equal(gradient, other)
    exact = torch.autograd.grad(setting().out.sum(), setting.learnt)
    for gradient, other in zip(outside, exact, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0.1, atol=0.1)


def test_autocast_leaves_float64_and_other_times_alone(setting: Setting) -> None:
    tensors = (setting.q, setting.k, setting.v)
    assert cast_by_autocast(*tensors) == tensors
    with torch.autocast("cpu", torch.bfloat16):
        wide = tuple(tensor.double() for tensor in tensors)
        assert cast_by_autocast(*wide) == wide


def test_parameters_named_as_inputs() -> None:
    text = "attention a(q: tensor[H], k: tensor[], q_offset: tensor[N]) { score score * q[h] + k * q_offset[kv_idx] }"
    engine = DenseEngine(variant(text))
    q, k, v = inputs(heads=2, q_len=9)
    values = {"q": torch.rand(2), "k": torch.rand(()), "q_offset": torch.rand(9)}
    for offset in (0, torch.tensor([0])):
        for name in values:
            learnt = {**values, name: values[name].clone().requires_grad_()}
            rows = attend(engine, check_call(engine.variant, learnt, q, k, v, q_offset=offset))
            expected = dense(engine.variant, learnt, q, k, v, q_offset=offset)
            found, other = (torch.autograd.grad(made.out.square().sum(), learnt[name]) for made in (rows, expected))
            torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5)


def test_indices_made_of_scores() -> None:
    engine = DenseEngine(variant("attention a(t: tensor[N]) { score score + t[clamp(int(score), 0, 3)] }"))
    q, k, v = inputs(q_len=9)
    call = check_call(engine.variant, {"t": torch.rand(4, requires_grad=True)}, q, k, v)
    with pytest.raises(UnsupportedError, match=r"score-indexed-gradient.*`t`"):
        attend(engine, call)
    attend(engine, replace(call, q=q.requires_grad_(), values={"t": torch.rand(4)})).out.sum().backward()


class Peak(TorchDispatchMode):
    """The most elements any tensor made under it has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


class Lean(DenseEngine):
    """Leaves pieces of the right shapes, all 0, and computes nothing."""

    def forward(self, call: Call) -> Rows:
        rows = call.q.new_zeros(call.batch, call.heads, call.q_len)
        return Rows(call.q.new_zeros(*rows.shape, call.v_head_dim), rows, rows.clone(), kept={"lse": rows})

    def backward(self, call: Call, task: Task) -> Pieces:
        rows = task.rows["lse"]
        of = {kind: [load for load in task.wanted.loads if structure_of(load) is kind] for kind in Structure}
        distances = rows.new_zeros(*rows.shape[:2], call.q_len + call.kv_len - 1)
        return Pieces(
            *(torch.zeros_like(tensor) for tensor in (call.q, call.k, call.v)),
            rows=dict.fromkeys(of[Structure.ROW], rows),
            columns=dict.fromkeys(of[Structure.COLUMN], rows.new_zeros(*rows.shape[:2], call.kv_len)),
            diagonals=dict.fromkeys(of[Structure.DIAGONAL], distances),
            chunks=self._lean_chunks(call, of[Structure.PAIRS]),
        )

    def _lean_chunks(self, call: Call, loads: list[Load]) -> Iterator[Chunk]:
        size = 16
        for start in range(0, call.kv_len if loads else 0, size):
            keys = range(start, min(start + size, call.kv_len))
            pairs = call.q.new_zeros(call.batch, call.heads, call.q_len, len(keys))
            yield Chunk(keys, dict.fromkeys(loads, pairs))


@pytest.mark.parametrize(
    "index, size",
    [
        ("h", (2,)),
        ("q_idx", (300,)),
        ("words[kv_idx]", (9,)),
        ("clamp(q_idx - kv_idx, 0, 8)", (9,)),
        ("clamp(q_idx * kv_idx, 0, 8)", (9,)),
    ],
)
def test_nothing_as_large_as_all_pairs_is_made(index: str, size: tuple[int, ...]) -> None:
    text = f"attention a(t: tensor[N], words: int tensor[M]) {{ score score + t[{index}] }}"
    engine = Lean(variant(text))
    tensors = [tensor.requires_grad_() for tensor in inputs(heads=2, q_len=300, head_dim=4)]
    table = torch.zeros(size, requires_grad=True)
    with Peak() as peak:
        call = check_call(engine.variant, {"t": table, "words": torch.zeros(300, dtype=torch.int64)}, *tensors)
        attend(engine, call).out.sum().backward()
    assert table.grad is not None
    assert peak.elements <= 2 * 2 * 300 * 16 * 2


def test_memory_of_the_largest_gradient() -> None:
    """A bias of every pair is written once, in place: no wider copy of it is made."""
    engine = Lean(variant("attention a(t: tensor[H, Q, K]) { score score + t[h, q_idx, kv_idx] }"))
    table = torch.zeros(2, 700, 700, dtype=torch.bfloat16, requires_grad=True)
    q, k, v = inputs(heads=2, q_len=700, head_dim=4)
    made: list[torch.dtype] = []

    class Large(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.untyped_storage().nbytes() >= table.nbytes:
                made.append(result.dtype)
            return result

    with Large():
        attend(engine, check_call(engine.variant, {"t": table}, q, k, v)).out.sum().backward()
    assert set(made) == {torch.bfloat16}


def test_chunks_are_bounded() -> None:
    q, k = torch.zeros(2, 8, 1000, 1), torch.zeros(2, 8, 3000, 1)
    call = Call(q, k, k, 1.0, 0, {})
    loads = variant("attention a(t: tensor[A, B]) { score score + t[q_idx, kv_idx] + t[kv_idx, q_idx] }").loads_of("t")
    keys = keys_of_chunk(call, loads, 64)
    assert keys % 64 == 0
    assert keys * 16 * 1000 * 2 <= CHUNK_PLACES < (keys + 64) * 16 * 1000 * 2
    assert keys_of_chunk(replace(call, q=q.expand(2, 8, 1000, 1).repeat(1, 90, 1, 1)), loads, 64) == 64
    assert keys_of_chunk(replace(call, q=q[:, :, :0]), loads, 64) >= 64

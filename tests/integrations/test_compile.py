"""Attentions inside `torch.compile` and `torch.export`: one graph, the same results, the same gradients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from engines import DenseEngine
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import attndsl as ad
from attndsl import operations, operators
from attndsl.codegen.plan import Target
from attndsl.diagnostics import CallError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler warns of torch itself

DOCUMENTS = torch.tensor([[0] * 20 + [1] * 40, [0] * 33 + [1] * 27])
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
FIRST_KEYS = ad.aux.mass(lambda kv_idx: kv_idx < 4)
OWN_DOCUMENT = ad.aux.mass(lambda b, q_idx, kv_idx: DOCUMENTS[b, q_idx] == DOCUMENTS[b, kv_idx])


@ad.mask_mod
def window(q_idx: Any, kv_idx: Any, *, size: int) -> Any:
    return (kv_idx <= q_idx) & (q_idx - kv_idx < size)


@ad.mask_mod
def documents(b: Any, q_idx: Any, kv_idx: Any) -> Any:
    return DOCUMENTS[b, q_idx] == DOCUMENTS[b, kv_idx]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def dense_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators run the pieces of kernels densely: for tests of many programs, each of which would be compiled once."""
    monkeypatch.setitem(operations.ENGINES, Target.CPP, lambda compilation, *_: DenseEngine(compilation.source))


class Layer(nn.Module):
    """Learns a bias; a function of it is captured, and so are documents."""

    def __init__(self, *, binds: bool = False) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.3, -0.2, 0.1, 0.0]))
        self.register_buffer("documents", DOCUMENTS.clone())
        self.project = nn.Linear(16, 16)
        self.binds = binds

        def score_mod(score: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
            return score + torch.sigmoid(self.slopes)[h] * (kv_idx - q_idx)

        def same(b: Any, q_idx: Any, kv_idx: Any) -> Any:
            return self.documents[b, q_idx] == self.documents[b, kv_idx]

        self.attend = ad.attention(mask_mod=window(size=30) & ad.mask_mod(same), score_mod=score_mod)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attend = self.attend.bind(table=self.slopes, documents=self.documents) if self.binds else self.attend
        out, aux = attend(self.project(q), k, v, return_aux=True)
        return out * torch.sigmoid(aux.lse)[..., None], aux.entropy, aux.max_score


def inputs(length: int, *, heads: int = 4, kv_heads: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, heads, length, 16), (2, kv_heads, length, 16), (2, kv_heads, length, 16)]
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes]


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result, those of an `Aux` in the order of its fields."""
    match result:
        case Tensor():
            return [result]
        case None:
            return []
        case ad.Aux():
            return flat((result.lse, result.max_score, result.entropy, result.mass))
        case _:
            return [tensor for one in result for tensor in flat(one)]


def results(function: Callable[..., Any], args: list[Any], learnt: tuple[Tensor, ...] = ()) -> list[Tensor]:
    """What a function returns, and the gradients of its arguments and of what it has learnt."""
    found = flat(function(*args))
    loss = sum((one * torch.linspace(0, 1, one.numel()).view_as(one)).sum() for one in found if one.requires_grad)
    leaves = [one for one in (*args, *learnt) if isinstance(one, Tensor) and one.requires_grad]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [*(one.detach() for one in found), *(one for one in gradients if one is not None)]


def check(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == other.dtype
        assert_rows_close(one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1]), tolerance, f"{position}")


def counted(function: Callable[..., Any], backend: str = "aot_eager") -> tuple[Callable[..., Any], Any]:
    """A function that is compiled in one graph or not at all, and what counts its compilations."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


# A layer with kernels.


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_layer_has_one_graph_whatever_its_lengths(backend: str) -> None:
    layer = Layer()
    compiled, counter = counted(layer, backend)
    for length in (33, 40, 51, 60):
        args = inputs(length)
        learnt = tuple(layer.parameters())
        check(results(compiled, args, learnt), results(layer, args, learnt), 0.0)
    assert counter.frame_count <= 2


def test_inductor_compiles_what_is_around_a_call() -> None:
    layer, args = Layer(), inputs(40)
    compiled, _ = counted(lambda q, k, v: layer.attend(q, k, v), "inductor")
    check(results(compiled, args), results(layer.attend, args), 0.0)


def test_lengths_marked_dynamic_compile_once() -> None:
    layer = Layer()
    compiled, counter = counted(layer)
    for length in (33, 40, 51):
        args = inputs(length)
        for tensor in args:
            torch._dynamo.mark_dynamic(tensor, 2)
        check(results(compiled, args), results(layer, args), 0.0)
    assert counter.frame_count == 1


def test_what_the_host_learns_of_a_call_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    compiled, _ = counted(layer)
    args = inputs(40)
    expected = results(compiled, args)
    book = operators_book(layer.attend)
    learn, lessons = type(book)._learn, []

    def learning(self: Any, *call: Any) -> Any:
        lessons.append(1)
        return learn(self, *call)

    monkeypatch.setattr(type(book), "_learn", learning)
    check(results(compiled, args), expected, 0.0)
    assert not lessons
    layer.documents.zero_()
    check(results(compiled, args), results(layer, args), 0.0)
    assert lessons
    lessons.clear()
    layer.attend.invalidate()
    results(compiled, args)
    assert lessons


def operators_book(attend: Any) -> Any:
    """What operators know of the calls of an attention."""
    from attndsl.programs import program_of

    return program_of(attend._compilation.text()).facts


# Every way to call, the pieces of kernels done densely in float64.

ATTENTIONS = {
    "window": ad.attention(mask_mod=window(size=9)),
    "documents": ad.attention(mask_mod=documents),
    "sink": ad.attention(mask_mod=window(size=9), normalizer=ad.softmax(sink=SLOPES)),
    "sigmoid": ad.attention(mask_mod=window(size=9), normalizer=ad.normalizers.sigmoid()),
    "entmax": ad.attention(mask_mod=window(size=9), normalizer=ad.normalizers.entmax15()),
    "decay": ad.attention(mask_mod=window(size=9), weight_mod=ad.weights.decay(log_gamma=-SLOPES)),
}
GRID = ad.grid(y=8, x=8, tile=(4, 4))
ATTENTIONS["grid"] = ad.attention(
    mask_mod=lambda q_idx, kv_idx: abs(GRID(q_idx).y - GRID(kv_idx).y) + abs(GRID(q_idx).x - GRID(kv_idx).x) < 4,
    normalizer=ad.normalizers.entmax15(),
)


@pytest.mark.usefixtures("dense_engines")
@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_kind_of_row_survives_the_graph(name: str) -> None:
    attend, args = ATTENTIONS[name], inputs(64 if name == "grid" else 20, dtype=torch.float64)
    wanted = ["lse", "max_score"] if name in ("window", "documents", "sink") else ["max_score"]

    def rows(*args: Tensor, backend: str = "auto") -> tuple[Tensor | None, ...]:
        out, aux = attend(*args, return_aux=wanted, backend=backend)
        assert not aux.max_score.requires_grad
        return out, aux.lse, aux.max_score

    compiled, counter = counted(rows)
    check(results(compiled, args), results(partial(rows, backend="reference"), args), 1e-9)
    assert counter.frame_count == 1


WINDOW = ATTENTIONS["window"]
TEXT = ad.parse("attention near(size: int = 9) { mask q_idx - kv_idx < size and kv_idx <= q_idx }")
BLOCKS = ad.BlockTable(torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.4, block=(8, 8))
KEY_BLOCKS = ad.BlockTable(BLOCKS.live, block=(8, torch.arange(20) % 3))


def autocasting(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return WINDOW(q, k, v, **how)  # type: ignore[no-any-return]


CALLS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "scale": (lambda q, k, v, **how: WINDOW(q, k, v, scale=0.1, **how), []),
    "offset": (lambda q, k, v, offset, **how: WINDOW(q, k, v, q_offset=offset, **how), [3, 5, 8]),
    "offset of each batch": (
        lambda q, k, v, offset, **how: WINDOW(q, k, v, q_offset=offset, **how),
        [torch.tensor([3, 5]), torch.tensor([8, 0])],
    ),
    "bound inside": (lambda q, k, v, size, **how: WINDOW.bind(size=size)(q, k, v, **how), [3, 5, 8]),
    "text": (lambda q, k, v, **how: TEXT.near(q, k, v, **how), []),
    "text bound inside": (lambda q, k, v, size, **how: TEXT.near(size=size)(q, k, v, **how), [3, 5, 8]),
    "blocks": (lambda q, k, v, **how: WINDOW(q, k, v, blocks=BLOCKS, **how), []),
    "blocks of keys": (lambda q, k, v, **how: WINDOW(q, k, v, blocks=KEY_BLOCKS, q_offset=2, **how), []),
    "autocasting": (autocasting, []),
}


@pytest.mark.usefixtures("dense_engines")
@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_call(name: str) -> None:
    function, lasts = CALLS[name]
    compiled, counter = counted(function)
    args: list[Any] = [*inputs(20, dtype=torch.float64)]
    for more in [[last] for last in lasts] or [[]]:
        expected = results(partial(function, backend="reference"), [*args, *more])
        check(results(compiled, [*args, *more]), expected, 1e-9)
    assert counter.frame_count <= 2


def test_shared_heads_and_masses() -> None:
    layer, args = Layer(), inputs(40, kv_heads=2)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return layer.attend(q, k, v, enable_gqa=True, return_aux=[FIRST_KEYS, OWN_DOCUMENT])

    compiled, counter = counted(function)
    check(results(compiled, args), results(function, args), 0.0)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("dense_engines")
def test_another_attention_in_the_same_place_is_another_graph() -> None:
    compiled, counter = counted(lambda attend, *args: attend(*args))
    args: list[Any] = [*inputs(20, dtype=torch.float64)]
    same = ad.attention(mask_mod=window(size=9))
    for name in ("window", "documents", "sink", "window"):
        expected = results(ATTENTIONS[name].reference, args)
        check(results(compiled, [ATTENTIONS[name], *args]), expected, 1e-9)
    check(results(compiled, [same, *args]), results(same.reference, args), 1e-9)
    assert counter.frame_count == 3


@pytest.mark.usefixtures("dense_engines")
def test_what_is_asked_of_calls_is_watched() -> None:
    """Programs that mean the same and ask different lengths of a call have one fingerprint, and a graph each."""
    asked = 'attention a {{ require q_len == {0}, "{0} queries" mask kv_idx <= q_idx }}'
    one, other = (next(iter(ad.parse(asked.format(length)))) for length in (20, 21))
    assert one.fingerprint == other.fingerprint
    compiled, _ = counted(lambda attend, *args: attend(*args))
    args = inputs(20, dtype=torch.float64)
    compiled(one, *args)
    with pytest.raises(CallError, match="21 queries"):
        compiled(other, *args)


# What is refused, and where.

REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "check": (lambda q, k, v: WINDOW(q, k, v, check=True), "check=True"),
    "reference": (lambda q, k, v: WINDOW(q, k, v, backend="reference"), 'backend="reference"'),
    "router": (lambda q, k, v: WINDOW(q, k, v, blocks=ad.routers.moba(block=16, top_k=1)), "BlockTable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_has_no_place_for_breaks_it(name: str) -> None:
    function, reason = REFUSED[name]
    args = [one.detach() for one in inputs(33)]
    with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
        torch.compile(function, fullgraph=True, backend="eager")(*args)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(function, backend="eager")(*args), function(*args))


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_has_no_place_for_is_not_exported(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason) as caught:
        torch.export.export(Calling(function), tuple(inputs(33)), strict=False)
    assert [one.code for one in caught.value.diagnostics] == ["not-exportable"]


class Calling(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return self.function(q, k, v)


@pytest.mark.parametrize(
    "how, code",
    [({"backend": "fpga"}, "unknown-backend"), ({"return_aux": ["weights"]}, "unknown-aux"), ({}, "batch-mismatch")],
)
def test_mistakes_are_told_as_outside(how: dict[str, Any], code: str) -> None:
    q, k, v = (one.detach() for one in inputs(20))
    with pytest.raises(CallError) as caught:
        torch.compile(lambda q, k, v: WINDOW(q, k, v, **how), backend="eager")(q, k if how else k[:1], v)
    assert [one.code for one in caught.value.diagnostics] == [code]


def test_a_variant_without_gradients_says_so_when_the_graph_is_made() -> None:
    table = torch.zeros(9, requires_grad=True)
    attend = ad.attention(score_mod=lambda score: score + table[ad.floor(ad.clamp(score, 0.0, 8.0)).to(torch.int64)])
    with pytest.raises(Exception, match="depends on the score"):
        counted(attend)[0](*inputs(20))


# Operators on their own.


def arguments(attend: Any, args: list[Tensor], **more: Any) -> tuple[Any, ...]:
    """The arguments of `attndsl::attend`, for an attention without scalars."""
    values = attend._bindings.resolve()
    how = {"scale": None, "enable_gqa": False, "program": attend._compilation.text(), **more}
    numbers = (how["scale"], how["enable_gqa"])
    return (*args, list(values.values()), [], [], None, 0, *numbers, how["program"], "", False, "auto")


FACTORS = torch.tensor([1.0, 0.5], requires_grad=True)
SMALL = ad.attention(mask_mod=lambda q_idx, kv_idx: kv_idx <= q_idx, score_mod=lambda score, h: score * FACTORS[h])


def relative(table: Tensor) -> Callable[..., Any]:
    return lambda score, q_idx, kv_idx: score + table[q_idx - kv_idx + 20]


TABLE = torch.zeros(40)
LEARNT = torch.zeros(40, requires_grad=True)
TIMES = torch.arange(40) / 4


@pytest.mark.parametrize("operator", [torch.ops.attndsl.attend, torch.ops.attndsl.attend_by_values])
def test_the_operators_are_sound(operator: Any) -> None:
    given = arguments(SMALL, inputs(18, heads=2, kv_heads=2))
    torch.library.opcheck(operator.default, given)


def test_the_backward_is_sound() -> None:
    with torch.no_grad():
        tensors = [one.detach() for one in inputs(18, heads=2, kv_heads=2)]
        given = arguments(SMALL.bind(FACTORS=FACTORS.detach()), tensors)
        rows = operators.attend(*given, by_values=False)
    cotangents = [torch.ones_like(rows[0]), None, torch.ones_like(rows[2])]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    needed = [True, True, False, True]
    backward = torch.ops.attndsl.attend_backward.default
    torch.library.opcheck(backward, (*given, rows, cotangents, needed), test_utils=checks)
    dq, dk, dfactors = backward(*given, rows, cotangents, needed)
    assert (dq.shape, dk.shape, dfactors.shape) == (rows[0].shape, rows[0].shape, FACTORS.shape)


def test_values_keep_an_operator_out_of_cuda_graphs() -> None:
    unsafe = torch.Tag.cudagraph_unsafe
    assert unsafe not in torch.ops.attndsl.attend.default.tags
    assert unsafe not in torch.ops.attndsl.attend_backward.default.tags
    assert unsafe in torch.ops.attndsl.attend_by_values.default.tags
    assert unsafe in torch.ops.attndsl.attend_by_values_backward.default.tags


@pytest.mark.parametrize(
    "attend, how, name",
    [
        (ad.attention(mask_mod=window(size=9)), {}, "attend"),
        (SMALL, {}, "attend"),
        (ATTENTIONS["documents"], {}, "attend_by_values"),
        (ad.attention(score_mod=relative(TABLE)), {}, "attend"),
        (
            ad.attention(score_mod=relative(LEARNT)),
            {},
            "attend_by_values",
        ),
        (ad.attention(mask_mod=window(size=9)), {"q_offset": torch.tensor([0, 1])}, "attend_by_values"),
        (ad.attention(mask_mod=lambda q_idx, kv_idx: TIMES[q_idx] - TIMES[kv_idx] < 2.5), {}, "attend_by_values"),
        (ad.attention(mask_mod=lambda q_idx, kv_idx: (TIMES[q_idx] > 2.5) & (kv_idx <= q_idx)), {}, "attend"),
    ],
)
def test_calls_that_read_values_take_the_operator_that_may(attend: Any, how: dict[str, Any], name: str) -> None:
    args = tuple(one.detach() for one in inputs(20, heads=2, kv_heads=2))
    program = torch.export.export(Calling(lambda *args: attend(*args, **how)), args, strict=False)
    called = [node.target for node in program.graph.nodes if "attndsl" in str(node.target)]
    assert called == [getattr(torch.ops.attndsl, name).default]


@pytest.mark.usefixtures("dense_engines")
def test_gradients_of_gradients_are_refused() -> None:
    args = inputs(20, dtype=torch.float64)
    out, *_ = operators.attend(*arguments(ad.attention(), args), by_values=False)
    (dq,) = torch.autograd.grad(out.sum(), args[:1], create_graph=True)
    with pytest.raises(UnsupportedError) as caught:
        dq.sum().backward()
    assert [one.code for one in caught.value.diagnostics] == ["double-backward"]


def test_mapped_calls_are_refused() -> None:
    args = [one.detach()[None] for one in inputs(20)]
    with pytest.raises(UnsupportedError) as caught:
        torch.vmap(lambda *args: operators.attend(*arguments(ad.attention(), list(args)), by_values=False))(*args)
    assert [one.code for one in caught.value.diagnostics] == ["no-vmap"]


# Export.


@pytest.mark.parametrize("binds, strict", [(True, False), (False, True)])
def test_an_exported_layer_runs_where_only_the_operators_are(binds: bool, strict: bool, tmp_path: Path) -> None:
    layer, length = Layer(binds=binds), torch.export.Dim("length", min=2, max=60)
    args = tuple(inputs(40))
    shapes = {name: {2: length} for name in "qkv"}
    exported = torch.export.export(layer, args, dynamic_shapes=shapes, strict=strict)
    assert "slopes" in exported.graph_signature.parameters
    assert exported.graph_signature.buffers == ("documents",)
    assert not exported.constants
    others = tuple(one.detach() for one in inputs(51))
    expected = layer(*others)
    check(flat(exported.module()(*others)), flat(expected), 0.0)
    torch.export.save(exported, tmp_path / "layer.pt2")
    torch.save((others, expected), tmp_path / "data.pt")
    program = (
        "import sys, torch, attndsl.operators\n"
        "given, expected = torch.load(sys.argv[2])\n"
        "found = torch.export.load(sys.argv[1]).module()(*given)\n"
        "torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)"
    )
    run = [sys.executable, "-c", program, str(tmp_path / "layer.pt2"), str(tmp_path / "data.pt")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_exported_graph_must_not_keep_a_copy_of_what_is_learnt() -> None:
    with pytest.raises(CallError) as caught:
        torch.export.export(Layer(), tuple(inputs(40)), strict=False)
    assert [one.code for one in caught.value.diagnostics] == ["captured-parameter"]

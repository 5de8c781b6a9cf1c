"""Attentions inside `torch.compile`: one graph, the same results, the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from compiled import ATTENTIONS, FIRST_KEYS, OWN_DOCUMENT, WINDOW, Layer, check, counted, inputs, results, window
from torch import Tensor

import attndsl as ad
from attndsl.diagnostics import CallError

pytestmark = [
    pytest.mark.usefixtures("forgotten"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # torch's compiler warns of torch itself
]


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

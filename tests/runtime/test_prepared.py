"""Warm calls: what was checked and planned once is not again, and what must be seen at every call is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from launches import inputs
from torch import Tensor

import attndsl as ad
from attndsl import instance
from attndsl.attention import Attention
from attndsl.diagnostics import CallError
from attndsl.runtime import facts

CAUSAL = "attention causal(window: int = 5) {\n    mask  kv_idx <= q_idx and q_idx - kv_idx < window\n}"
PACKED = "attention packed(ids: int tensor[N]) {\n    mask  ids[q_idx] == ids[kv_idx]\n}"
LOOKED_UP = "attention looked_up(at: int tensor[N], table: tensor[M]) {\n    score  score + table[at[kv_idx]]\n}"
DIVIDED = "attention divided(a: float = 1.0) {\n    score  score + 1.0 / a\n}"


def one(text: str, **values: Any) -> Attention:
    attention = getattr(ad.parse(text), text.partition("(")[0].split()[1])
    made: Attention = attention(**values)
    return made


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of q in the calls that were checked, in order."""
    original = instance.check_call
    found: list[tuple[int, ...]] = []

    def counted(source: Any, values: Any, q: Any, *args: Any, **how: Any) -> Any:
        found.append(tuple(q.shape) if isinstance(q, Tensor) else ())
        return original(source, values, q, *args, **how)

    monkeypatch.setattr(instance, "check_call", counted)
    return found


def agrees(attention: Attention, *tensors: Tensor, **how: Any) -> None:
    """The output of kernels is that of the reference."""
    expected = attention.reference(*tensors, **how)
    torch.testing.assert_close(attention(*tensors, backend="cpu", **how), expected, atol=1e-5, rtol=1e-5)


def test_a_kind_of_calls_is_checked_once(checked: list[tuple[int, ...]]) -> None:
    attention = one(CAUSAL)
    for seed in range(3):
        attention(*inputs(q_len=20, heads=2, seed=seed), backend="cpu")
    assert checked == [(1, 2, 20, 16)]
    attention(*inputs(q_len=21, heads=2), backend="cpu")
    assert len(checked) == 2


def test_lengths_and_windows_are_kinds_of_one_kernel(checked: list[tuple[int, ...]]) -> None:
    attention, sizes = one(CAUSAL), range(1, 20, 3)
    for size in sizes:
        for length in (1, 17, 64, 65):
            agrees(attention.bind(window=size), *inputs(q_len=length))
    assert len(attention._compilation._emitted) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.flip(-1).expand(2, -1, -1, -1)[:1],
        lambda x: torch.cat((x, x), -1)[..., ::2],
        lambda x: x[:, :1].expand_as(x),
        lambda x: torch.view_as_complex(torch.stack((x, x), -1)).conj().imag,
        lambda x: x.double(),
        lambda x: x[..., :9, :],
        lambda x: x[..., :0, :],
    ],
    ids=["transposed", "flipped", "strided", "expanded", "negated", "doubles", "shorter", "empty"],
)
def test_other_layouts_are_other_kinds(change: Callable[[Tensor], Tensor]) -> None:
    attention, tensors = one(CAUSAL), inputs(q_len=20, heads=2)
    changed = tuple(map(change, tensors))
    for given in (tensors, changed, tensors, changed):
        agrees(attention, *given)


REFUSED: dict[str, tuple[str, Callable[[Attention, Tensor, Tensor, Tensor], object]]] = {
    "shape": ("wrong-rank", lambda attend, q, k, v: attend(q[0], k, v)),
    "length": ("length-mismatch", lambda attend, q, k, v: attend(q, k[:, :, 1:], v)),
    "dtype": ("mixed-dtypes", lambda attend, q, k, v: attend(q, k.double(), v)),
    "no tensor": ("not-a-tensor", lambda attend, q, k, v: attend(q, None, v)),
    "sparse": ("data pointer", lambda attend, q, k, v: attend(q.to_sparse(), k, v)),
    "heads": ("heads-mismatch", lambda attend, q, k, v: attend(q, k[:, :1], v[:, :1], enable_gqa=False)),
    "true scale": ("bad-scale", lambda attend, q, k, v: attend(q, k, v, scale=True)),
    "learnt scale": ("bad-scale", lambda attend, q, k, v: attend(q, k, v, scale=torch.tensor(1.0))),
    "true offset": ("bad-offset", lambda attend, q, k, v: attend(q, k, v, q_offset=True)),
    "offset by batch": ("bad-offset", lambda attend, q, k, v: attend(q, k, v, q_offset=torch.tensor([1, 2]))),
    "aux of 1": ("bad-aux", lambda attend, q, k, v: attend(q, k, v, return_aux=1)),
    "unknown aux": ("unknown-aux", lambda attend, q, k, v: attend(q, k, v, return_aux=["colour"])),
    "backend": ("unknown-backend", lambda attend, q, k, v: attend(q, k, v, backend="gpu")),
    "device": ("kernel-device", lambda attend, q, k, v: attend(*(x.to("meta") for x in (q, k, v)), backend="cpu")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_after_calls_that_were_not(name: str) -> None:
    attention, tensors = one(CAUSAL), inputs(q_len=20, heads=2)
    for how in ({}, {"scale": 1.0}, {"q_offset": 1}, {"return_aux": True}, {"enable_gqa": True}):
        attention(*tensors, backend="cpu", **how)
    code, run = REFUSED[name]
    for _ in range(2):
        with pytest.raises((CallError, RuntimeError, ad.DiagnosticError), match=code):
            run(attention, *tensors)


def test_signs_of_zero_are_two_kinds() -> None:
    attention, tensors = one(DIVIDED), inputs(q_len=4)
    for a in (0.0, -0.0, 0.0, -0.0):
        _, aux = attention.bind(a=a)(*tensors, backend="cpu", return_aux=["max_score"])
        assert bool((aux.max_score > 0).all()) is (str(a) == "0.0")
    _, aux = attention(*tensors, backend="cpu", scale=0.0, return_aux=["max_score"])
    _, other = attention(*tensors, backend="cpu", scale=-0.0, return_aux=["max_score"])
    assert torch.equal(aux.max_score, other.max_score)


def test_values_written_to_are_seen(checked: list[tuple[int, ...]]) -> None:
    ids = torch.arange(40) // 7
    attention, tensors = one(PACKED, ids=ids), inputs(q_len=40)
    for _ in range(2):
        attention(*tensors, backend="cpu")
    assert len(checked) == 1
    for change in (lambda: ids.clamp_(max=2), lambda: ids[:9].zero_(), lambda: setattr(ids, "data", ids.flip(0))):
        change()
        agrees(attention, *tensors)


def test_an_index_out_of_bounds_is_refused_whenever_it_is_written() -> None:
    at, table = torch.arange(20) // 7, torch.randn(3)
    attention, tensors = one(LOOKED_UP, at=at, table=table), inputs(q_len=20)
    for _ in range(2):
        agrees(attention, *tensors)
    table.mul_(2.0)
    agrees(attention, *tensors)
    at[5] = 3
    for _ in range(2):
        with pytest.raises(CallError):
            attention(*tensors, backend="cpu")
    at[5] = 0
    agrees(attention, *tensors)
    table.data = table.data[:2].clone()
    with pytest.raises(CallError):
        attention(*tensors, backend="cpu")


def test_forgetting_forgets_what_was_prepared(checked: list[tuple[int, ...]]) -> None:
    attention, tensors = one(CAUSAL), inputs(q_len=20)
    for _ in range(2):
        attention(*tensors, backend="cpu")
        attention.invalidate()
    assert len(checked) == 2


def test_statistics_and_predicates_of_the_day(checked: list[tuple[int, ...]]) -> None:
    attention, tensors = one(CAUSAL), inputs(q_len=20)
    out, aux = attention(*tensors, backend="cpu", return_aux=["lse"])
    for wanted in (["lse"], ("lse",), iter(["lse"])):
        again, more = attention(*tensors, backend="cpu", return_aux=wanted)
        assert torch.equal(out, again)
        assert torch.equal(aux.lse, more.lse)
    assert more.max_score is None
    more.lse.zero_()
    assert torch.equal(attention(*tensors, backend="cpu", return_aux=["lse"])[1].lse, aux.lse)


def test_what_is_kept_is_bounded_and_holds_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "REMEMBERED", 8)
    ids = torch.arange(40) // 7
    attention = one(PACKED, ids=ids)
    for length in range(20, 40):
        tensors = inputs(q_len=length)
        attention(*tensors, backend="cpu")
    book = attention._facts
    assert len(book._prepared) == len(book._facts) == 8
    held = [weakref.ref(tensor) for tensor in (*tensors, ids)]
    del attention, tensors, ids
    gc.collect()
    assert [ref() for ref in held] == [None] * 4
    assert len(book._prepared) == 8


def test_tensors_of_inference_are_copied_for_gradients_alone() -> None:
    with torch.inference_mode():
        q, k, v = (torch.cat((x, x), -1)[..., ::2] for x in inputs(q_len=20, heads=2))
    attention, learnt = one(CAUSAL), q.clone().requires_grad_()
    for _ in range(2):
        agrees(attention, q, k, v)
        agrees(attention, learnt, k, v)
    table = torch.zeros(3, requires_grad=True)
    looked_up = one(LOOKED_UP, at=torch.arange(20) // 7, table=table)
    with torch.no_grad():
        agrees(looked_up, q, k, v)
    agrees(looked_up, q, k, v)
    looked_up(q, k, v, backend="cpu").sum().backward()
    assert table.grad is not None


def test_gradients_are_recorded_as_torch_does_at_the_time() -> None:
    attention, (q, k, v) = one(CAUSAL), inputs(q_len=20, heads=2)
    assert not attention(q, k, v, backend="cpu").requires_grad
    learnt = q.clone().requires_grad_()
    for _ in range(2):
        assert attention(learnt, k, v, backend="cpu").requires_grad
        with torch.no_grad():
            assert not attention(learnt, k, v, backend="cpu").requires_grad


def test_autocast_is_followed() -> None:
    attention, tensors = one(CAUSAL), inputs(q_len=20)
    for _ in range(2):
        assert attention(*tensors, backend="cpu").dtype is torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert attention(*tensors, backend="cpu").dtype is torch.bfloat16
            assert attention(*tensors, backend="reference").dtype is torch.float32

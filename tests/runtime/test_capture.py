"""What CUDA graphs may capture: calls that never wait for the device, and launch the same whatever values tensors have.

Launches are recorded, not run, so that every step the host takes is seen, and none that only the interpreter takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import attndsl as ad
from attndsl.runtime import launch

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
]

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
WAITS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.unique_consecutive.default,
    torch.ops.aten.repeat_interleave.Tensor,
)


class Waited(Exception):
    """The host has asked for a value."""


class NoWaiting(TorchDispatchMode):
    """Refuses operators whose result, or its shape, the host would wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            raise Waited(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(name: str) -> Callable[..., Any]:
        def read(*_: Any, **__: Any) -> Any:
            raise Waited(name)

        return read

    with monkeypatch.context() as patch, NoWaiting():
        for name in READS:
            patch.setattr(Tensor, name, refuse(name))
        patch.setattr(torch.cuda, "synchronize", refuse("synchronize"))
        yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Kernel, grid and numbers of every launch, none of which runs."""
    recorded: list[tuple[str, Any, tuple[Any, ...]]] = []

    def record(kernel: Any, grid: Any, given: Iterator[Any], q: Tensor, tile: Any) -> None:
        numbers = tuple(one for one in given if not isinstance(one, Tensor))
        recorded.append((kernel.fn.__name__, grid, (*numbers, tile)))

    monkeypatch.setattr(launch, "_launch", record)
    return recorded


SLOPES = torch.tensor([0.5, 0.25], requires_grad=True)
SINK = torch.tensor([0.5, 0.25], requires_grad=True)
DOCUMENTS = torch.tensor([0] * 100 + [1] * 100)


@ad.mask_mod
def window(q_idx: Any, kv_idx: Any, *, size: int) -> Any:
    return (kv_idx <= q_idx) & (q_idx - kv_idx < size)


def alibi(score: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score - SLOPES[h] * (q_idx - kv_idx)


BIAS = torch.randn(2, 200, 200, generator=torch.Generator().manual_seed(1)).requires_grad_()


def biased(score: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + BIAS[h, q_idx, kv_idx]


CLOSED = {
    "full": ad.attention(),
    "causal": ad.attention(mask_mod=ad.masks.causal),
    "window": ad.attention(mask_mod=window(size=70)),
    "alibi": ad.attention(
        mask_mod=ad.masks.causal, score_mod=lambda score, h, q_idx, kv_idx: score - SLOPES[h] * (q_idx - kv_idx)
    ),
    "bias": ad.attention(mask_mod=ad.masks.causal, score_mod=biased),
    "sink": ad.attention(mask_mod=window(size=70), normalizer=ad.softmax(sink=SINK)),
    "sigmoid": ad.attention(mask_mod=ad.masks.causal, normalizer=ad.normalizers.sigmoid()),
}


def call(attend: Any, seed: int, **how: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, 200, 16, generator=generator).requires_grad_() for _ in range(3))
    attend(q, k, v, backend="triton", **how).backward(torch.ones(1, 2, 200, 16))


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_never_wait_for_the_device(
    name: str, launches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        with no_waiting(monkeypatch):
            call(CLOSED[name], seed)
    half = len(launches) // 2
    assert half >= 3
    assert launches[:half] == launches[half:]


def test_plans_from_values_wait_once(launches: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other kind: what this file refuses is met where a mask reads a tensor, and then remembered."""
    attend = ad.attention(mask_mod=lambda q_idx, kv_idx: DOCUMENTS[q_idx] == DOCUMENTS[kv_idx])
    with pytest.raises(Waited), no_waiting(monkeypatch):
        call(attend, 0)
    call(attend, 0)
    launches.clear()
    with no_waiting(monkeypatch):
        call(attend, 1)
    assert launches

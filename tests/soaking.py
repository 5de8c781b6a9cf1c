"""Random calls, one after the other: what must not grow with their number.

In: how many calls, and chance. Out: `Weight`s of the process at a few moments, memory and live objects.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import attndsl as ad
from attndsl.attention import Attention

TEXT = """
attention windowed(window: int = 9) { mask q_idx - kv_idx < window and kv_idx <= q_idx }
attention packed(ids: int tensor[B, N]) { mask ids[b, q_idx] == ids[b, kv_idx] }
attention sloped(slopes: tensor[H], cap: float = 20.0) {
    score cap * tanh(score / cap) - slopes[h] * abs(q_idx - kv_idx)
}
attention sunk(sink: tensor[H]) { mask kv_idx <= q_idx normalizer softmax(sink = sink[h]) }
"""
NATIVE = ("windowed", "sunk")
LENGTHS = (1, 7, 16, 33, 64, 70)


@dataclass(frozen=True, slots=True)
class Weight:
    """What a process weighs: resident bytes, and objects that Python's collector knows."""

    calls: int
    resident: int
    objects: int


def soak(calls: int, seed: int, moments: int = 4) -> Iterator[Weight]:
    """Make random calls; the weight of the process after each of as many parts of them as there are moments."""
    draw = random.Random(seed)
    variants = ad.parse(TEXT)
    for moment in range(moments):
        with _one_thread():
            for _ in range(calls // moments):
                draw.choice(CALLS)(draw, variants)
        gc.collect()
        yield Weight((moment + 1) * (calls // moments), _resident(), len(gc.get_objects()))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small tensors spend their time on waking threads up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _bound(draw: random.Random, variants: ad.loading.Namespace, batch: int, heads: int, length: int) -> Attention:
    match draw.randrange(4):
        case 0:
            return variants.windowed(window=draw.randrange(1, 60))
        case 1:
            return variants.packed(ids=torch.arange(length).expand(batch, length) // draw.randrange(1, 40))
        case 2:
            return variants.sloped(slopes=torch.rand(heads), cap=draw.uniform(5.0, 50.0))
        case _:
            return variants.sunk(sink=torch.randn(heads))


def _call(draw: random.Random, variants: ad.loading.Namespace) -> None:
    batch, heads, length = draw.choice((1, 2)), draw.choice((1, 2, 4)), draw.choice(LENGTHS)
    attention = _bound(draw, variants, batch, heads, length)
    q, k, v = (torch.randn(batch, heads, length, 16) for _ in range(3))
    # Not all of the variants have native kernels to build, which takes the longest.
    backend = draw.choice(("cpu", "cpu", "reference")) if attention.name in NATIVE else "reference"
    out = attention(q, k, v, backend=backend, return_aux=draw.random() < 0.3)
    assert torch.isfinite(out[0] if isinstance(out, tuple) else out).all()


def _gradient(draw: random.Random, variants: ad.loading.Namespace) -> None:
    attention = _bound(draw, variants, 1, 2, 33)
    q, k, v = (torch.randn(1, 2, 33, 16, requires_grad=True) for _ in range(3))
    attention(q, k, v, backend="cpu" if attention.name == "windowed" else "reference").sum().backward()


def _plan(draw: random.Random, variants: ad.loading.Namespace) -> None:
    length = draw.choice(LENGTHS)
    attention = _bound(draw, variants, 1, 2, length)
    assert attention.plan(length, heads=2, block=(16, 16)).counts


def _refusal(draw: random.Random, variants: ad.loading.Namespace) -> None:
    """Errors hold on to nothing either."""
    attention = _bound(draw, variants, 1, 2, 33)
    try:
        attention(torch.randn(1, 2, 33, 16), torch.randn(1, 3, 33, 16), torch.randn(1, 2, 33, 16))
    except ad.DiagnosticError:
        return
    raise AssertionError("a call that does not fit was taken")


CALLS: tuple[Callable[[random.Random, ad.loading.Namespace], None], ...] = (
    _call,
    _call,
    _call,
    _gradient,
    _plan,
    _refusal,
)

"""How long a kernel takes on its device, in milliseconds.

In: something that launches it. Out: the median of repetitions on a GPU, each between two events with an emptied cache
before it; on a CPU, where other work can only add to it, the least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import median

import torch

ENOUGH = 100.0
"""Milliseconds of repetitions that are enough to tell."""

MOST = 100
"""Repetitions, at most."""

L2 = 256 << 20
"""Bytes that push everything else out of the cache of any GPU."""

Run = Callable[[], object]


def milliseconds(run: Run, device: torch.device) -> float:
    """The time of one run, which has run before."""
    if device.type == "cuda":
        return _on_gpu(run, device)
    times = [_once(run)]
    while len(times) < _repetitions(times[0]):
        times.append(_once(run))
    return min(times)


def _once(run: Run) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def _repetitions(first: float) -> int:
    return max(1, min(MOST, int(ENOUGH / max(first, 1e-6))))


def _on_gpu(run: Run, device: torch.device) -> float:
    with torch.cuda.device(device):
        first = _between_events(run, 1)[0]
        return median(_between_events(run, _repetitions(first)))


def _between_events(run: Run, count: int) -> list[float]:
    """The times of so many runs: the GPU notes them, nothing waits in between."""
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(count)]
    for start, end in pairs:
        _scratch(torch.cuda.current_device()).zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [float(start.elapsed_time(end)) for start, end in pairs]


@cache
def _scratch(device: int) -> torch.Tensor:
    return torch.empty(L2, dtype=torch.int8, device=f"cuda:{device}")

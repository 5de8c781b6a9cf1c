"""Timing on a machine that others share: contenders in turns, the least time of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

THREADS = 2


def turns(
    contenders: Mapping[str, Callable[[], object]], *, seconds: float = 0.5, least_turns: int = 5
) -> dict[str, list[float]]:
    """The times of each contender in milliseconds, one after another in turns, for about `seconds` each."""
    first = {name: _milliseconds(run) for name, run in contenders.items()}
    rounds = max(least_turns, min(50, int(seconds * 1e3 / max(first.values()))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(_milliseconds(run))
    return times


def least(contenders: Mapping[str, Callable[[], object]], *, seconds: float = 0.5) -> dict[str, float]:
    """The least time of each contender in milliseconds."""
    return {name: min(times) for name, times in turns(contenders, seconds=seconds).items()}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times longer one contender takes than another: the median over turns, which each hit both."""
    return median(one / other for one, other in zip(slow, fast, strict=True))


def product_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """GFLOP/s of torch's own matrix product: what the machine does at best, as far as torch knows."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / least({"product": lambda: left @ right})["product"] / 1e6


def _milliseconds(run: Callable[[], object]) -> float:
    """The time of a run: of a single thread its own, which others on the machine do not lengthen by taking turns."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return (clock() - start) * 1e3

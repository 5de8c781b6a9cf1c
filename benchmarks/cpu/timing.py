"""Timing on a machine that others share: contenders in turns, the least time of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

THREADS = 2


def least(contenders: Mapping[str, Callable[[], object]], *, seconds: float = 0.5, turns: int = 3) -> dict[str, float]:
    """The least time of each contender in milliseconds; each runs for about `seconds`, at least `turns` times."""
    times = {name: _milliseconds(run) for name, run in contenders.items()}
    rounds = max(turns, *(min(50, int(seconds * 1e3 / one)) for one in times.values()))
    for turn in range(rounds):
        for name, run in contenders.items():
            if turn < turns or turn * times[name] < seconds * 1e3:
                times[name] = min(times[name], _milliseconds(run))
    return times


def product_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """GFLOP/s of torch's own matrix product: what the machine does at best, as far as torch knows."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / least({"product": lambda: left @ right})["product"] / 1e6


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3

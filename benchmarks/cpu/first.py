"""The first call on a CPU, from the functions of a program to its result: with empty caches, and in a later process.

Every call is the first one of a process of its own; importing is not counted. Targets: 2 s with empty caches and
5 times sooner than FlexAttention, 50 ms where an earlier process built the kernel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import torch

from benchmarks.cpu.timing import THREADS
from benchmarks.harness import MISSED, Row, publish

LENGTH, HEADS, HEAD_DIM = 1024, 8, 64
COLD_SECONDS, WARM_SECONDS, SOONER = 2.0, 0.05, 5.0
NAMES = ("causal", "window 1024", "alibi", "soft cap")
PROCESS = """
import sys, time, torch, attndsl
from benchmarks.cpu.forward import contenders, measured
name, contender, length, heads, head_dim, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
case = next(case for case in measured(length) if case.name == name)
q, k, v = (torch.randn(1, heads, length, head_dim) for _ in range(3))
attndsl.attention  # what it is made of is imported when it is first named
start = time.perf_counter()
contenders(case, q, k, v, only=contender)[contender]()
print(time.perf_counter() - start)
"""


def first_call(name: str, contender: str, caches: str) -> float:
    """Seconds of the first call in a process that keeps its caches in a folder."""
    sizes = map(str, (LENGTH, HEADS, HEAD_DIM, THREADS))
    folders = {"ATTNDSL_CACHE_DIR": caches, "TORCHINDUCTOR_CACHE_DIR": caches}
    command = (sys.executable, "-c", PROCESS, name, contender, *sizes)
    done = subprocess.run(command, env={**os.environ, **folders}, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def measure(name: str) -> Row:
    """One row of the table: seconds of the first call, cold and warm."""
    seconds: dict[str, tuple[float, float]] = {}
    for contender in ("attndsl", "flex"):
        with tempfile.TemporaryDirectory() as caches:
            cold = first_call(name, contender, caches)
            seconds[contender] = cold, min(first_call(name, contender, caches) for _ in range(3))
    (cold, warm), (flex_cold, flex_warm) = seconds["attndsl"], seconds["flex"]
    sooner = flex_cold / cold
    return {
        "variant": name,
        "cold s": cold,
        "warm s": warm,
        "flex cold s": flex_cold,
        "flex warm s": flex_warm,
        "sooner": sooner,
        MISSED: cold > COLD_SECONDS or warm > WARM_SECONDS or sooner < SOONER,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variants", nargs="+", default=NAMES, help="only these, by name")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    publish("cpu_first", "The first call on a CPU", [measure(name) for name in chosen.variants])


if __name__ == "__main__":
    main()

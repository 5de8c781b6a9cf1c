"""What the processor does at best, measured: GFLOP/s of multiply-adds on registers, and of whatever multiplies bfloats.

The text is built like kernels are, for the same processor, and runs on the same threads.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from attndsl.runtime.native.load import load_function, parallel_address
from benchmarks.cpu.timing import least

ROUNDS = 2**16
TEXT = Path(__file__).with_name("peak.cpp")


@cache
def peak_rate(dtype: str) -> float:
    """GFLOP/s of every thread together, for `fp32` or `bf16`."""
    text = f"#define BFLOATS {int(dtype == 'bf16')}\n" + TEXT.read_text("utf-8")
    run, operations = load_function(text, "peak"), load_function(text, "operations")
    threads = torch.get_num_threads()
    each = operations(b"", parallel_address(), 1) * ROUNDS
    return threads * each / least({"peak": lambda: run(b"", parallel_address(), threads)})["peak"] / 1e6

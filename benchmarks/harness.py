"""What every benchmark shares: checking before timing, interleaved medians, a table and a JSON file.

In: callables to time side by side, and rows of figures. Out: medians in milliseconds; the rows with versions and device
in `results/<benchmark>.<device>.json`, and as a table on the terminal.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("attndsl", "torch", "triton", "sympy", "lark", "jinja2")
MISSED = "missed"
WIDTH = 140
Row = dict[str, Any]


def medians(contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 3) -> dict[str, float]:
    """The median time of each contender in milliseconds, run in turns so that a slow spell of the machine hits all."""
    for run in contenders.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(_milliseconds(run))
    return {name: statistics.median(measured) for name, measured in times.items()}


def _milliseconds(run: Callable[[], object]) -> float:
    if not torch.cuda.is_available():
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def largest_row_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error of any row, relative to the row's size; NaN counts as infinite."""
    error = (out.double() - expected.double()).norm(dim=-1) / expected.double().norm(dim=-1).clamp_min(1e-3)
    return float(torch.nan_to_num(error, nan=float("inf")).max())


def check(name: str, out: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Refuse to time something that computes something else."""
    error = largest_row_error(out, expected)
    if error > tolerance:
        raise SystemExit(f"{name} differs from the dense float64 result: row error {error:.2e} > {tolerance:.0e}")


def environment() -> dict[str, str]:
    """The device and the versions a figure belongs to."""
    facts = {package: version(package) for package in PACKAGES}
    system = f"{platform.system()} {platform.machine()}"
    return {"device": device(), "python": platform.python_version(), "system": system, **facts}


def device() -> str:
    """The GPU, or the processor where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def publish(benchmark: str, title: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table, missed targets in red, and write them down."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*(Column(column, no_wrap=True) for column in columns), title=f"{title} ({device()})")
    for row in rows:
        cells = (_cell(row.get(column)) for column in columns)
        table.add_row(*cells, style="bold red" if row.get(MISSED) else None)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    kind = device().split(",")[0].replace(" ", "-").lower()
    path = RESULTS / f"{benchmark}.{kind}.json"
    path.write_text(json.dumps({"environment": environment(), "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path.relative_to(RESULTS.parent.parent)}")


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.2f}"
        case _:
            return str(value)

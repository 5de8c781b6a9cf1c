"""How much `import attndsl` and its first use cost over importing torch: at most 0.3 s, in fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys

from benchmarks.harness import MISSED, Row, publish

TARGET_MS = 300.0
REPEATS = 7
STATEMENTS = {
    "import attndsl; attndsl.attention": "import attndsl; attndsl.attention",
    "import attndsl; attndsl.parse": "import attndsl; attndsl.parse",
}
PROGRAM = """
import time
import torch
start = time.perf_counter()
{statement}
print((time.perf_counter() - start) * 1e3)
"""


def measure(statement: str) -> float:
    """The time of a statement after `import torch`, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM.format(statement=statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(REPEATS):
        for name, statement in STATEMENTS.items():
            times[name].append(measure(statement))
    rows: list[Row] = []
    for name, measured in times.items():
        median = statistics.median(measured)
        rows.append({"statement": name, "ms": median, "target ms": TARGET_MS, MISSED: median > TARGET_MS})
    publish("import_time", "Import, over importing torch", rows)


if __name__ == "__main__":
    main()

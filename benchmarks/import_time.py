"""How much `import attndsl` and its first use cost over importing torch: at most 0.3 s, in fresh processes.

As for any installed package, modules are compiled to bytecode before the clock starts.
"""

from __future__ import annotations

import os
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
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)
"""


def measure(statement: str) -> tuple[float, float]:
    """The wall and processor time of a statement after `import torch`, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM.format(statement=statement)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    wall, cpu = map(float, run.stdout.split())
    return wall, cpu


def main() -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in STATEMENTS}
    for statement in STATEMENTS.values():
        measure(statement)
    for _ in range(REPEATS):
        for name, statement in STATEMENTS.items():
            times[name].append(measure(statement))
    rows: list[Row] = []
    for name, measured in times.items():
        wall, cpu = map(statistics.median, zip(*measured, strict=True))
        rows.append({"statement": name, "ms": wall, "processor ms": cpu, "target ms": TARGET_MS})
        rows[-1][MISSED] = wall > TARGET_MS
    publish("import_time", "Import, over importing torch", rows)


if __name__ == "__main__":
    main()

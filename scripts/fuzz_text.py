"""Hostile texts, guided by coverage, against the compiler: `python scripts/fuzz_text.py [SECONDS] [SEED]`.

Ten minutes unless told otherwise. Prints every text that caused what no text may, as it can be pasted, once for each
cause; exit status 1 where there is one.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fuzzing import Finding, Fuzzer, fuzz

EVERY = 10.0
"""Seconds between lines of progress."""


def main(seconds: float, seed: int) -> int:
    """Fuzz, and say what was found; the number of causes."""
    causes: set[str] = set()
    shown = time.monotonic()

    def report(fuzzer: Fuzzer, found: Finding | None) -> None:
        nonlocal shown
        if found is not None and found.what not in causes:
            causes.add(found.what)
            print(f"{found.what}\n    {found.text!r}\n", flush=True)
        if time.monotonic() > shown + EVERY:
            shown = time.monotonic()
            print(state(fuzzer, len(causes)), flush=True)

    print(state(fuzz(seconds, seed, report), len(causes)))
    return len(causes)


def state(fuzzer: Fuzzer, causes: int) -> str:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    reached = f"{len(fuzzer.lines)} lines, {len(fuzzer.corpus)} texts"
    return f"{fuzzer.tried} tried, {fuzzer.programs} programs, {reached}, {memory} MiB, {causes} causes"


if __name__ == "__main__":
    length = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    chance = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    sys.exit(min(main(length, chance), 1))

"""Every gallery entry at about 4k tokens on a CPU, against its own dense formula in plain torch.

Time of a whole forward, what is composed around the attention included, float32, two heads of the system's usual head
dim; results are checked against the formula first. Where the formula is itself sparse or tiny (`run` says what it does)
it is no dense peer, and a gain below 1 is no surprise; the table shows all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.cpu.timing import THREADS, ratio, turns
from benchmarks.harness import MISSED, Row, check, publish
from examples.gallery.entry import Draw, Entry, Results, entries

LENGTH, HEADS = 4096, 2
TOLERANCE = 1e-3


def measure(name: str, entry: Entry, length: int) -> Row:
    """One row of the table."""
    size = replace(entry.usual, batch=1, heads=HEADS, length=min(length, entry.usual.length))
    inputs = {key: _single(value) for key, value in entry.inputs(size, Draw(0)).items()}
    runs: dict[str, Callable[[], Results]] = {
        "attndsl": lambda: entry.run(**inputs),
        "formula": lambda: entry.formula(**inputs),
    }
    found, wanted = (result if isinstance(result, tuple) else (result,) for result in (run() for run in runs.values()))
    for one, other in zip(found, wanted, strict=True):
        check(name, torch.atleast_1d(one), torch.atleast_1d(other), TOLERANCE)
    times = turns(runs)
    gain = ratio(times["formula"], times["attndsl"])
    return {
        "entry": name,
        "length": size.length,
        "head dim": size.head_dim,
        **{f"{contender} ms": min(each) for contender, each in times.items()},
        "over the formula": gain,
        MISSED: gain < 1,
    }


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entries", nargs="+", help="only these, by the name of their file; nothing is written down")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--threads", type=int, default=THREADS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    rows: list[Row] = []
    with torch.no_grad():
        for name, entry in entries().items():
            if chosen.entries is None or name in chosen.entries:
                rows.append(measure(name, entry, chosen.length))
                print(rows[-1], flush=True)
    if chosen.entries is None:
        publish("gallery", f"Gallery entries at {chosen.length} tokens, float32, {HEADS} heads", rows)


if __name__ == "__main__":
    main()

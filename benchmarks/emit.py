"""From Python functions to the text of a kernel, warm: at most 30 ms for any variant."""

from __future__ import annotations

from functools import partial

import attndsl as ad
from benchmarks.harness import MISSED, Row, medians, publish
from benchmarks.variants import Case, cases

TARGET_MS = 30.0
REPEATS = 15


def emit(case: Case) -> str:
    """Trace, run every pass, plan and print."""
    return ad.attention(score_mod=case.score_mod, mask_mod=case.mask_mod, name="measured").source()


def main() -> None:
    rows: list[Row] = []
    for case in cases(length=4096, heads=16, device="cpu"):
        median = medians({"emit": partial(emit, case)}, repeats=REPEATS)["emit"]
        lines = emit(case).count("\n")
        rows.append({"variant": case.name, "ms": median, "target ms": TARGET_MS, "lines": lines})
        rows[-1][MISSED] = median > TARGET_MS
    publish("emit", "Trace to text, warm", rows)


if __name__ == "__main__":
    main()

"""Random plans against every pair of their mask, for as long as you like: `python scripts/fuzz_plans.py N [SEED]`.

Prints every program whose plan skips a live pair, calls a dead one live, or is not exact where it must be, as text that
can be pasted, and the census of the tiles met.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from plans import BLOCKS, Findings, check_closed_form, check_exact, check_sound
from strategies import Case, affine_masks, affine_unions, mask_cases
from torch import Tensor

CALLS = {"max_programs": 4, "tensor_offsets": True, "max_length": 400}
Check = Callable[[Case, tuple[int, int]], tuple[Tensor, Tensor]]
SUITES: tuple[tuple[st.SearchStrategy[Case], Check], ...] = (
    (mask_cases(**CALLS), check_sound),
    (mask_cases(**CALLS), check_sound),
    (mask_cases(**CALLS | {"max_length": 130}), check_exact),
    (affine_masks(**CALLS), check_closed_form),
    (affine_unions(**CALLS), check_closed_form),
)
BATCH = 50
"""Examples of one hypothesis run: its examples come from one seed."""


def main(count: int, first: int) -> int:
    """Try `count` programs; the number of failures."""
    findings, failures = Findings(), 0
    for start in range(first, first + count, BATCH):
        strategy, check = SUITES[start // BATCH % len(SUITES)]
        failures += _batch(start, min(BATCH, first + count - start), strategy, check, findings)
        print(f"{start - first + BATCH} tried, {failures} failed; {findings}", flush=True)
    return failures


def _batch(start: int, count: int, strategy: st.SearchStrategy[Case], check: Check, findings: Findings) -> int:
    failures = []

    @seed(start)
    @settings(
        deadline=None,
        database=None,
        max_examples=count,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy, st.sampled_from((*BLOCKS, (16, 16), (16, 16), (16, 16))))
    def run(case: Case, block: tuple[int, int]) -> None:
        try:
            found, truth = check(case, block)
        except Exception:
            failures.append(case)
            print(f"{traceback.format_exc()}\nseed {start}, tiles {block}{case!r}", flush=True)
        else:
            if check is not check_exact:
                findings.add(found, truth)

    run()
    return len(failures)


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(min(1, main(arguments[0] if arguments else 500, arguments[1] if len(arguments) > 1 else 0)))

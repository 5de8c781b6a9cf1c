"""Random programs through their kernels for as long as you like: `python scripts/fuzz_kernels.py N [SEED] [native]`.

Forward and backward, softmax and normalizers nobody has heard of. Prints every program whose output or gradient differs
from the float64 reference, by the way the keys are walked, or by NaN where nothing looks, as text that can be pasted,
and the census of the tiles met. Kernels are native ones, or run in Triton's interpreter: no GPU needed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0" if sys.argv[-1] == "native" else "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from census import Census
from gradients import check_gradient_case, has_gradients
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from launches import INTERPRETING, TILE, check_case, streams
from normalizers import row
from strategies import Case, affine_masks, cases, mask_cases

from attndsl.reference import live_pairs
from attndsl.runtime.tiles import TileShape

TILES = (TILE, TileShape(32, 16, 4, 1), TileShape(16, 64, 4, 1)) if INTERPRETING else (TILE,)
CALLS = {"max_programs": 2, "tensor_offsets": True, "max_length": 129 if INTERPRETING else 257}
SMALL = {"max_programs": 2, "max_length": 33 if INTERPRETING else 150, "tensor_offsets": True}
PROGRAMS = st.one_of(
    cases(**CALLS),
    cases(weights=True, **SMALL),
    cases(row=row, **SMALL),
    cases(row=row, **SMALL),
    mask_cases(**CALLS),
    affine_masks(**CALLS),
)
BATCH = 10
"""Examples of one hypothesis run: its examples come from one seed."""


def main(count: int, first: int) -> int:
    """Try `count` programs; the number of failures."""
    census, failures = Census(), 0
    for start in range(first, first + count, BATCH):
        failures += _batch(start, min(BATCH, first + count - start), census)
        print(f"{start - first + BATCH} tried, {failures} failed; {census}", flush=True)
    return failures


def _batch(start: int, count: int, census: Census) -> int:
    failures = []

    @seed(start)
    @settings(
        deadline=None,
        database=None,
        max_examples=count,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(PROGRAMS, st.sampled_from(TILES))
    def run(case: Case, tile: TileShape | None) -> None:
        if not streams(case):
            return
        census.add(live_pairs(case.variant, case.values, **case.grid))
        try:
            check_case(case, tile)
            if has_gradients(case):
                check_gradient_case(case, tile)
        except Exception:
            failures.append(case)
            print(f"{traceback.format_exc()}\nseed {start}, {tile}{case!r}", flush=True)

    run()
    return len(failures)


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:] if argument != "native"]
    sys.exit(min(1, main(arguments[0] if arguments else 200, arguments[1] if len(arguments) > 1 else 0)))

"""Random calls for as long as you like: `python scripts/soak.py [CALLS] [SEED]`, ten thousand unless told otherwise.

Prints what the process weighs as it goes; exit status 1 where the second half of the calls made it heavier.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from soaking import soak

ALLOWED = 16 * 2**20
"""Bytes by which an allocator may wander."""

OBJECTS = 2000


def main(calls: int, seed: int) -> int:
    weights = []
    for weight in soak(calls, seed, moments=10):
        print(f"{weight.calls} calls: {weight.resident / 2**20:.1f} MiB, {weight.objects} objects", flush=True)
        weights.append(weight)
    half, end = weights[len(weights) // 2 - 1], weights[-1]
    return int(end.resident - half.resident > ALLOWED or end.objects - half.objects > OBJECTS)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, int(sys.argv[2]) if len(sys.argv) > 2 else 0))

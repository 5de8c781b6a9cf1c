"""The loops over the tiles of a walk, as Triton: which tiles each visits, in what order.

In: a `KeyWalk` and the frame its ends are named in. Out: a `Loop` for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attndsl.analysis.bounds import Strategy
from attndsl.codegen.triton_walk import Frame
from attndsl.codegen.walk import KeyWalk


@dataclass(frozen=True, slots=True)
class Loop:
    """Tiles from `start` to `stop`, full ones or partial ones.

    `jump` is where a tile starts, by the `step` of the loop, where it is not there itself.
    """

    comment: str
    start: str
    stop: str
    is_full: bool
    jump: str = ""


def loops(walk: KeyWalk, frame: Frame, in_order: bool) -> Iterator[Loop]:
    """The loops of a walk; `in_order` visits tiles as they follow each other.

    Where order does not matter, one loop visits all partial tiles. Every loop costs registers: those that its
    addresses and masks keep through the others.
    """
    lo, full_lo, full_hi, hi = frame.ends
    if not walk.has_full:
        yield Loop(f"Every tile is partial: the mask has terms that bound no {frame.walked}.", lo, hi, is_full=False)
    elif walk.strategy is Strategy.TABLE:
        yield Loop("Partial tiles of the record.", lo, full_lo, is_full=False)
        yield Loop(FULL, full_lo, hi, is_full=True)
    elif walk.has_left and not in_order:
        full = f"({full_hi} - {full_lo})"
        jump = f"tl.where(step < {full_lo}, step, step + {full})"
        yield Loop("Partial tiles, around the full ones.", lo, f"{hi} - {full}", is_full=False, jump=jump)
        yield Loop(FULL, full_lo, full_hi, is_full=True)
    else:
        if walk.has_left:
            yield Loop("Partial tiles before the full ones.", lo, f"tl.minimum({full_lo}, {hi})", is_full=False)
        yield Loop(FULL, full_lo, full_hi, is_full=True)
        yield Loop("Partial tiles after the full ones.", full_hi, hi, is_full=False)


FULL = "Full tiles: every pair is live."

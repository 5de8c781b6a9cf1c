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
    """Tiles from `start` to `stop`, full ones or partial ones."""

    comment: str
    start: str
    stop: str
    is_full: bool


def loops(walk: KeyWalk, frame: Frame, takes_turns: bool) -> Iterator[Loop]:
    """The loops of a walk, which visit tiles as they follow each other.

    Every loop costs registers: those that its addresses and masks keep through the others. Where `takes_turns`, one
    loop visits the partial tiles before the full ones and, in a second turn, those after them.
    """
    lo, full_lo, full_hi, hi = frame.ends
    if not walk.has_full:
        yield Loop(f"Every tile is partial: the mask has terms that bound no {frame.walked}.", lo, hi, is_full=False)
    elif walk.strategy is Strategy.TABLE:
        yield Loop("Partial tiles of the record.", lo, full_lo, is_full=False)
        yield Loop(FULL, full_lo, hi, is_full=True)
    elif takes_turns:
        yield Loop("Partial tiles before the full ones, then those after them.", lo, frame.stop, is_full=False)
        yield Loop(f"{FULL[:-1]}; all are visited in the first turn.", full_lo, full_hi, is_full=True)
    else:
        if walk.has_left:
            yield Loop("Partial tiles before the full ones.", lo, f"tl.minimum({full_lo}, {hi})", is_full=False)
        yield Loop(FULL, full_lo, full_hi, is_full=True)
        yield Loop("Partial tiles after the full ones.", full_hi, hi, is_full=False)


FULL = "Full tiles: every pair is live."

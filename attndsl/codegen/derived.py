"""What was derived of a variant, in words: how it streams, how it is differentiated.

In: a `Derivation`. Out: lines for people, the reasons where something has no derivation.
"""

from __future__ import annotations

from collections.abc import Iterator

from attndsl.analysis.streaming import Refusal, stream
from attndsl.analysis.structure import Structure, structure_of
from attndsl.codegen.derivation import Derivation
from attndsl.ir.nodes import Load
from attndsl.ir.printer import print_expr

GATHERED = {
    Structure.ROW: "summed along the keys of each query",
    Structure.COLUMN: "summed along the queries of each key",
    Structure.DIAGONAL: "summed along diagonals: it is read by the distance of query and key",
    Structure.PAIRS: "written down pair by pair, a stretch of keys at a time, and gathered in a fixed order",
}
"""How the derivatives by a captured element come together."""


def streaming_notes(derivation: Derivation) -> tuple[str, ...]:
    """Which statistics of a row are kept, and in how many passes over the keys."""
    found = stream(derivation.program)
    return _reasons(found) if isinstance(found, Refusal) else found.notes


def gradient_notes(derivation: Derivation) -> tuple[str, ...]:
    """How the variant is differentiated."""
    if isinstance(stream(derivation.program), Refusal):
        return ()
    found = derivation.derivative
    return _reasons(found) if isinstance(found, Refusal) else (*found.notes, *_captured(derivation))


def _captured(derivation: Derivation) -> Iterator[str]:
    by_pair = [load for load in derivation.cotangents if isinstance(load, Load)]
    for load in by_pair:
        yield f"{print_expr(load)}: {GATHERED[structure_of(load)]}"
    for load, _ in derivation.backward.drows:
        if load not in by_pair:
            yield f"{print_expr(load)}: known row by row, without a pass over the keys"


def _reasons(refusal: Refusal) -> tuple[str, ...]:
    return tuple(f"{reason.code}: {reason.message}" for reason in refusal.reasons)

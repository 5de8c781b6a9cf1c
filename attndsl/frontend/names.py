"""Names for the parameters of a traced variant: legal in the language, in Python and in Triton, and distinct.

In: what users called a value, and the mod they used it in. Out: one name per value.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from attndsl.ir.ops import CALLS
from attndsl.ir.types import Coordinate, Flow, Reduction

LANGUAGE = frozenset(
    {
        *CALLS,
        *(reduction.value for reduction in Reduction),
        *(coordinate.value for coordinate in Coordinate),
        *(Flow.SCORE.value, Flow.WEIGHT.value),
        *("attention", "clamp", "def", "false", "inf", "let", "mask", "nan", "normalizer", "row_solve", "softmax"),
        "true",
    }
)
RESERVED = LANGUAGE | set(keyword.kwlist) | set(keyword.softkwlist) | {"tl", "triton", "torch", "tensor"}
"""Words of the language, of Python and of the modules emitted code imports."""


def identifier(name: str) -> str:
    """The nearest legal name: other characters become `_`, a reserved word gets one at its end."""
    legal = part_of_name(name)
    return f"{legal}_" if legal in RESERVED else legal


def part_of_name(name: str) -> str:
    """The nearest text that can begin a name."""
    legal = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "value"
    return f"_{legal}" if legal[0].isdigit() else legal


def distinct(wanted: Sequence[tuple[str, str | None]]) -> list[str]:
    """A name for each (name, mod): the name itself where only one wants it, else with the mod's name before it."""
    counts = Counter(name for name, _ in wanted)
    taken = {name for name, count in counts.items() if count == 1}
    names = []
    for name, mod in wanted:
        if counts[name] > 1:
            name = fresh(f"{mod}_{name}" if mod else name, taken)
            taken.add(name)
        names.append(name)
    return names


def fresh(name: str, taken: Iterable[str]) -> str:
    """The name, or the first of `name_2`, `name_3`, ... that is not taken."""
    taken = set(taken)
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate

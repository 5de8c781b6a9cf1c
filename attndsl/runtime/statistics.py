"""What a call returns beside the output: statistics of its rows.

In: the `return_aux` a user passed, and what was computed. Out: an `Aux` with what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from attndsl.diagnostics import CallError, fail


@dataclass(frozen=True, slots=True)
class Aux:
    """Statistics of the rows of a call; `None` where one was not asked for.

    `lse` `(B, Hq, Nq)`, float32 (float64 from a float64 reference): natural log of the row's whole divisor, sinks
    included. `max_score` `(B, Hq, Nq)`: the row's largest final score. Both -inf in a row without a live key
    (with a sink, `lse` is the sink).
    """

    lse: Tensor | None = None
    max_score: Tensor | None = None


NAMES = tuple(field.name for field in fields(Aux))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which statistics a call returns. `everything`: those its normalizer has, whichever they are."""

    names: frozenset[str]
    everything: bool

    def of(self, lse: Tensor | None, max_score: Tensor) -> Aux:
        """The statistics asked for; an error where one by name does not exist."""
        if lse is None and "lse" in self.names and not self.everything:
            message = "this normalizer has no `lse`: its weights are not `exp(score - lse)`"
            raise fail(CallError, "no-lse", message, None, help="ask for `max_score` alone")
        return Aux(lse if "lse" in self.names else None, max_score if "max_score" in self.names else None)


def wanted_statistics(return_aux: Any) -> Wanted | None:
    """What `return_aux` asks for: nothing, everything, or a list of names."""
    if isinstance(return_aux, bool) or return_aux is None:
        return Wanted(frozenset(NAMES), everything=True) if return_aux else None
    help_ = f'pass True, or a list of names such as `["lse"]`; known are {_listed(NAMES)}'
    if isinstance(return_aux, str) or not isinstance(return_aux, Iterable):
        message = f"`return_aux` is {return_aux!r}, expected True, False or a list of names"
        raise fail(CallError, "bad-aux", message, None, help=help_)
    names = frozenset(map(str, return_aux))
    unknown = sorted(names - set(NAMES))
    if unknown:
        message = f"there is no row statistic {_listed(unknown)}"
        raise fail(CallError, "unknown-aux", message, None, help=f"known are {_listed(NAMES)}")
    return Wanted(names, everything=False)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)

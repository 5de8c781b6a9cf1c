"""What a call returns beside the output: statistics of its rows.

In: the `return_aux` a user passed, and what was computed. Out: an `Aux` with what was asked for; before that, for the
reference and kernels to compute, the sums over rows that it needs, as data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from attndsl.diagnostics import CallError, Reporter, fail
from attndsl.ir import row_sums
from attndsl.ir.names import free_name, renaming
from attndsl.ir.rewrite import sweep
from attndsl.ir.row_sums import RowSum
from attndsl.ir.variant import Param, ScalarParam, Variant
from attndsl.runtime.arguments import Call, Value, check_capture
from attndsl.runtime.facts import FactBook


@dataclass(frozen=True, slots=True)
class Aux:
    """Statistics of the rows of a call; `None` where one was not asked for.

    All are `(B, Hq, Nq)`, float32 (float64 from a float64 reference); all but `max_score` are differentiable.
    `lse`: natural log of the row's whole divisor, sinks included. `max_score`: the row's largest final score, which
    requires grad from no backend; to learn from a maximum take `lse`, the smooth one. Both are -inf in a row without a
    live key (with a sink, `lse` is the sink). `entropy`: -sum of w log w over the final weights w, 0 log 0 being 0; NaN
    in a row with a negative weight. `mass`: the sum of the final weights of the keys at which the predicate of
    `ad.aux.mass` holds; a tuple, in order, where several were asked for.
    """

    lse: Tensor | None = None
    max_score: Tensor | None = None
    entropy: Tensor | None = None
    mass: Tensor | tuple[Tensor, ...] | None = None


NAMES = ("lse", "max_score", "entropy")


class Bound(Protocol):
    """The values of parameters, as they are when a call is made."""

    def resolve(self, device: torch.device | None = None) -> dict[str, Value]: ...


@dataclass(frozen=True, eq=False, slots=True)
class Mass:
    """The weight of the keys at which the mask of `variant` holds."""

    variant: Variant
    bound: Bound

    def values(self, call: Call) -> dict[str, Value]:
        """The values its predicate reads in a call; an error where it has none there."""
        values = self.bound.resolve(call.q.device)
        reporter = Reporter(CallError)
        for param in self.variant.tensors:
            check_capture(reporter, self.variant, param, values[param.name], call.q.device)
        reporter.check()
        FactBook().of(self.variant, self.variant, replace(call, values=values))
        return values


@dataclass(frozen=True, slots=True)
class Sums:
    """Row sums to compute, and the values of their own parameters, which have names of their own in the call."""

    sums: tuple[RowSum, ...] = ()
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which statistics a call returns. `everything`: those its normalizer has, whichever they are."""

    names: frozenset[str]
    everything: bool
    masses: tuple[Mass, ...] = ()

    def sums(self, call: Call) -> Sums:
        """The row sums it takes: `entropy`, and `mass_0`, `mass_1`, ... for the masses in order."""
        wanted = [row_sums.entropy()] if "entropy" in self.names else []
        values: dict[str, Value] = {}
        for position, mass in enumerate(self.masses):
            name = f"mass_{position}"
            moved, names = _renamed(mass.variant, name, call.values.keys())
            wanted.append(row_sums.mass(name, moved.mask, moved.params))
            values |= {names[param]: value for param, value in mass.values(call).items()}
        return Sums(tuple(wanted), values)

    def of(self, lse: Tensor | None, max_score: Tensor, sums: Mapping[str, Tensor]) -> Aux:
        """The statistics asked for; an error where one by name does not exist."""
        if lse is None and "lse" in self.names and not self.everything:
            message = "this normalizer has no `lse`: its weights are not `exp(score - lse)`"
            raise fail(CallError, "no-lse", message, None, help="ask for `max_score` alone")
        known = {"lse": lse, "max_score": max_score, "entropy": sums.get("entropy")}
        masses = tuple(sums[f"mass_{position}"] for position in range(len(self.masses)))
        mass = masses if len(masses) > 1 else masses[0] if masses else None
        return Aux(**{name: known[name] for name in self.names}, mass=mass)


class Left(Protocol):
    """What kernels or the reference leave of a call."""

    @property
    def out(self) -> Tensor: ...
    @property
    def lse(self) -> Tensor | None: ...
    @property
    def max_score(self) -> Tensor: ...
    @property
    def sums(self) -> Mapping[str, Tensor]: ...


def with_statistics(left: Left, wanted: Wanted | None) -> Any:
    """What a call returns: the output, and the statistics that are wanted."""
    return left.out if wanted is None else (left.out, wanted.of(left.lse, left.max_score, left.sums))


def wanted_statistics(return_aux: Any) -> Wanted | None:
    """What `return_aux` asks for: nothing, everything, or a list of names and masses."""
    if isinstance(return_aux, bool) or return_aux is None:
        return Wanted(frozenset(NAMES), everything=True) if return_aux else None
    help_ = f'pass True, or a list of names such as `["lse"]`; known are {_listed(NAMES)} and `ad.aux.mass(...)`'
    if isinstance(return_aux, str) or not isinstance(return_aux, Iterable):
        message = f"`return_aux` is {return_aux!r}, expected True, False or a list of names"
        raise fail(CallError, "bad-aux", message, None, help=help_)
    given = tuple(return_aux)
    masses = tuple(one for one in given if isinstance(one, Mass))
    names = frozenset(str(one) for one in given if not isinstance(one, Mass))
    unknown = sorted(names - set(NAMES))
    if unknown:
        message = f"there is no row statistic {_listed(unknown)}"
        known = f"known are {_listed(NAMES)} and `ad.aux.mass(lambda kv_idx: kv_idx < 4)`"
        raise fail(CallError, "unknown-aux", message, None, help=known)
    return Wanted(names, everything=False, masses=masses)


def _renamed(variant: Variant, prefix: str, taken: Collection[str]) -> tuple[Variant, dict[str, str]]:
    """A variant whose parameters have names that are not taken, and those names by the old ones.

    Defaults are left out: a predicate of another number is the same program.
    """
    names = {param.name: free_name(f"{prefix}_{param.name}", taken) for param in variant.params}
    params = tuple(_unbound(param, names[param.name]) for param in variant.params)
    return replace(variant, mask=sweep((variant.mask,), renaming(names))[variant.mask], params=params), names


def _unbound(param: Param, name: str) -> Param:
    return ScalarParam(name, param.dtype) if isinstance(param, ScalarParam) else replace(param, name=name)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)

"""Further row outputs, as users ask for them: `return_aux=["lse", ad.aux.mass(lambda kv_idx: kv_idx < 4)]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from attndsl.frontend.bindings import Bindings
from attndsl.frontend.tracing import trace
from attndsl.runtime.statistics import Mass

__all__ = ["mass"]


@dataclass(frozen=True, eq=False, slots=True)
class Predicate(Mass):
    """A mass whose parameters take other values."""

    bound: Bindings

    def bind(self, **values: Any) -> Predicate:
        """The same predicate with other values of its parameters, by name."""
        return replace(self, bound=self.bound.bind(**values))


def mass(predicate: Callable[..., Any]) -> Predicate:
    """The weight that a row gives to the keys at which a predicate holds: how much goes to a sink, to a document.

    `predicate` is a function like a mask: of any of `b`, `h`, `q_idx`, `kv_idx`, `q_len`, `kv_len`, true or false at
    each pair; it may capture tensors, and `bind` gives its parameters other values. Pass what this returns in
    `return_aux`; `aux.mass` is then `(B, Hq, Nq)`, the sum of the final weights where the predicate holds,
    differentiable; for several predicates a tuple in their order.
    """
    program = trace(mask_mod=predicate, name="mass")
    return Predicate(program.variant, program.bindings)

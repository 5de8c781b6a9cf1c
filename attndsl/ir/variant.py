"""A whole attention variant: four expressions over named parameters, and where they were written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from attndsl.diagnostics import Span
from attndsl.ir.nodes import Expr, Load, postorder
from attndsl.ir.order import GridOrder
from attndsl.ir.requirement import Requirement
from attndsl.ir.types import DType


@dataclass(frozen=True, slots=True)
class ScalarParam:
    """A runtime scalar, an int or a float; `default` is the value a call uses when none is bound."""

    name: str
    dtype: DType
    default: int | float | None = None


@dataclass(frozen=True, slots=True)
class TensorParam:
    """A captured tensor: `dtype` is its kind (bool, int, float), `dims` one name per dimension, for people."""

    name: str
    dtype: DType
    dims: tuple[str, ...]

    @property
    def rank(self) -> int:
        return len(self.dims)


Param = ScalarParam | TensorParam


class Origins:
    """The spans each node was written at, in the order of writing. Luggage: it never decides equality."""

    def __init__(self, spans: Mapping[Expr, tuple[Span, ...]] | None = None) -> None:
        # Ordered sets: a coordinate is written in thousands of places.
        self._spans: dict[Expr, dict[Span, None]] = {node: dict.fromkeys(of) for node, of in (spans or {}).items()}

    def of(self, node: Expr) -> tuple[Span, ...]:
        """Every span of a node; none for a node no user wrote."""
        return tuple(self._spans.get(node, ()))

    def first(self, node: Expr) -> Span | None:
        """The first place a node was written at."""
        return next(iter(self._spans.get(node, ())), None)

    def add(self, node: Expr, *spans: Span | None) -> None:
        """Remember more places of a node."""
        new = dict.fromkeys(span for span in spans if span is not None)
        if new:
            self._spans.setdefault(node, {}).update(new)

    def moved(self, moves: Mapping[Expr, Expr]) -> Origins:
        """The origins after a rewrite: what an old node carried, its replacement carries too."""
        origins = Origins({node: tuple(spans) for node, spans in self._spans.items()})
        for old, new in moves.items():
            if new is not old:
                origins.add(new, *self.of(old))
        return origins


@dataclass(frozen=True, slots=True)
class Variant:
    """score mods, then mask, then normalizer, then weight mods; every stage one expression.

    `score` is over `Input(SCORE)` = the scaled dot product; `mask` is a bool over coordinates and captures;
    `normalizer` is the weight as a function of `Input(SCORE)` = the final score and of row statistics;
    `weight` is over `Input(WEIGHT)` = the normalized weight. `requirements` are about calls and in no kernel.
    `moved_to_mask` are conditions a pass found in the score, as they were written: luggage, for people.
    `order` is how kernels keep tokens; it changes no meaning: positions here are those of the call.
    """

    name: str
    params: tuple[Param, ...]
    score: Expr
    mask: Expr
    normalizer: Expr
    weight: Expr
    origins: Origins = field(default_factory=Origins, compare=False, repr=False)
    requirements: tuple[Requirement, ...] = ()
    moved_to_mask: tuple[Expr, ...] = field(default=(), compare=False, repr=False)
    order: GridOrder | None = None

    @property
    def roots(self) -> tuple[Expr, Expr, Expr, Expr]:
        """The four expressions, in the order values flow."""
        return (self.score, self.mask, self.normalizer, self.weight)

    def map(self, rewrite: Callable[[Expr], Expr]) -> Variant:
        """The variant with a rewrite applied to every stage; the same object when nothing changes."""
        roots = tuple(map(rewrite, self.roots))
        if all(new is old for new, old in zip(roots, self.roots, strict=True)):
            return self
        score, mask, normalizer, weight = roots
        return replace(self, score=score, mask=mask, normalizer=normalizer, weight=weight)

    @property
    def demands(self) -> tuple[Requirement, ...]:
        """All that is asked of a call: what was written, and what the order of tokens needs."""
        return self.requirements if self.order is None else (*self.order.requirements, *self.requirements)

    def param(self, name: str) -> Param:
        """The parameter of that name."""
        return next(param for param in self.params if param.name == name)

    @property
    def scalars(self) -> tuple[ScalarParam, ...]:
        return tuple(param for param in self.params if isinstance(param, ScalarParam))

    @property
    def tensors(self) -> tuple[TensorParam, ...]:
        return tuple(param for param in self.params if isinstance(param, TensorParam))

    def loads_of(self, tensor: str) -> tuple[Load, ...]:
        """Every element of a captured tensor the program reads."""
        nodes = postorder(*self.roots)
        return tuple(node for node in nodes if isinstance(node, Load) and node.tensor == tensor)

    def __iter__(self) -> Iterator[Expr]:
        return iter(self.roots)

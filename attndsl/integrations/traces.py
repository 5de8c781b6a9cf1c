"""Attentions of functions that come back: traced and compiled once, called with the values of the day.

In: FlexAttention-style functions, made anew for every call perhaps. Out: a compiled variant and the values they close
over now. What is kept is bounded: what has not been used for longest is dropped.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import copysign
from threading import Lock
from typing import Any, Generic, TypeVar

from torch import Size, Tensor

from attndsl.attention import Attention
from attndsl.compiler import Compilation
from attndsl.frontend.bindings import Bindings
from attndsl.frontend.decorators import Mod, as_mod
from attndsl.frontend.signatures import Stage
from attndsl.frontend.tracing import Program as Traced
from attndsl.frontend.tracing import trace
from attndsl.integrations.likeness import Likeness, likeness
from attndsl.ir.rewrite import postorder
from attndsl.ir.variant import ScalarParam, Variant
from attndsl.programs import Program
from attndsl.runtime.facts import FactBook

REMEMBERED = 1024
"""Forms of functions, and compiled variants, that are kept."""

TRACES = 64
"""Traces of one form that are kept: they differ in numbers that Python needed."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(OrderedDict[K, V], Generic[K, V]):
    """What was used last."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._lock = Lock()

    def use(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not here."""
        with self._lock:
            if key in self:
                self.move_to_end(key)
                return self[key]
        made = make()
        with self._lock:
            value = self.setdefault(key, made)
            while len(self) > self._limit:
                self.popitem(last=False)
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A compiled variant with the values of its parameters."""

    program: Program
    bindings: Bindings

    @property
    def attention(self) -> Attention:
        """As users hold it."""
        return Attention(self.program.compilation, self.bindings, self.program.facts)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What functions of one form were traced to. Of a `Likeness`: the `numbers` it holds for and the sizes of the
    tensors it holds for, by position; by name, which number or tensor a captured value is."""

    program: Program
    bindings: Bindings
    numbers: Mapping[int, int | float]
    sizes: Mapping[int, Size]
    number_of: Mapping[str, int]
    tensor_of: Mapping[str, int]

    def fits(self, now: Likeness) -> bool:
        """Whether tracing again would give the same."""
        numbers = tuple(now.numbers.values())
        return all(_same(numbers[at], value) for at, value in self.numbers.items()) and all(
            now.tensors[at].shape == size for at, size in self.sizes.items()
        )

    def bound(self, now: Likeness) -> Bound:
        """The variant over the values of these functions."""
        numbers = tuple(now.numbers.values())
        captured = dict(self.bindings.captured)
        for name, at in self.number_of.items():
            captured[name] = replace(
                captured[name], value=float(numbers[at]) if captured[name].dtype.is_float else numbers[at]
            )
        for name, at in self.tensor_of.items():
            captured[name] = replace(captured[name], value=now.tensors[at])
        return Bound(self.program, replace(self.bindings, captured=captured))


_traces: Recent[Hashable, list[Trace]] = Recent(REMEMBERED)
_compiled: Recent[Hashable, Program] = Recent(REMEMBERED)


def traced(
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    normalizer: Mod | None = None,
) -> Bound:
    """The variant these functions describe, read in FlexAttention's order, over the values they close over now."""
    now = likeness(score_mod, mask_mod, normalizer)
    known: list[Trace] = [] if now.form is None else _traces.use(now.form, list)
    for found in known:
        if found.fits(now):
            return found.bound(now)
    given = ((Stage.SCORE, score_mod), (Stage.MASK, mask_mod), (Stage.NORMALIZER, normalizer))
    mods = {stage: as_mod(stage, function, positional=True) for stage, function in given if function is not None}
    read = trace(score_mod=mods.get(Stage.SCORE), mask_mod=mods.get(Stage.MASK), normalizer=mods.get(Stage.NORMALIZER))
    program = compile_once(read.variant)
    made = _trace(read, program, now, tuple(mods.values()))
    if made is not None:
        known.insert(0, made)
        del known[TRACES:]
    return Bound(program, read.bindings)


def trace_of(
    score_mod: Callable[..., Any] | None, mask_mod: Callable[..., Any] | None
) -> tuple[Trace | None, Likeness]:
    """The trace of functions, where it serves whatever is like them."""
    traced(score_mod, mask_mod)
    now = likeness(score_mod, mask_mod, None)
    known: list[Trace] = [] if now.form is None else _traces.use(now.form, list)
    return next((found for found in known if found.fits(now)), None), now


def compile_once(variant: Variant) -> Program:
    """The compilation of a variant; two that were written in different places have one each, for their errors' sake."""
    params = tuple(replace(one, default=None) if isinstance(one, ScalarParam) else one for one in variant.params)
    places = tuple(variant.origins.of(node) for node in postorder(*variant.roots))
    return _compiled.use((replace(variant, params=params), places), lambda: Program(Compilation(variant), FactBook()))


def forget() -> None:
    """Drop everything that is kept."""
    _traces.clear()
    _compiled.clear()


def _trace(read: Traced, program: Program, now: Likeness, mods: tuple[Mod, ...]) -> Trace | None:
    """What may be used again; nothing where a captured value is none that the functions were seen to close over."""
    places = list(now.numbers)
    met = {key: place for mod in mods for key, place in _parameters(mod, places)}
    number_of: dict[str, int] = {}
    tensor_of: dict[str, int] = {}
    tensors = {id(tensor): at for at, tensor in enumerate(now.tensors)}
    for name, bound in read.bindings.captured.items():
        place = met.get(read.keys[name], read.keys[name])
        if isinstance(bound.value, Tensor) and id(bound.value) in tensors:
            tensor_of[name] = tensors[id(bound.value)]
        elif not isinstance(bound.value, Tensor) and place in now.numbers:
            number_of[name] = places.index(place)
        elif not bound.made_inside:
            return None
    # Numbers that are no parameters may have decided what was traced, and so may sizes that were read.
    decided = {at: value for at, value in enumerate(now.numbers.values()) if at not in number_of.values()}
    sized = [at for name, at in tensor_of.items() if read.bindings.captured[name].leaf.reads_shape]
    if read.bindings.recipes:
        sized = list(tensor_of.values())
    sizes = {at: now.tensors[at].shape for at in sized}
    return Trace(program, _without_tensors(read.bindings, tensor_of), decided, sizes, number_of, tensor_of)


def _parameters(mod: Mod, places: list[Hashable]) -> Iterator[tuple[Hashable, Hashable]]:
    """How a trace names the parameters of a mod, and where the number of each was met."""
    function: Any = mod.function
    homes: list[tuple[str, int]] = []
    while isinstance(function, functools.partial):
        homes.append(("partial", id(function)))
        function = function.func
    homes.append(("default", id(function)))
    for name in mod.signature.defaults:
        met = [(*home, name) for home in homes if (*home, name) in places]
        if met:
            yield (id(mod), name), met[0]


def _without_tensors(bindings: Bindings, names: Mapping[str, int]) -> Bindings:
    """Bindings that keep no tensor of a user's alive."""
    captured = {name: replace(bound, value=0) if name in names else bound for name, bound in bindings.captured.items()}
    return replace(bindings, captured=captured)


def _same(left: float, right: float) -> bool:
    """Whether two numbers are the same constant: 0.0 and -0.0 are two."""
    return left == right and copysign(1.0, left) == copysign(1.0, right)

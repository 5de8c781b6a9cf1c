"""`flex_attention` inside `torch.compile` and `torch.export`: functions in a graph, with the values they close over.

In: the functions of a call, while a graph is being made. Out: the attention they describe, over their values as torch's
compiler sees them: those are inputs of the graph, and whatever else the functions are made of, it watches.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from types import FunctionType, MethodType
from typing import Any

import torch

from attndsl.attention import Attention
from attndsl.frontend.bindings import Bindings, Bound, Recipe
from attndsl.integrations.sources import Path, Source, sources, value_at
from attndsl.integrations.traces import Trace, trace_of
from attndsl.programs import Program

Mod = Callable[..., Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What functions were traced to, in tuples alone, which torch's compiler can go through.

    `captured` are the captured values with the ways to them; none for tables a variant makes itself. `functions` are
    the ways to all code, `constants` and `sized` those to what has to stay, and to tensors whose sizes have to.
    """

    program: Program
    captured: tuple[tuple[str, Bound, Path | None], ...]
    recipes: tuple[tuple[str, Recipe], ...]
    params: tuple[str, ...]
    functions: tuple[Path, ...]
    constants: tuple[tuple[Path, Any], ...]
    sized: tuple[tuple[Path, tuple[int, ...]], ...]


REMEMBERED = 1024

_known: OrderedDict[str, Found] = OrderedDict()
"""What graphs were made with, where torch's compiler can look it up: it takes no objects from functions it runs."""


_count = count()


def find(score_mod: Mod, of_score: Any, mask_mod: Mod, of_mask: Any) -> str | None:
    """The key of what functions were traced to, methods `of_` objects; `None` where a value they read is unseen."""
    found = _found(_whole(score_mod, of_score), _whole(mask_mod, of_mask))
    if found is None:
        return None
    key = f"{found.program.compilation.fingerprint} {next(_count)}"
    _known[key] = found
    while len(_known) > REMEMBERED:
        _known.popitem(last=False)
    return key


def _found(score_mod: Mod, mask_mod: Mod) -> Found | None:
    trace, now = trace_of(score_mod, mask_mod)
    reached = sources((score_mod, mask_mod))
    if trace is None or reached is None:
        return None
    places, paths = list(now.numbers), {source.place: source.path for source in reached}
    tensors = {id(source.value): source.path for source in reached if isinstance(source.value, torch.Tensor)}
    if not paths.keys() >= set(places) or not tensors.keys() >= set(map(id, now.tensors)):
        return None
    ways = {name: paths[places[at]] for name, at in trace.number_of.items()}
    ways |= {name: tensors[id(now.tensors[at])] for name, at in trace.tensor_of.items()}
    bindings = trace.bindings
    return Found(
        trace.program,
        tuple((name, bound, ways.get(name)) for name, bound in bindings.captured.items()),
        tuple(bindings.recipes.items()),
        bindings.params,
        tuple(source.path for source in reached if isinstance(source.value, FunctionType)),
        tuple(_constants(trace, reached, places)),
        tuple((tensors[id(now.tensors[at])], tuple(size)) for at, size in trace.sizes.items()),
    )


def _constants(trace: Trace, reached: tuple[Source, ...], places: list[Any]) -> list[tuple[Path, Any]]:
    """What is neither a parameter nor code."""
    bound = {places[at] for at in trace.number_of.values()}
    plain = (source for source in reached if not isinstance(source.value, FunctionType | torch.Tensor))
    return [(source.path, source.value) for source in plain if source.place is None or source.place not in bound]


find_in_graph = torch.compiler.assume_constant_result(find)


def attention_in_graph(score_mod: Any, mask_mod: Any) -> Attention | None:
    """The attention of functions, over their values; `None` where torch's compiler cannot see all they are made of."""
    if _is_made_inside(score_mod) or _is_made_inside(mask_mod):
        return None
    key = find_in_graph(*_parts(score_mod), *_parts(mask_mod))
    if key is None:
        return None
    found = _known[key]
    roots = (score_mod, mask_mod)
    # What is looked at here, torch's compiler watches: code, and what is compared.
    for path in found.functions:
        assert value_at(roots, path).__code__ is not None
    for path, constant in found.constants:
        if value_at(roots, path) != constant:
            return None
    for path, size in found.sized:
        if tuple(value_at(roots, path).shape) != size:
            return None
    captured = {}
    for name, bound, way in found.captured:
        captured[name] = bound if way is None else replace(bound, value=value_at(roots, way))
    bindings = Bindings(captured, dict(found.recipes), found.params)
    return Attention(found.program.compilation, bindings, found.program.facts)


def _parts(mod: Any) -> tuple[Any, Any]:
    """A function and `None`, or what a method is of: torch's compiler hands no methods out."""
    return (mod.__func__, mod.__self__) if isinstance(mod, MethodType) else (mod, None)


def _whole(function: Any, owner: Any) -> Any:
    return function if owner is None else MethodType(function, owner)


def _is_made_inside(mod: Any) -> bool:
    """Whether a function closes over what only the graph has, so that there is none to trace outside of it."""
    if isinstance(mod, functools.partial):
        return _is_made_inside(mod.func)
    if isinstance(mod, FunctionType):
        try:
            mod.__closure__  # noqa: B018  torch's compiler has none of functions it makes itself
        except AttributeError:
            return True
    return False

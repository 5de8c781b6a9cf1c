"""Which arguments of a user's function are coordinates and which are parameters.

In: any callable. Out: a `Signature`, by name where every positional argument has a known one, else by FlexAttention's
order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import CodeType
from typing import Any

import torch

from attndsl.diagnostics import DiagnosticError, ProgramError, fail
from attndsl.frontend.declared import Open, declaration
from attndsl.frontend.spans import argument_span, definition_span
from attndsl.ir.types import Coordinate, Flow

REQUIRED = inspect.Parameter.empty
FLEX_ORDER = ("b", "h", "q_idx", "kv_idx")
LENGTHS = ("q_len", "kv_len")


class Stage(Enum):
    """What a mod edits; the value is the word users write."""

    MASK = "mask"
    SCORE = "score"
    NORMALIZER = "normalizer"
    WEIGHT = "weight"

    @property
    def flow(self) -> Flow | None:
        """The value that flows into it."""
        flows = {Stage.SCORE: Flow.SCORE, Stage.NORMALIZER: Flow.SCORE, Stage.WEIGHT: Flow.WEIGHT}
        return flows.get(self)

    @property
    def decorator(self) -> str:
        """The public name that makes one."""
        return "normalizer" if self is Stage.NORMALIZER else f"{self.value}_mod"

    @property
    def flex_order(self) -> tuple[str, ...] | None:
        """The order of positional arguments under any names; none where FlexAttention has no such function."""
        return {Stage.MASK: FLEX_ORDER, Stage.SCORE: ("score", *FLEX_ORDER)}.get(self)

    @property
    def known(self) -> tuple[str, ...]:
        """The names of arguments that mean something."""
        flow = () if self.flow is None else (self.flow.value,)
        return flow + tuple(coordinate.value for coordinate in Coordinate)


@dataclass(frozen=True, slots=True)
class Signature:
    """`arguments` are (name of the function's argument, what it stands for) in order; `defaults` the parameters, and
    `declared` what annotations say of these."""

    arguments: tuple[tuple[str, str], ...]
    defaults: Mapping[str, Any]
    declared: Mapping[str, Open] = field(default_factory=dict)
    by_keyword: bool = False

    @property
    def order(self) -> tuple[str, ...]:
        """What the positional arguments stand for."""
        return tuple(meaning for _, meaning in self.arguments)


def signature_of(stage: Stage, function: Callable[..., Any], positional: bool = False) -> Signature:
    """How a function is to be called; `positional` takes FlexAttention's order whatever the names."""
    if isinstance(function, functools.partial):
        return _of_partial(stage, function, positional)
    return _recognised(stage, function, *_declared(function), positional)


def name_of(stage: Stage, function: Callable[..., Any]) -> str | None:
    """What a mod is called after; nothing for a lambda or a private function."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return None if name.startswith(("<", "_")) else str(name)


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """The code a callable runs, where it is written in Python."""
    while isinstance(function, functools.partial):
        function = function.func
    for candidate in (function, getattr(function, "__func__", None), vars(type(function)).get("__call__")):
        code = getattr(candidate, "__code__", None)
        if isinstance(code, CodeType):
            return code
    return None


def _of_partial(stage: Stage, function: functools.partial[Any], positional: bool) -> Signature:
    names, defaults, declared = _declared(function.func)
    names = names[len(function.args) :] if names is not None else None
    if names is not None:
        names = tuple(name for name in names if name not in function.keywords)
    defaults = {**defaults, **function.keywords}
    signature = _recognised(stage, function, names, defaults, declared, positional)
    # A keyword bound before the last coordinate leaves those after it to be passed by keyword.
    by_keyword = names is not None and bool(function.keywords)
    return Signature(signature.arguments, signature.defaults, signature.declared, by_keyword)


def _declared(function: Callable[..., Any]) -> tuple[tuple[str, ...] | None, dict[str, Any], dict[str, Open]]:
    """Positional arguments (`None` for `*args`), parameters with their defaults, and what these are declared as."""
    if isinstance(function, functools.partial):
        names, defaults, declared = _declared(function.func)
        left = None if names is None else names[len(function.args) :]
        left = None if left is None else tuple(name for name in left if name not in function.keywords)
        return left, {**defaults, **function.keywords}, declared
    try:
        target = function.forward if isinstance(function, torch.nn.Module) else function
        arguments = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return None, {}, {}
    names_: list[str] = []
    parameters: dict[str, Any] = {}
    starred = False
    for parameter in arguments:
        match parameter.kind:
            case inspect.Parameter.VAR_POSITIONAL:
                starred = True
            case inspect.Parameter.VAR_KEYWORD:
                pass
            case inspect.Parameter.KEYWORD_ONLY:
                parameters[parameter.name] = parameter.default
            case _ if parameter.default is REQUIRED or parameter.name in Stage.WEIGHT.known + Stage.SCORE.known:
                names_.append(parameter.name)
            case _:
                parameters[parameter.name] = parameter.default
    found = {one.name: declaration(one.annotation, target) for one in arguments if one.name in parameters}
    declared = {name: one for name, one in found.items() if one is not None}
    return (None if starred and not names_ else tuple(names_)), parameters, declared


def _recognised(
    stage: Stage,
    function: Callable[..., Any],
    names: tuple[str, ...] | None,
    defaults: dict[str, Any],
    declared: Mapping[str, Open],
    positional: bool,
) -> Signature:
    flex = stage.flex_order
    if names is None and flex is not None:
        return Signature(tuple(zip(flex, flex, strict=True)), defaults, declared)
    names = names or ()
    if not positional and all(name in stage.known for name in names):
        return Signature(tuple(zip(names, names, strict=True)), defaults, declared)
    if flex is not None and len(names) == len(flex):
        return Signature(tuple(zip(names, flex, strict=True)), defaults, declared)
    raise _unknown(stage, function, names, positional)


def _unknown(stage: Stage, function: Callable[..., Any], names: tuple[str, ...], positional: bool) -> DiagnosticError:
    flex = stage.flex_order
    unknown = [name for name in names if name not in stage.known]
    message = f"`{name_of(stage, function) or stage.value}` has positional arguments ({', '.join(names)})"
    notes = []
    if not positional:
        known = ", ".join(f"`{name}`" for name in stage.known)
        notes.append(f"by name: any of {known}, in any order")
        listed = ", ".join(f"`{name}`" for name in unknown)
        message += f"; {listed} {'is no coordinate' if len(unknown) == 1 else 'are no coordinates'}"
    if flex is not None:
        notes.append(f"by position: exactly {len(flex)} under any names, in the order ({', '.join(flex)})")
    help_ = f"make a parameter keyword-only: `*, {unknown[0]}`" if unknown else None
    if stage is Stage.MASK and Flow.SCORE.value in unknown:
        help_ = "a mask is known before scores are; in a score mod, `ad.where(..., score, -math.inf)` masks pairs too"
    code = code_of(function)
    span = None
    if code is not None:
        span = argument_span(code, unknown[0]) if unknown else definition_span(code)
    return fail(ProgramError, "unknown-argument", message, span, *notes, help=help_)

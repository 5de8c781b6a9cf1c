"""Arguments to the parameters they are for, by position or by name."""

from __future__ import annotations

from collections.abc import Sequence

from attndsl.diagnostics import Reporter, Span
from attndsl.frontend.scope import Value, suggestion


def bind(
    reporter: Reporter,
    name: str,
    params: tuple[str, ...],
    names: Sequence[str | None],
    values: Sequence[Value],
    span: Span,
) -> dict[str, Value] | None:
    """The value of each parameter, or nothing after a report; an argument without a name goes by its place."""
    mistakes = len(reporter)
    bound: dict[str, Value] = {}
    for position, (given, value) in enumerate(zip(names, values, strict=True)):
        target = given if given is not None else _at(params, position)
        if target is None:
            continue
        if target not in params:
            message = f"`{name}` has no parameter `{target}`"
            reporter.error("unknown-argument", message, span, help=suggestion(target, params))
        elif target in bound:
            reporter.error("duplicate-argument", f"`{name}` is given `{target}` twice", span)
        bound[target] = value
    if len(reporter) == mistakes and (len(bound) < len(params) or len(values) > len(params)):
        listed = f": `{name}({', '.join(params)})`"
        message = f"`{name}` takes {len(params)} argument(s), got {len(values)}{listed}"
        reporter.error("wrong-arity", message, span)
    return bound if len(reporter) == mistakes else None


def _at(params: tuple[str, ...], position: int) -> str | None:
    return params[position] if position < len(params) else None

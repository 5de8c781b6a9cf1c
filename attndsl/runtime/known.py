"""The parameters of a call as analysis wants them: plain scalars, summaries of integer tensors, layouts.

In: a variant and the values bound to its parameters. Out: `Known` and `Layout`s. A summary holds as long as its tensor
keeps its values; who keeps one across calls watches the tensor's version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from attndsl.analysis.intervals import Known
from attndsl.analysis.obligations import Layout
from attndsl.analysis.summaries import ArraySummary, Summary
from attndsl.ir.variant import ScalarParam, Variant

Value = bool | int | float | Tensor


def summarize(tensor: Tensor) -> Summary:
    """The summary of an integer or bool tensor, from whichever device."""
    return ArraySummary(tensor.detach().cpu().numpy())


def known_values(
    variant: Variant, values: Mapping[str, Value], summary: Callable[[Tensor], Summary] = summarize
) -> Known:
    """What analysis may know of a call, of the parameters that have values.

    `summary` lets a caller remember those it has.
    """
    scalars = {param.name: _number(param, values) for param in variant.scalars}
    integers = {param.name: values.get(param.name) for param in variant.tensors if not param.dtype.is_float}
    return Known(
        {name: number for name, number in scalars.items() if number is not None},
        {name: summary(tensor) for name, tensor in integers.items() if isinstance(tensor, Tensor)},
    )


def layouts(variant: Variant, values: Mapping[str, Value]) -> dict[str, Layout]:
    """How the captured tensors lie in memory."""
    found = ((param.name, values.get(param.name)) for param in variant.tensors)
    return {name: Layout(tuple(t.shape), t.stride()) for name, t in found if isinstance(t, Tensor)}


def _number(param: ScalarParam, values: Mapping[str, Value]) -> int | float | None:
    value = values.get(param.name, param.default)
    if value is None:
        return None
    number = value.item() if isinstance(value, Tensor) else value
    return int(number) if param.dtype.is_int else float(number)

"""The parameters of a call as analysis wants them: plain scalars, summaries of tensors, layouts.

In: a variant and the values bound to its parameters. Out: `Known` and `Layout`s. A summary holds as long as its tensor
keeps its values; who keeps one across calls watches the tensor's version.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from attndsl.analysis.bounds import floats_looked_into
from attndsl.analysis.intervals import Known
from attndsl.analysis.obligations import Layout
from attndsl.analysis.real_summaries import RealSummary
from attndsl.analysis.summaries import ArraySummary, Summary
from attndsl.ir.variant import ScalarParam, Variant

Value = bool | int | float | Tensor


def summarize(tensor: Tensor) -> Summary:
    """The summary of an integer or bool tensor, from whichever device."""
    return ArraySummary(tensor.detach().cpu().numpy())


def summarize_floats(tensor: Tensor) -> RealSummary:
    """The summary of a float tensor, from whichever device and of whichever width."""
    is_wide = tensor.dtype is torch.float64
    return RealSummary(tensor.detach().to("cpu", torch.float64 if is_wide else torch.float32).numpy())


def known_values(
    variant: Variant,
    values: Mapping[str, Value],
    summary: Callable[[Tensor], Summary] = summarize,
    floats: Callable[[Tensor], RealSummary] = summarize_floats,
    looked_into: Collection[str] | None = None,
) -> Known:
    """What analysis may know of a call, of the parameters that have values.

    Of float tensors only some are looked into: by default those whose elements decide where the mask holds. `summary`
    and `floats` let a caller remember those it has.
    """
    scalars = {param.name: _number(param, values) for param in variant.scalars}
    integers = {param.name: values.get(param.name) for param in variant.tensors if not param.dtype.is_float}
    names = floats_looked_into(variant.mask) if looked_into is None else looked_into
    reals = {name: values.get(name) for name in names}
    return Known(
        {name: number for name, number in scalars.items() if number is not None},
        {name: summary(tensor) for name, tensor in integers.items() if isinstance(tensor, Tensor)},
        {name: floats(tensor) for name, tensor in reals.items() if isinstance(tensor, Tensor)},
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

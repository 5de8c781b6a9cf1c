"""The mathematics of variants as Python functions: on symbols while a function is traced, on numbers and tensors else.

In: symbols, numbers, tensors. Out: the same kind of thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from attndsl.diagnostics import DiagnosticError, ProgramError, fail
from attndsl.frontend.symbols import Symbol, symbols_in
from attndsl.ir.types import Reduction

Number = Callable[[float], float]


def _function(
    name: str, tensor: Callable[[torch.Tensor], torch.Tensor], number: Number, doc: str
) -> Callable[..., Any]:
    def function(x: Any) -> Any:
        if isinstance(x, Symbol):
            return x.recorder.call(name, x)
        return tensor(x) if isinstance(x, torch.Tensor) else number(x)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


def _through_torch(tensor: Callable[[torch.Tensor], torch.Tensor]) -> Number:
    """A function of numbers that `math` lacks, or refuses at the ends where torch has a limit."""
    return lambda x: float(tensor(torch.tensor(float(x), dtype=torch.float64)))


def _elementwise(name: str, tensor: Callable[[torch.Tensor], torch.Tensor], doc: str) -> Callable[..., Any]:
    return _function(name, tensor, _through_torch(tensor), doc)


exp = _elementwise("exp", torch.exp, "e to the x.")
exp2 = _elementwise("exp2", torch.exp2, "2 to the x.")
log = _elementwise("log", torch.log, "The natural logarithm.")
log2 = _elementwise("log2", torch.log2, "The logarithm to base 2.")
sqrt = _elementwise("sqrt", torch.sqrt, "The square root.")
rsqrt = _elementwise("rsqrt", torch.rsqrt, "One over the square root.")
sin = _elementwise("sin", torch.sin, "The sine of an angle in radians.")
cos = _elementwise("cos", torch.cos, "The cosine of an angle in radians.")
tan = _elementwise("tan", torch.tan, "The tangent of an angle in radians.")
tanh = _elementwise("tanh", torch.tanh, "The hyperbolic tangent.")
sigmoid = _elementwise("sigmoid", torch.sigmoid, "1 / (1 + exp(-x)).")
silu = _elementwise("silu", torch.nn.functional.silu, "x times its sigmoid.")
gelu = _elementwise("gelu", torch.nn.functional.gelu, "x times the normal distribution's share below x.")
erf = _elementwise("erf", torch.erf, "The error function.")
floor = _elementwise("floor", torch.floor, "The largest whole number not above x, as a float.")
ceil = _elementwise("ceil", torch.ceil, "The smallest whole number not below x, as a float.")
round = _elementwise("round", torch.round, "The nearest whole number as a float, halves to even.")
abs = _function("abs", torch.abs, math.fabs, "The distance from zero.")


def bit_length(x: Any) -> Any:
    """How many bits an integer takes, without its sign; 0 for 0."""
    if isinstance(x, Symbol):
        return x.recorder.call("bit_length", x)
    if isinstance(x, torch.Tensor):
        shifts = torch.arange(63, device=x.device)
        return ((x.long().abs().unsqueeze(-1) >> shifts) != 0).sum(-1)
    return int(x).bit_length()


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds, else `no`; gradients flow only through the branch taken."""
    symbol = next(symbols_in((condition, yes, no)), None)
    if symbol is not None:
        return symbol.recorder.call("where", condition, yes, no)
    if any(isinstance(value, torch.Tensor) for value in (condition, yes, no)):
        return torch.where(torch.as_tensor(condition), yes, no)
    return yes if condition else no


def minimum(first: Any, *rest: Any) -> Any:
    """The smallest of the values; NaN if any is NaN."""
    return _extreme("min", torch.minimum, min, (first, *rest))


def maximum(first: Any, *rest: Any) -> Any:
    """The largest of the values; NaN if any is NaN."""
    return _extreme("max", torch.maximum, max, (first, *rest))


def clamp(x: Any, low: Any, high: Any) -> Any:
    """x, but not below `low` and not above `high`."""
    symbol = next(symbols_in((x, low, high)), None)
    if symbol is not None:
        return symbol.recorder.call("clamp", x, low, high)
    return minimum(maximum(x, low), high)


def row_max(x: Any) -> Symbol:
    """The largest value of a row, over the keys its query sees. Only in a normalizer."""
    return _row(Reduction.MAX, x)


def row_sum(x: Any) -> Symbol:
    """The sum over a row, over the keys its query sees. Only in a normalizer."""
    return _row(Reduction.SUM, x)


def row_solve(body: Callable[[Any], Any], *, total: Any, lower: Any, upper: Any) -> Symbol:
    """The least t at which the sum of `body(t)` over a row, over the keys its query sees, is at most `total`.

    `body` is a function of t (and of `score`, coordinates and captured tensors) that never rises with t. t is looked
    for from `lower` to `upper`, and is `upper` where no less will do. With `m = ad.row_max(score)`, sparsemax's
    threshold is `ad.row_solve(lambda t: ad.maximum(score - t, 0.0), total=1.0, lower=m - 1.0, upper=m)`.
    Its gradient is that of the equation it solves; the ends have none. Only in a normalizer.
    """
    held = [cell.cell_contents for cell in getattr(body, "__closure__", None) or ()]
    symbol = next(symbols_in((total, lower, upper, held)), None)
    if symbol is not None:
        return symbol.recorder.row_solve(body, total, lower, upper)
    raise _outside_a_row("row_solve", "numbers alone")


def _row(reduction: Reduction, x: Any) -> Symbol:
    if isinstance(x, Symbol):
        return x.recorder.row(reduction.value, x)
    raise _outside_a_row(reduction.value, type(x).__name__)


def _outside_a_row(name: str, got: str) -> DiagnosticError:
    help_ = "use it in a function under `@ad.normalizer`, on `score` or what is computed from it"
    return fail(ProgramError, "wrong-stage", f"`{name}` is a statistic of a row of scores, got {got}", help=help_)


def _extreme(
    name: str,
    tensor: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    number: Callable[[Any, Any], Any],
    values: tuple[Any, ...],
) -> Any:
    symbol = next(symbols_in(values), None)
    if symbol is not None:
        return symbol.recorder.call(name, *values) if len(values) > 1 else values[0]
    model = next((value for value in values if isinstance(value, torch.Tensor)), None)
    if model is not None:
        tensors = [torch.as_tensor(value, device=model.device) for value in values]
        return reduce(tensor, tensors)
    nan = next((value for value in values if value != value), None)
    return nan if nan is not None else reduce(number, values)

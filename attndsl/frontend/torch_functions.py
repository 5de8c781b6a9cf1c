"""What torch's functions and Tensor's methods mean on symbols.

In: a function's name and arguments as torch takes them. Out: operations of a `Recorder`. One table; both spellings of
a function (`torch.tanh(x)`, `x.tanh()`) share its row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attndsl.frontend.symbols import Recorder, Symbol
from attndsl.ir.ops import CALLS

Meaning = Callable[..., Any]


def _unary(name: str) -> Meaning:
    return lambda recorder, x: recorder.call(name, x)


def _infix(symbol: str) -> Meaning:
    return lambda recorder, left, right: recorder.infix(symbol, left, right)


def _reflected(symbol: str) -> Meaning:
    return lambda recorder, right, left: recorder.infix(symbol, left, right)


def _logical(symbol: str) -> Meaning:
    return lambda recorder, left, right: recorder.infix(
        symbol, recorder.call("bool", left), recorder.call("bool", right)
    )


def _activation(name: str) -> Meaning:
    def meaning(recorder: Recorder, x: Any, inplace: bool = False) -> Symbol:
        return recorder.call(name, x)

    return meaning


def _add(recorder: Recorder, left: Any, right: Any, alpha: Any = 1) -> Any:
    return recorder.infix("+", left, right if _is_one(alpha) else recorder.infix("*", alpha, right))


def _sub(recorder: Recorder, left: Any, right: Any, alpha: Any = 1) -> Any:
    return recorder.infix("-", left, right if _is_one(alpha) else recorder.infix("*", alpha, right))


def _is_one(alpha: Any) -> bool:
    return isinstance(alpha, int) and alpha == 1


def _rsub(recorder: Recorder, right: Any, left: Any, alpha: Any = 1) -> Any:
    return _sub(recorder, left, right, alpha)


def _div(recorder: Recorder, left: Any, right: Any, rounding_mode: str | None = None) -> Any:
    match rounding_mode:
        case None:
            return recorder.infix("/", left, right)
        case "floor":
            return recorder.infix("//", left, right)
        case _:
            return _quotient(recorder, left, right)


def _quotient(recorder: Recorder, left: Any, right: Any) -> Any:
    """Division rounded towards zero: on integers the floor, one more where that went below a fraction."""
    floor = recorder.infix("//", left, right)
    inexact = recorder.infix("!=", recorder.infix("*", floor, right), left)
    raised = recorder.infix("&", recorder.infix("<", floor, 0), inexact)
    return recorder.call("where", raised, recorder.infix("+", floor, 1), floor)


def _fmod(recorder: Recorder, left: Any, right: Any) -> Any:
    return recorder.infix("-", left, recorder.infix("*", _quotient(recorder, left, right), right))


def _where(recorder: Recorder, condition: Any, yes: Any, no: Any) -> Symbol:
    return recorder.call("where", condition, yes, no)


def _tensor_where(recorder: Recorder, yes: Any, condition: Any, no: Any) -> Symbol:
    """The method: `x.where(condition, y)` is x where the condition holds."""
    return recorder.call("where", condition, yes, no)


def _masked_fill(recorder: Recorder, x: Any, mask: Any, value: Any) -> Symbol:
    return recorder.call("where", mask, value, x)


def _clamp(recorder: Recorder, x: Any, min: Any = None, max: Any = None) -> Any:
    if min is not None:
        x = recorder.call("max", x, min)
    if max is not None:
        x = recorder.call("min", x, max)
    return x


def _gelu(recorder: Recorder, x: Any, approximate: str = "none") -> Any:
    if approximate == "none":
        return recorder.call("gelu", x)
    cube = recorder.infix("*", recorder.infix("*", x, x), x)
    inner = recorder.infix("*", 0.7978845608028654, recorder.infix("+", x, recorder.infix("*", 0.044715, cube)))
    gate = recorder.infix("+", 1.0, recorder.call("tanh", inner))
    return recorder.infix("*", recorder.infix("*", 0.5, x), gate)


def _softplus(recorder: Recorder, x: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    """log(1 + exp(beta x)) / beta in the form that does not overflow, which needs no threshold."""
    scaled = x if _is_one(beta) else recorder.infix("*", beta, x)
    decay = recorder.call("exp", recorder.prefix("-", recorder.call("abs", scaled)))
    soft = recorder.infix("+", recorder.call("max", scaled, 0.0), _log1p(recorder, decay))
    return soft if _is_one(beta) else recorder.infix("/", soft, beta)


def _log1p(recorder: Recorder, x: Any) -> Symbol:
    return recorder.call("log", recorder.infix("+", 1.0, x))


def _relu(recorder: Recorder, x: Any, inplace: bool = False) -> Symbol:
    return recorder.call("max", x, 0)


def _square(recorder: Recorder, x: Any) -> Any:
    return recorder.infix("*", x, x)


def _reciprocal(recorder: Recorder, x: Any) -> Any:
    return recorder.infix("/", 1.0, x)


def _isnan(recorder: Recorder, x: Any) -> Any:
    return recorder.infix("!=", x, x)


def _isinf(recorder: Recorder, x: Any) -> Any:
    return recorder.infix("==", recorder.call("abs", x), float("inf"))


def _isneginf(recorder: Recorder, x: Any) -> Any:
    return recorder.infix("==", x, float("-inf"))


def _trunc(recorder: Recorder, x: Any) -> Symbol:
    below = recorder.infix("<", x, 0)
    return recorder.call("where", below, recorder.call("ceil", x), recorder.call("floor", x))


def _sign(recorder: Recorder, x: Any) -> Symbol:
    above, below = recorder.infix(">", x, 0), recorder.infix("<", x, 0)
    return recorder.call("where", above, 1, recorder.call("where", below, -1, 0))


def _cast(name: str) -> Meaning:
    """A cast to a kind. Floats are computed in float32 whatever their width: a cast to half does not round."""

    def meaning(recorder: Recorder, x: Any, *args: Any, **kwargs: Any) -> Symbol:
        return recorder.call(name, x)

    return meaning


def _to(recorder: Recorder, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A dtype is a cast to its kind; devices and the rest mean nothing to a value that has no storage."""
    wanted = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype | torch.Tensor | Symbol)]
    if not wanted:
        return x
    dtype = wanted[0] if isinstance(wanted[0], torch.dtype) else wanted[0].dtype
    if dtype is torch.bool:
        return recorder.call("bool", x)
    return recorder.call("float" if dtype.is_floating_point else "int", x)


def _same(recorder: Recorder, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


def _filled(value: float) -> Meaning:
    def meaning(
        recorder: Recorder, x: Any, size: Any = (), *sizes: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        _check_size(size)
        return _typed(value, x.dtype if dtype is None else dtype)

    return meaning


def _check_size(size: Any) -> None:
    if size not in ((), []):
        raise TypeError("only values of one element, of size (), can be made from a symbol")


def _full(
    recorder: Recorder, x: Any, size: Any = (), fill_value: Any = 0, dtype: torch.dtype | None = None, **kwargs: Any
) -> Any:
    _check_size(size)
    dtype = x.dtype if dtype is None else dtype
    return _to(recorder, fill_value, dtype) if isinstance(fill_value, Symbol) else _typed(fill_value, dtype)


def _full_like(recorder: Recorder, x: Any, fill_value: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    return _full(recorder, x, (), fill_value, dtype)


def _typed(value: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((), value, dtype=dtype)


TORCH: dict[str, Meaning] = {
    **{name: _unary(name) for name in CALLS if name not in ("where", "min", "max", "bool", "int", "float", "gelu")},
    **{
        name: _infix(symbol)
        for symbol, names in {
            "*": ("mul", "multiply", "__mul__", "__rmul__"),
            "//": ("floor_divide", "__floordiv__"),
            "%": ("remainder", "__mod__"),
            "**": ("pow", "float_power", "__pow__"),
            "<": ("lt", "less", "__lt__"),
            "<=": ("le", "less_equal", "__le__"),
            ">": ("gt", "greater", "__gt__"),
            ">=": ("ge", "greater_equal", "__ge__"),
            "==": ("eq", "__eq__"),
            "!=": ("ne", "not_equal", "__ne__"),
            "&": ("bitwise_and", "__and__"),
            "|": ("bitwise_or", "__or__"),
            "^": ("bitwise_xor", "__xor__"),
            "<<": ("bitwise_left_shift", "__lshift__"),
            ">>": ("bitwise_right_shift", "__rshift__"),
        }.items()
        for name in names
    },
    **{
        f"__r{name}__": _reflected(symbol)
        for name, symbol in {
            "sub": "-",
            "truediv": "/",
            "div": "/",
            "floordiv": "//",
            "mod": "%",
            "pow": "**",
            "lshift": "<<",
            "rshift": ">>",
            "and": "&",
            "or": "|",
            "xor": "^",
        }.items()
    },
    **dict.fromkeys(("add", "__add__", "__radd__"), _add),
    **dict.fromkeys(("sub", "subtract", "__sub__"), _sub),
    "rsub": _rsub,
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__"), _div),
    "fmod": _fmod,
    "logical_and": _logical("and"),
    "logical_or": _logical("or"),
    "logical_xor": _logical("^"),
    "logical_not": lambda recorder, x: recorder.prefix("not", recorder.call("bool", x)),
    **{name: (lambda recorder, x: recorder.prefix("~", x)) for name in ("bitwise_not", "__invert__")},
    **{name: (lambda recorder, x: recorder.prefix("-", x)) for name in ("neg", "negative")},
    "positive": lambda recorder, x: recorder.prefix("+", x),
    **{
        name: _unary(like)
        for name, like in {
            "absolute": "abs",
            "__abs__": "abs",
            "special_expit": "sigmoid",
            "expit": "sigmoid",
            "special_erf": "erf",
            "special_exp2": "exp2",
            "special_round": "round",
        }.items()
    },
    **{name: (lambda recorder, *values: recorder.call("min", *values)) for name in ("minimum", "min")},
    **{name: (lambda recorder, *values: recorder.call("max", *values)) for name in ("maximum", "max")},
    "where": _where,
    "Tensor.where": _tensor_where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "clamp_min": lambda recorder, x, min: recorder.call("max", x, min),
    "clamp_max": lambda recorder, x, max: recorder.call("min", x, max),
    **{name: _activation(name) for name in ("sigmoid", "tanh", "silu")},
    "gelu": _gelu,
    "softplus": _softplus,
    "relu": _relu,
    "log1p": _log1p,
    "square": _square,
    "reciprocal": _reciprocal,
    "isnan": _isnan,
    "isinf": _isinf,
    "isneginf": _isneginf,
    "sign": _sign,
    **dict.fromkeys(("trunc", "fix"), _trunc),
    "bool": _cast("bool"),
    **{name: _cast("int") for name in ("int", "long", "short")},
    **{name: _cast("float") for name in ("float", "double", "half", "bfloat16")},
    **dict.fromkeys(("to", "type", "type_as"), _to),
    **dict.fromkeys(("clone", "contiguous", "cuda", "cpu", "squeeze"), _same),
    **{name: _filled(1) for name in ("new_ones", "ones_like")},
    **{name: _filled(0) for name in ("new_zeros", "zeros_like")},
    "new_full": _full,
    "full_like": _full_like,
    "new_tensor": lambda recorder, x, value, dtype=None, **kwargs: torch.tensor(value, dtype=dtype),
    **{name: (lambda recorder, x: x.shape) for name in ("size",)},
    **{name: (lambda recorder, x: x.ndim) for name in ("dim", "ndimension")},
    "numel": lambda recorder, x: x.shape.numel(),
}
"""By the name torch gives the function it dispatches."""

"""torch's functions inside a variant.

In: a function as torch dispatches it, called with symbols or with captured tensors alone. Out: what it means on symbols
(`torch_functions`), or a recipe that computes a captured tensor from others at every call; an error for what reads
values, writes, or has no meaning for one pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from attndsl.frontend.captures import tensors_in
from attndsl.frontend.dispatch import METADATA, PLACES, SIZES, is_in_place
from attndsl.frontend.operands import Operands
from attndsl.frontend.run import Run
from attndsl.frontend.symbols import symbols_in
from attndsl.frontend.torch_functions import TORCH


class Tensors:
    """The torch functions of one run."""

    def __init__(self, run: Run, operands: Operands) -> None:
        self._run = run
        self._operands = operands

    def on_symbols(self, key: str, title: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A function with a symbol among its arguments; `title` is what errors call it."""
        if is_in_place(key, kwargs):
            self._stop_in_place(title)
        reason = "it has no meaning for one pair of a query and a key"
        if key in TORCH:
            try:
                result = self._run.captures.made(TORCH[key](self._run.recorder, *args, **kwargs))
            except TypeError:
                result = NotImplemented
            if result is not NotImplemented:
                return result
            reason = "these arguments mean nothing for one pair of a query and a key"
        self._run.fix([self._operands.expression(symbol) for symbol in symbols_in((args, kwargs))])
        help_ = "use elementwise functions, `ad.row_max` and `ad.row_sum` in normalizers, or index a table"
        message = f"`{title}` cannot be traced with these arguments"
        return self._run.stop("torch-function", message, self._run.span(), reason, help=help_)

    def on_tensors(self, name: str, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A function of tensors alone, which is run; what it computes of captured tensors is computed at every call."""
        run, tensors = self._run, list(tensors_in((args, kwargs)))
        captured = [tensor for tensor in tensors if not run.captures.made_inside(tensor)]
        if name in METADATA:
            return function(*args, **kwargs)
        without_value = run.captures.open_among(captured)
        if without_value is not None:
            what = "an index from the end, or a slice," if name == "__getitem__" else f"`{name}`"
            run.stop_open(what, without_value)
        if name in SIZES:
            for tensor in captured:
                run.captures.reads_shape(run.captured(tensor))
            return function(*args, **kwargs)
        if not captured:
            return run.captures.made(function(*args, **kwargs) if args or kwargs else function())
        if is_in_place(name, kwargs):
            self._stop_in_place(name)
        if name in PLACES and len(args) == 1 and not kwargs:
            return args[0]  # `.to(score.device)`: every symbol is wherever the call runs
        with torch.no_grad():
            result = function(*args, **kwargs)
        if next(tensors_in(result), None) is None:
            self._stop_reading(name, captured[0])
        return run.captures.derived(function, args, kwargs, result, run.name_of)

    def _stop_in_place(self, title: str) -> NoReturn:
        message = f"`{title}` writes to a tensor; a variant only reads"
        self._run.stop("in-place", message, self._run.span(), help="use the form that returns a new value")

    def _stop_reading(self, name: str, tensor: torch.Tensor) -> NoReturn:
        captured = self._run.captured(tensor)
        calls = {"__bool__": "if", "__int__": "int(...)", "__float__": "float(...)", "__index__": "an index"}
        what = calls.get(name, f".{name}()")
        message = f"`{what}` reads the values of `{captured.name}`, which may differ at each call"
        use = f"use `{captured.name}` as it is" if tensor.ndim == 0 else f"index it: `{captured.name}[h]`"
        help_ = f"{use}; or read the number outside of the variant and pass it as a parameter"
        self._run.stop("tensor-value", message, self._run.span(), help=help_)

"""What kind of thing a torch function does, by its name: reads metadata, reads sizes, writes, or computes.

In: functions and arguments as torch dispatches them. Out: facts for `recorder`, which decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from attndsl.frontend.symbols import ANYWHERE, Recorder

METADATA = frozenset(
    {
        *("dtype", "device", "layout", "ndim", "dim", "ndimension", "names", "itemsize", "element_size"),
        *("requires_grad", "is_leaf", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_nested", "is_quantized"),
        *("is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_inference", "get_device"),
        *("data_ptr", "_version", "__repr__", "__format__", "__hash__"),
    }
)
"""What bound values of the same kind and rank share, or what decides nothing."""

SIZES = frozenset({"shape", "size", "numel", "nelement", "stride", "__len__", "nbytes"})

PLACES = frozenset({"to", "cuda", "cpu"})


class TensorMode(TorchFunctionMode):
    """Shows a trace every torch function its mods call, also those on tensors alone."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._recorder.torch_function(func, args, kwargs or {})


def name_of_function(function: Any) -> str:
    """The name torch gives a function; of a getter, the attribute's."""
    name = str(getattr(function, "__name__", ""))
    if name == "__get__":
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    return name


def is_in_place(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function writes to its arguments."""
    if kwargs.get("out") is not None or kwargs.get("inplace"):
        return True
    if name.startswith("__"):
        return name in ("__setitem__", "__set__") or (
            name.startswith("__i") and name not in ("__index__", "__int__", "__invert__", "__iter__")
        )
    return name.endswith("_")


def without_place(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments without the device that symbols claim."""
    return (
        tuple(arg for arg in args if not _is_anywhere(arg)),
        {name: value for name, value in kwargs.items() if not _is_anywhere(value)},
    )


def _is_anywhere(value: Any) -> bool:
    return isinstance(value, torch.device) and value == ANYWHERE

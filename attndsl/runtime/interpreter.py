"""Running kernels on CPU tensors through Triton's interpreter."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from attndsl.diagnostics import UnsupportedError, fail


def is_interpreting() -> bool:
    """Whether `TRITON_INTERPRET=1` is set; refused where triton was imported before it was."""
    if "triton" not in sys.modules and os.environ.get("TRITON_INTERPRET", "") in ("", "0"):
        return False  # triton takes its time to import, and CPU kernels do without
    import triton
    import triton.language as tl

    asked = bool(triton.knobs.runtime.interpret)
    # Triton's own functions became compiled or interpreted ones when it was imported.
    if asked and isinstance(tl.max, triton.JITFunction):
        raise fail(
            UnsupportedError,
            "interpreter-too-late",
            "TRITON_INTERPRET was set after triton was imported, which is when triton decides",
            help="set it before anything imports triton (transformers does), or in the shell",
        )
    return asked


@contextmanager
def silent_arithmetic() -> Iterator[None]:
    """A context in which infinities and NaN arise without a warning, as they do on a GPU."""
    with warnings.catch_warnings():
        # Not `numpy.errstate`: the maximum of a row of NaN warns whatever that says.
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@cache
def mend_interpreter() -> None:
    """Make the interpreter compute what a GPU would, where it does not."""
    from triton.runtime import interpreter

    _multiply_bfloat16_by_value(interpreter)
    _spread_truth_values(interpreter)


def _multiply_bfloat16_by_value(interpreter: Any) -> None:
    """It keeps bfloat16 as raw 16-bit integers and would multiply those; widening to float32 is exact."""
    import numpy as np
    import triton.language as tl

    original = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar is not tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _spread_truth_values(interpreter: Any) -> None:
    """It gives a comparison the type of what is compared, and would spread one of floats as floats."""
    import numpy as np
    import triton.language as tl

    original = interpreter.InterpreterBuilder.create_splat

    def create_splat(self: Any, shape: Any, value: Any) -> Any:
        if value.data.dtype == np.bool_:
            value = interpreter.TensorHandle(value.data, tl.int1)
        return original(self, shape, value)

    interpreter.InterpreterBuilder.create_splat = create_splat

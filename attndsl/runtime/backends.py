"""Which backend takes a call, and every reason why kernels cannot.

In: the `backend` a user named and the checked call. Out: the `Backend` to run, or one error that lists all reasons.
Nothing falls back: "auto" looks at the device alone, and what that backend cannot do is refused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch

from attndsl.diagnostics import CallError, Reporter, UnsupportedError, fail
from attndsl.runtime.arguments import Call
from attndsl.runtime.interpreter import is_interpreting
from attndsl.runtime.launch import DTYPES, MAX_HEAD_DIM

USE_REFERENCE = 'use `backend="reference"`'


class Backend(StrEnum):
    AUTO = "auto"
    TRITON = "triton"
    CPU = "cpu"
    REFERENCE = "reference"


def backend_named(name: Any) -> Backend:
    """The backend a user asked for."""
    if name == Backend.CPU:
        message, help_ = (
            "there are no native CPU kernels yet",
            f'{USE_REFERENCE}, or "auto", which takes it for CPU tensors',
        )
        raise fail(UnsupportedError, "no-cpu-kernels", message, None, help=help_)
    if name not in tuple(Backend):
        known = ", ".join(f'"{backend}"' for backend in Backend)
        raise fail(CallError, "unknown-backend", f"there is no backend {name!r}", None, help=f"use one of {known}")
    return Backend(name)


def chosen(backend: Backend, call: Call) -> Backend:
    """The backend that runs a call: what "auto" stands for, and whether kernels can take it."""
    if backend is Backend.AUTO:
        takes_kernels = call.q.device.type == "cuda" or is_interpreting()
        backend = Backend.TRITON if takes_kernels else Backend.REFERENCE
    if backend is Backend.TRITON:
        _check_kernels_can(call)
    return backend


def check_kernel_shape(dtype: torch.dtype, head_dim: Any, v_head_dim: Any) -> None:
    """Whether there are kernels for these elements and head dimensions at all."""
    reporter = Reporter(UnsupportedError)
    _report_shape(reporter, dtype, head_dim, v_head_dim, None)
    reporter.check()


def _check_kernels_can(call: Call) -> None:
    reporter = Reporter(UnsupportedError)
    # A value without elements is served by a kernel for one: it has no columns to compute.
    _report_shape(reporter, call.q.dtype, call.head_dim, max(call.v_head_dim, 1), USE_REFERENCE)
    if call.q.device.type != "cuda" and not is_interpreting():
        message = f"Triton kernels run on GPU tensors, got tensors on {call.q.device}"
        interpreter = "set TRITON_INTERPRET=1 before triton is imported to interpret kernels on the CPU"
        reporter.error("kernel-device", message, None, help=f"{USE_REFERENCE}, or {interpreter}")
    reporter.check()


def _report_shape(reporter: Reporter, dtype: torch.dtype, head_dim: Any, v_head_dim: Any, help_: str | None) -> None:
    if dtype not in DTYPES:
        known = ", ".join(str(known) for known in DTYPES)
        reporter.error("kernel-dtype", f"kernels take {known}, got {dtype}", help=help_)
    if not all(isinstance(size, int) and 1 <= size <= MAX_HEAD_DIM for size in (head_dim, v_head_dim)):
        message = f"kernels take head dims from 1 to {MAX_HEAD_DIM}, got {head_dim} for q and k, {v_head_dim} for v"
        reporter.error("kernel-head-dim", message, help=help_)

"""Which backend takes a call, and every reason why kernels cannot.

In: the `backend` a user named and the checked call. Out: the `Backend` to run, or one error that lists all reasons.
Nothing falls back: "auto" looks at the device alone, and what that backend cannot do is refused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch

from attndsl.codegen.plan import Target
from attndsl.diagnostics import CallError, Reporter, UnsupportedError, fail
from attndsl.runtime import launch
from attndsl.runtime.arguments import Call
from attndsl.runtime.interpreter import is_interpreting
from attndsl.runtime.launch import MAX_HEAD_DIM
from attndsl.runtime.native import launch as native

DTYPES = {Target.TRITON: launch.DTYPES, Target.CPP: native.DTYPES}
USE_REFERENCE = 'use `backend="reference"`'


class Backend(StrEnum):
    AUTO = "auto"
    TRITON = "triton"
    CPU = "cpu"
    REFERENCE = "reference"


TARGETS = {Backend.TRITON: Target.TRITON, Backend.CPU: Target.CPP}
"""The language of a backend's kernels; the reference has none."""


def backend_named(name: Any) -> Backend:
    """The backend a user asked for."""
    if name not in tuple(Backend):
        known = ", ".join(f'"{backend}"' for backend in Backend)
        raise fail(CallError, "unknown-backend", f"there is no backend {name!r}", None, help=f"use one of {known}")
    return Backend(name)


def target_named(name: Any) -> Target:
    """The language a user asked for, by its own name or by that of the backend whose kernels are written in it."""
    named = {**{target.value: target for target in Target}, **{backend.value: of for backend, of in TARGETS.items()}}
    if name not in named:
        known = " or ".join(f'`target="{target.value}"`' for target in Target)
        message = f"there is no target {name!r} to emit source for"
        raise fail(UnsupportedError, "unknown-target", message, None, help=f"use {known}")
    return named[name]


def chosen(backend: Backend, call: Call) -> Backend:
    """The backend that runs a call: what "auto" stands for, and whether kernels can take it."""
    if backend is Backend.AUTO:
        backend = _automatic(call)
    if backend is not Backend.REFERENCE:
        _check_kernels_can(backend, call)
    return backend


def _automatic(call: Call) -> Backend:
    """What "auto" stands for: kernels where there are some for the device."""
    if call.q.device.type == "cuda" or is_interpreting():
        return Backend.TRITON
    if call.q.device.type == "cpu":
        return Backend.CPU
    return Backend.REFERENCE


def check_kernel_shape(dtype: torch.dtype, head_dim: Any, v_head_dim: Any, target: Target = Target.TRITON) -> None:
    """Whether there are kernels for these elements and head dimensions at all."""
    reporter = Reporter(UnsupportedError)
    _report_shape(reporter, target, dtype, head_dim, v_head_dim, None)
    reporter.check()


def _check_kernels_can(backend: Backend, call: Call) -> None:
    reporter = Reporter(UnsupportedError)
    # A value without elements is served by a kernel for one: it has no columns to compute.
    _report_shape(reporter, TARGETS[backend], call.q.dtype, call.head_dim, max(call.v_head_dim, 1), USE_REFERENCE)
    device = call.q.device
    if backend is Backend.TRITON and device.type != "cuda" and not is_interpreting():
        message = f"Triton kernels run on GPU tensors, got tensors on {device}"
        interpreter = "set TRITON_INTERPRET=1 before triton is imported to interpret kernels on the CPU"
        reporter.error("kernel-device", message, None, help=f'use `backend="cpu"` or "reference", or {interpreter}')
    if backend is Backend.CPU and device.type != "cpu":
        message = f"native kernels run on CPU tensors, got tensors on {device}"
        reporter.error("kernel-device", message, None, help='use `backend="auto"`, which goes by the device')
    reporter.check()


def _report_shape(
    reporter: Reporter, target: Target, dtype: torch.dtype, head_dim: Any, v_head_dim: Any, help_: str | None
) -> None:
    dtypes = DTYPES[target]
    if dtype not in dtypes:
        known = ", ".join(str(known) for known in dtypes)
        reporter.error("kernel-dtype", f"kernels take {known}, got {dtype}", help=help_)
    if not all(isinstance(size, int) and 1 <= size <= MAX_HEAD_DIM for size in (head_dim, v_head_dim)):
        message = f"kernels take head dims from 1 to {MAX_HEAD_DIM}, got {head_dim} for q and k, {v_head_dim} for v"
        reporter.error("kernel-head-dim", message, help=_narrower(head_dim, v_head_dim) or help_)


def _narrower(head_dim: Any, v_head_dim: Any) -> str | None:
    """What to do about values that are too wide, where q and k are not."""
    if not (isinstance(head_dim, int) and 1 <= head_dim <= MAX_HEAD_DIM and isinstance(v_head_dim, int)):
        return None
    parts = f"torch.cat([attn(q, k, part) for part in v.split({MAX_HEAD_DIM}, -1)], -1)"
    return f"weights are the same for every column of v: `{parts}`" if v_head_dim > MAX_HEAD_DIM else None

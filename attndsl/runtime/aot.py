"""Ahead-of-time compilation of emitted kernels, with no GPU at hand: registers, spills, memory, instructions.

In: plans and their texts, and a target. Out: a `CompileReport`; of GPUs for the tile shapes the launcher uses by
default and for arguments as launches of ordinary tensors have them (contiguous rows, 16-byte aligned).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from attndsl.codegen.plan import Emitted, KernelPlan
from attndsl.codegen.triton_signature import stride_names
from attndsl.diagnostics import UnsupportedError, fail
from attndsl.ir.types import DType
from attndsl.ir.variant import TensorParam
from attndsl.runtime.assemble import Job, assemble, assemble_elsewhere
from attndsl.runtime.interpreter import is_interpreting
from attndsl.runtime.native import report as native
from attndsl.runtime.reports import CompileReport, KernelReport
from attndsl.runtime.tiles import default_tile, family_of

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942", "cpu")
_POINTEES = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16"}
_CAPTURES = {DType.F32: "*fp32", DType.I64: "*i64", DType.BOOL: "*i1"}


def check_target(target: str) -> None:
    """Whether kernels can be compiled for a target."""
    listed = ", ".join(f'"{known}"' for known in TARGETS)
    if target not in TARGETS:
        message = f"there is no target {target!r} to compile for"
        raise fail(UnsupportedError, "unknown-target", message, None, help=f"use one of {listed}")


def compile_for(emitted: Mapping[str, Emitted], target: str) -> CompileReport:
    """Compile kernels, by name, for one of `TARGETS`."""
    if target == "cpu":
        return CompileReport(target, [native.report(name, kernel) for name, kernel in emitted.items()])
    backend, _, arch = target.partition(":")
    return CompileReport(target, [_report(name, kernel, backend, arch) for name, kernel in emitted.items()])


def _report(name: str, emitted: Emitted, backend: str, arch: str) -> KernelReport:
    family = family_of(backend, int(arch) if backend == "cuda" else 0)
    tile = default_tile(family, emitted.plan)
    args = _arguments(emitted.text, name)
    signature = _signature(args, emitted.plan)
    aligned = {stride for tensor in emitted.plan.tensors for stride in stride_names(tensor)[:-1]}
    job = Job(
        name,
        emitted.text,
        backend,
        arch,
        signature,
        {**dict.fromkeys(unit_strides(emitted.plan), 1), "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n},
        [arg for arg in args if signature[arg].startswith("*") or arg in aligned],
        tile.num_warps,
        tile.num_stages,
    )
    done = assemble_elsewhere(job) if is_interpreting() else assemble(job)
    return KernelReport(
        name, done.registers, done.spilled_bytes, done.shared_bytes, done.instructions, done.assembly, tile
    )


def _arguments(text: str, name: str) -> list[str]:
    """The arguments of a kernel of a module text."""
    functions = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return next([arg.arg for arg in node.args.args] for node in functions if node.name == name)


def _signature(args: list[str], plan: KernelPlan) -> dict[str, str]:
    """The types a launch would pass: pointers, 32-bit lengths and strides, float scalars."""
    captures = {plan.symbols[param.name]: param for param in plan.params}
    unit = unit_strides(plan)
    signature: dict[str, str] = {}
    for arg in args:
        param = captures.get(arg)
        if arg == "Out" and plan.spec.split:
            signature[arg] = "*fp32"
        elif arg in plan.tensors:
            signature[arg] = _POINTEES[plan.spec.dtype]
        elif arg in plan.row_pointers:
            signature[arg] = "*fp32"
        elif arg in ("Table", "Table_rows", "Pages", "Kv_lens"):
            signature[arg] = "*i32"
        elif arg == "Q_offset":
            signature[arg] = "*i64"
        elif arg in ("BLOCK_M", "BLOCK_N", *unit):
            signature[arg] = "constexpr"
        elif isinstance(param, TensorParam):
            signature[arg] = _CAPTURES[param.dtype]
        elif arg == "sm_scale" or (param is not None and param.dtype.is_float):
            signature[arg] = "fp32"
        else:
            signature[arg] = "i32"
    return signature


def unit_strides(plan: KernelPlan) -> tuple[str, ...]:
    """The strides along the head dimension, which are 1 in ordinary tensors."""
    return tuple(stride_names(tensor)[-1] for tensor in plan.tensors)

"""Ahead-of-time compilation of emitted kernels, with no GPU: what the assembler says of registers, spills and memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attndsl.codegen.plan import Emitted, KernelPlan, padded
from attndsl.diagnostics import UnsupportedError, fail
from attndsl.ir.types import DType
from attndsl.ir.variant import TensorParam
from attndsl.runtime.store import load_module
from attndsl.runtime.tiles import TileShape, default_tile, family_of

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")
_POINTEES = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16"}
_CAPTURES = {DType.F32: "*fp32", DType.I64: "*i64", DType.BOOL: "*i1"}
_STRIDE = re.compile(r"stride_[qkvo][bhmnd]")


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One compiled kernel. Counts are per thread (registers, spills) or per program (shared memory), in bytes."""

    name: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: Mapping[str, int]
    assembly: str
    tile: TileShape


@dataclass(frozen=True, slots=True)
class CompileReport:
    """Every kernel of a variant for one target."""

    target: str
    kernels: tuple[KernelReport, ...]

    def __str__(self) -> str:
        rows = [f"{self.target}"]
        for kernel in self.kernels:
            rows.append(
                f"  {kernel.name}: {kernel.registers} registers, {kernel.spilled_bytes} bytes spilled, "
                f"{kernel.shared_bytes} bytes of shared memory, {sum(kernel.instructions.values())} instructions"
            )
        return "\n".join(rows)


def compile_for(emitted: Mapping[str, Emitted], target: str) -> CompileReport:
    """Compile kernels, by name, for a target of the form `cuda:90` or `hip:gfx942`."""
    backend, _, arch = target.partition(":")
    is_known = target in TARGETS or re.fullmatch(r"cuda:\d{2,3}|hip:gfx[0-9a-f]+", target) is not None
    if not is_known:
        listed = ", ".join(f"`{known}`" for known in TARGETS)
        raise fail(UnsupportedError, "unknown-target", f"there is no target `{target}`", None, help=f"use {listed}")
    return CompileReport(target, tuple(_compile(name, kernel, backend, arch) for name, kernel in emitted.items()))


def _compile(name: str, emitted: Emitted, backend: str, arch: str) -> KernelReport:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    spec = emitted.plan.spec
    family = family_of(backend, int(arch) if backend == "cuda" else 0)
    tile = default_tile(family, spec.dtype, padded(max(spec.head_dim, spec.v_head_dim)))
    kernel = getattr(load_module(emitted.text, name, interpret=False), name)
    signature = _signature(kernel.arg_names, emitted.plan)
    source = ASTSource(
        kernel,
        signature,
        constexprs={**_unit_strides(kernel.arg_names), "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n},
        attrs=_aligned(kernel.arg_names, signature),
    )
    wave = 64 if backend == "hip" else 32
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(
        source, target=GPUTarget(backend, int(arch) if backend == "cuda" else arch, wave), options=options
    )
    shared = int(compiled.metadata.shared)
    if backend == "hip":
        return _hip_report(name, compiled.asm["amdgcn"], shared, tile)
    return _cuda_report(name, compiled.asm["ptx"], shared, tile, compiled.metadata, int(arch))


def _signature(args: list[str], plan: KernelPlan) -> dict[str, str]:
    """The types a launch would pass: half or float pointers, 32-bit lengths and strides, float scalars."""
    captures = {param.name: param for param in plan.params}
    signature: dict[str, str] = {}
    for arg in args:
        param = captures.get(arg)
        if arg in ("Q", "K", "V", "Out"):
            signature[arg] = _POINTEES[plan.spec.dtype]
        elif arg in ("Lse", "Max"):
            signature[arg] = "*fp32"
        elif arg == "Q_offset":
            signature[arg] = "*i64"
        elif arg in ("BLOCK_M", "BLOCK_N") or arg in _unit_strides(args):
            signature[arg] = "constexpr"
        elif isinstance(param, TensorParam):
            signature[arg] = _CAPTURES[param.dtype]
        elif arg == "sm_scale" or (param is not None and param.dtype.is_float):
            signature[arg] = "fp32"
        else:
            signature[arg] = "i32"
    return signature


def _unit_strides(args: list[str]) -> dict[str, int]:
    """Contiguous rows, as launches of ordinary tensors have: Triton takes a stride of 1 as a constant."""
    return {arg: 1 for arg in args if arg in ("stride_qd", "stride_kd", "stride_vd", "stride_od")}


def _aligned(args: list[str], signature: dict[str, str]) -> dict[Any, Any]:
    """Pointers and the strides of q, k, v and the output are multiples of 16, as in launches of ordinary tensors."""
    return {
        (position,): [["tt.divisibility", 16]]
        for position, arg in enumerate(args)
        if signature[arg].startswith("*") or (_STRIDE.fullmatch(arg) and signature[arg] != "constexpr")
    }


def _cuda_report(name: str, ptx: str, shared: int, tile: TileShape, metadata: Any, arch: int) -> KernelReport:
    log = _assemble(ptx, metadata, arch)
    registers = re.search(r"Used (\d+) registers", log)
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)]
    assert registers is not None, log
    return KernelReport(name, int(registers[1]), max(spills, default=0), shared, _ptx_counts(ptx), ptx, tile)


def _assemble(ptx: str, metadata: Any, arch: int) -> str:
    """What the bundled assembler reports of the kernel."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    tool = get_ptxas(arch).path
    gpu = sm_arch_from_capability(arch)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [tool, "-v", f"--gpu-name={gpu}", str(source), "-o", str(Path(folder) / "kernel.cubin")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def _ptx_counts(ptx: str) -> dict[str, int]:
    """Instructions by mnemonic, modifiers left out but for the families people look for (`wgmma`, `mma`, `cp`)."""
    found = re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*)(?:\.[\w:.]+)?\s[^:]*;", ptx, re.MULTILINE)
    return dict(Counter(found).most_common())


def _hip_report(name: str, assembly: str, shared: int, tile: TileShape) -> KernelReport:
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    spills = re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    found = re.findall(r"^\s+([a-z]+_[a-z0-9_]+)\s", assembly, re.MULTILINE)
    return KernelReport(
        name,
        int(registers[1]) if registers else 0,
        4 * int(spills[1]) if spills else 0,
        shared,
        dict(Counter(found).most_common()),
        assembly,
        tile,
    )

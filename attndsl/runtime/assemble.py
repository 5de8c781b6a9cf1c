"""One kernel through Triton's compiler and the bundled assembler, as data in and data out.

A process that interprets kernels cannot compile them (Triton decides when it is imported), so a `Job` can be sent to a
process of its own: `python -m attndsl.runtime.assemble` reads one as JSON and writes an `Assembled`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attndsl.runtime.store import load_module


@dataclass(frozen=True, slots=True)
class Job:
    """A kernel of a module text, the types of its arguments, and how to compile it."""

    name: str
    text: str
    backend: str
    arch: str
    signature: dict[str, str]
    constants: dict[str, int]
    aligned: list[str]
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """What came out: registers and spills are per thread, shared memory per program, sizes in bytes."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: dict[str, int]
    assembly: str


def assemble(job: Job) -> Assembled:
    """Compile here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(load_module(job.text, job.name, interpret=False), job.name)
    attributes: dict[Any, Any] = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in job.aligned}
    source = ASTSource(kernel, job.signature, constexprs=job.constants, attrs=attributes)
    is_hip = job.backend == "hip"
    target = GPUTarget(job.backend, job.arch if is_hip else int(job.arch), 64 if is_hip else 32)
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=target, options=options)
    shared = int(compiled.metadata.shared)
    return _hip(compiled.asm["amdgcn"], shared) if is_hip else _cuda(compiled.asm["ptx"], compiled.asm["cubin"], shared)


def assemble_elsewhere(job: Job) -> Assembled:
    """Compile in a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "attndsl.runtime.assemble"]
    run = subprocess.run(
        command, input=json.dumps(asdict(job)), capture_output=True, text=True, env=environment, check=False
    )
    if run.returncode:
        raise RuntimeError(f"compiling `{job.name}` for {job.backend}:{job.arch} failed:\n{run.stderr.strip()}")
    return Assembled(**json.loads(run.stdout))


def _cuda(ptx: str, cubin: bytes, shared: int) -> Assembled:
    """What the binary says of itself: the one a launch would load, with the options it was assembled with."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"the binary reports no registers:\n{usage}")
    # Kernels have no arrays of their own on the stack: all of it is spilled registers.
    return Assembled(int(found[1]), int(found[2]), shared, _ptx_counts(ptx), ptx)


def _ptx_counts(ptx: str) -> dict[str, int]:
    """Instructions by the first word of their mnemonic: `wgmma`, `mma`, `ld`, `selp`, ..."""
    found = re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*)(?:\.[\w:.]+)?\s[^:]*;", ptx, re.MULTILINE)
    return dict(Counter(found).most_common())


def _hip(assembly: str, shared: int) -> Assembled:
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    spills = re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    if registers is None or spills is None:
        raise RuntimeError("the assembly carries no register counts")
    found = re.findall(r"^\s+([a-z]+_[a-z0-9_]+)\s", assembly, re.MULTILINE)
    return Assembled(int(registers[1]), 4 * int(spills[1]), shared, dict(Counter(found).most_common()), assembly)


if __name__ == "__main__":
    json.dump(asdict(assemble(Job(**json.load(sys.stdin)))), sys.stdout)

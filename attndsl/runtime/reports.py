"""What compiling a variant's kernels ahead of time tells: a report for each kernel, for whichever target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attndsl.runtime.tiles import TileShape


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One compiled kernel. `registers` and `spilled_bytes` are per thread, `shared_bytes` per program.

    `instructions` counts by mnemonic, without modifiers; `assembly` is PTX for cuda, AMDGCN for hip, C++ for cpu;
    `tile` the shape it was compiled for. On a CPU `registers` are vector registers, what is spilled is not known.
    """

    name: str
    registers: int
    spilled_bytes: int | None
    shared_bytes: int
    instructions: Mapping[str, int]
    assembly: str
    tile: TileShape


@dataclass(frozen=True, slots=True)
class CompileReport:
    """Every kernel of a variant for one target."""

    target: str
    kernels: list[KernelReport]

    def __str__(self) -> str:
        rows = [f"{self.target}"]
        for kernel in self.kernels:
            rows.append(
                f"  {kernel.name}: {kernel.registers} registers, {_spilled(kernel)}"
                f"{kernel.shared_bytes} bytes of shared memory, {sum(kernel.instructions.values())} instructions"
            )
        return "\n".join(rows)


def _spilled(kernel: KernelReport) -> str:
    return "" if kernel.spilled_bytes is None else f"{kernel.spilled_bytes} bytes spilled, "

"""What is exported: the program as written and after its passes, what was derived of it, what its kernels are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attndsl.codegen.derivation import Derivation
from attndsl.codegen.plan import KernelPlan, Specialisation
from attndsl.ir.variant import Variant

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

Tiles = Mapping[str, tuple[int, int, int, int]]
"""The tile of a kernel on each family of targets: queries, keys, warps, stages."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is exported: the program as written, with the values its scalars have; after its passes; what was derived.

    `made_with` are versions, `tiles` what a launcher uses by default.
    """

    source: Variant
    program: Variant
    derivation: Derivation
    fingerprint: str
    spec: Specialisation
    made_with: str
    tiles: Callable[[KernelPlan], Tiles]

"""What runs the kernels of a variant, by the language they are in."""

from __future__ import annotations

from attndsl.codegen.plan import Target
from attndsl.engines.kernels import Kernels
from attndsl.engines.native import NativeKernels

ENGINES: dict[Target, type[Kernels]] = {Target.TRITON: Kernels, Target.CPP: NativeKernels}

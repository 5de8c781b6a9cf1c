"""The whole compiler: read this first.

A front end (`frontend.parse` for text, `frontend.tracing` for Python) has turned what a user wrote into a `Variant`:
score, mask, normalizer and weight as typed expressions. From there:

    variant  ->  run_passes      the same meaning, in the form analyses read: comparisons solved for the key,
                                 -inf branches of the score moved into the mask
             ->  plan_forward    every decision about a kernel: which key tiles it walks, which of them need the mask,
                                 what is computed once a program, a row, a column; how the normalizer streams
             ->  emit            Triton or C++ text, arranged by a template

`runtime` puts the text on disk, checks each call's facts, picks the specialisation they allow, and launches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from attndsl.codegen import cpp, triton
from attndsl.codegen.describe import describe
from attndsl.codegen.plan import Emitted, KernelPlan, Specialisation, Target, plan_forward
from attndsl.diagnostics import CallError, fail
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes

KERNELS: dict[Target, dict[str, Callable[[KernelPlan], str]]] = {
    Target.TRITON: {"forward": triton.emit_forward},
    Target.CPP: {"forward": cpp.emit_forward},
}
"""What prints each kernel of a target."""


class Compilation:
    """A variant on its way to kernels; every stage is computed once, when it is first asked for."""

    def __init__(self, source: Variant) -> None:
        self.source = source
        self.program = run_passes(source)
        self.fingerprint = fingerprint(replace(self.program, order=source.order))
        self._emitted: dict[tuple[str, Specialisation], Emitted] = {}

    def kernel(self, name: str, spec: Specialisation) -> Emitted:
        """The plan and text of one kernel."""
        found = self._emitted.get((name, spec))
        if found is None:
            found = self._emitted[name, spec] = compile_kernel(self.program, name, spec)
        return found


def compile_kernel(program: Variant, name: str, spec: Specialisation) -> Emitted:
    """A program after its passes as a kernel."""
    kernels = KERNELS[spec.target]
    if name not in kernels:
        known = ", ".join(f"`{kernel}`" for kernel in kernels)
        raise fail(CallError, "unknown-kernel", f"there is no kernel `{name}`", None, help=f"the kernels are {known}")
    plan = plan_forward(program, spec)
    return Emitted(plan, kernels[name](plan))


def emit_source(
    variant: Variant,
    kernel: str = "forward",
    dtype: str = "bf16",
    head_dim: int = 128,
    v_head_dim: int | None = None,
    target: Target = Target.TRITON,
) -> str:
    """The text of a variant's kernel, from its source form; `dtype` is one of `Specialisation`'s."""
    spec = Specialisation(dtype, head_dim, head_dim if v_head_dim is None else v_head_dim, target=target)
    return compile_kernel(run_passes(variant), kernel, spec).text


def describe_plan(
    variant: Variant, kernel: str = "forward", dtype: str = "bf16", head_dim: int = 128, v_head_dim: int | None = None
) -> str:
    """The decisions behind `emit_source`, for people."""
    spec = Specialisation(dtype, head_dim, head_dim if v_head_dim is None else v_head_dim)
    return describe(compile_kernel(run_passes(variant), kernel, spec).plan)

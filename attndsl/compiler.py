"""The whole compiler: read this first.

A front end (`frontend.parse` for text, `frontend.tracing` for Python) has turned what a user wrote into a `Variant`:
score, mask, normalizer and weight as typed expressions. From there:

    variant  ->  run_passes      the same meaning, in the form analyses read: comparisons solved for the key,
                                 -inf branches of the score moved into the mask
             ->  Derivation      how the normalizer streams over the keys, and the derivative of everything
             ->  plan_kernel     every decision about a kernel: which tiles it walks, which of them need the mask, what
                                 is computed once a program, a row, a column
             ->  emit            Triton or C++ text, arranged by a template

`runtime` puts the text on disk, checks each call's facts, picks the specialisation they allow, and launches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from weakref import WeakValueDictionary

from attndsl.codegen import cpp, triton
from attndsl.codegen.derivation import Derivation
from attndsl.codegen.describe import describe
from attndsl.codegen.drawn import Drawn
from attndsl.codegen.kernels import plan_kernel
from attndsl.codegen.plan import Emitted, KernelPlan, Specialisation, Target
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.printer import print_variant
from attndsl.ir.row_sums import RowSum
from attndsl.ir.variant import Param, ScalarParam, Variant
from attndsl.passes.pipeline import run_passes
from attndsl.passes.transpose_mask import transpose_mask

EMITTERS: dict[Target, Callable[[KernelPlan], Drawn | str]] = {Target.TRITON: triton.emit, Target.CPP: cpp.emit}
"""What prints the kernels of a target."""


class Compilation:
    """A variant on its way to kernels; every stage is computed once, when it is first asked for."""

    def __init__(self, source: Variant) -> None:
        self.source = source
        self.program = run_passes(source)
        self.fingerprint = fingerprint(replace(self.program, order=source.order))
        self._emitted: dict[tuple[str, Specialisation], Emitted] = {}
        self._with_sums: dict[tuple[RowSum, ...], Compilation] = {}

    def text(self) -> str:
        """The text by which graphs know the program; values of scalars are no part of it."""
        text = print_variant(without_values(self.source))
        in_graphs[text] = self
        return text

    # What `torch.compiler.assume_constant_result` sets: torch's compiler runs this as it makes a graph.
    text._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @cached_property
    def derivation(self) -> Derivation:
        """What follows from the mathematics of the program."""
        return Derivation(self.program, lambda: transpose_mask(self.source))

    def with_sums(self, sums: tuple[RowSum, ...]) -> Compilation:
        """The same of a program that also returns these sums of its rows."""
        if not sums:
            return self
        found = self._with_sums.get(sums)
        if found is None:
            found = self._with_sums[sums] = copy(self)
            params = (*self.program.params, *(param for row_sum in sums for param in row_sum.params))
            program = replace(self.program, params=params)
            found.derivation = Derivation(program, lambda: transpose_mask(self.source), sums)
            found._emitted = {}
        return found

    def kernel(self, name: str, spec: Specialisation) -> Emitted:
        """The plan and text of one kernel."""
        found = self._emitted.get((name, spec))
        if found is None:
            plan = plan_kernel(self.derivation, name, spec)
            found = self._emitted[name, spec] = Emitted(plan, EMITTERS[spec.target](plan))
        return found


in_graphs: WeakValueDictionary[str, Compilation] = WeakValueDictionary()
"""The compilations that graphs know by their texts."""


def without_values(variant: Variant) -> Variant:
    """The variant with no scalar bound."""
    params = (replace(one, default=None) if isinstance(one, ScalarParam) else one for one in variant.params)
    return replace(variant, params=tuple(params))


def with_values(variant: Variant, values: Mapping[str, object]) -> Variant:
    """The variant with numbers among the values bound to its scalars."""

    def bound(param: Param) -> Param:
        value = values.get(param.name)
        if isinstance(param, ScalarParam) and isinstance(value, int | float):
            return replace(param, default=value)
        return param

    return replace(variant, params=tuple(map(bound, variant.params)))


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
    return Compilation(variant).kernel(kernel, spec).text


def describe_plan(
    variant: Variant, kernel: str = "forward", dtype: str = "bf16", head_dim: int = 128, v_head_dim: int | None = None
) -> str:
    """The decisions behind `emit_source`, for people."""
    spec = Specialisation(dtype, head_dim, head_dim if v_head_dim is None else v_head_dim)
    return describe(Compilation(variant).kernel(kernel, spec).plan)

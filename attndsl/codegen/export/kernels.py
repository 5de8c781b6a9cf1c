"""The kernels of an exported file: those that rely on no facts of a call, each with a walk that needs no table.

In: what is exported. Out: their plans, and the entries of the table its launcher looks them up in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from attndsl.analysis.bounds import Strategy
from attndsl.codegen.derivation import Derivation
from attndsl.codegen.export.subject import Subject
from attndsl.codegen.export.text import sequence
from attndsl.codegen.kernels import plan_kernel
from attndsl.codegen.placement import Side
from attndsl.codegen.plan import KernelPlan, Specialisation

LEFT_OUT = ("backward_diagonal", "backward_pairs")
"""Kernels for gradients that a file does not have."""


@dataclass(frozen=True, slots=True)
class LaunchText:
    """An entry of the table of kernels."""

    name: str
    tensors: str
    reads: str
    writes: str
    params: str
    keeps_keys: bool
    tiles: tuple[tuple[str, str], ...]


def plans_of(subject: Subject, gradients: frozenset[str]) -> tuple[KernelPlan, ...]:
    """The kernels of a file with the gradients of these tensors."""
    spec = replace(subject.spec, fast=False, offset_per_batch=True, gradients=gradients, strategy=None)
    names = (name for name in subject.derivation.kernels if name not in LEFT_OUT)
    return tuple(_without_table(subject.derivation, name, spec) for name in names)


def launch_text(subject: Subject, symbols: Mapping[str, str], plan: KernelPlan) -> LaunchText:
    """The entry of a kernel."""
    return LaunchText(
        plan.kernel,
        sequence(plan.tensors, 8),
        sequence(plan.kept, 8),
        sequence(plan.stored, 8),
        sequence((symbols[param.name] for param in plan.params), 8),
        plan.side is Side.KEYS,
        tuple((family, repr(tile)) for family, tile in subject.tiles(plan).items()),
    )


def _without_table(derivation: Derivation, name: str, spec: Specialisation) -> KernelPlan:
    """A kernel that asks the host for nothing: where bounds do not say which tiles are live, it visits all."""
    plan = plan_kernel(derivation, name, spec)
    return plan_kernel(derivation, name, replace(spec, strategy=Strategy.DENSE)) if plan.reads_table else plan

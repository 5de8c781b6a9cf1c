"""A variant as one file that needs torch and triton alone.

In: a variant, what was derived of it, its kernels' plans. Out: the text of a module with those kernels, what launches
and differentiates them, a dense reference in plain torch, and a test of one against the other. The kernels are the
compiler's, those that rely on no facts of a call; what hosts compute is printed from the same derivation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attndsl.codegen.copied import copied, definitions_of
from attndsl.codegen.export.duties import DutiesText, RequirementsText, duties_text, requirements_text
from attndsl.codegen.export.gradients import BackwardText, Learnt, backward_text, learnt_of
from attndsl.codegen.export.head import docstring
from attndsl.codegen.export.imports import import_lines
from attndsl.codegen.export.kernels import LaunchText, launch_text, plans_of
from attndsl.codegen.export.parameters import ParametersText, identifiers, parameters_text
from attndsl.codegen.export.reference import ReferenceText, reference_text
from attndsl.codegen.export.subject import DTYPES, Subject
from attndsl.codegen.export.text import mapping, names_in, quoted, sequence
from attndsl.codegen.plan import KernelPlan
from attndsl.codegen.triton import emit_function, helper_sources, rendered
from attndsl.ir.nodes import Const, Solve, postorder
from attndsl.ir.variant import Variant

LENGTHS = ((1, 1), (33, 70), (64, 64))
"""What an exported file tests itself with, beside lengths that its requirements name."""


@dataclass(frozen=True, slots=True)
class ExportFile:
    """What the template sees: finished texts."""

    docstring: str
    launches: tuple[LaunchText, ...]
    statistics: tuple[str, ...]
    maximum: str
    has_lse: bool
    dtype: str
    head_dim: int
    v_head_dim: int
    parameters: ParametersText
    learnt: str
    not_learnt: str
    requirements: RequirementsText | None
    duties: DutiesText | None
    backward: BackwardText | None
    reference: ReferenceText
    lengths: str


@dataclass(frozen=True, slots=True)
class _Constants:
    """What the lines before kernels see."""

    runtime_args: tuple[str, ...]


def export_text(subject: Subject) -> str:
    """The text of the file; the same subject gives the same bytes."""
    learnt = learnt_of(subject.derivation)
    plans = plans_of(subject, frozenset(learnt.names))
    functions = [emit_function(plan) for plan in plans]
    seen = {
        "file": _file(subject, plans, learnt),
        "kernel": _Constants(tuple(dict.fromkeys(name for function in functions for name in function.runtime_args))),
        "kernels": [function.text.strip("\n") for function in functions],
        "helpers": helper_sources({name for function in functions for name in function.helpers}),
        "copies": _copies(any(isinstance(node, Solve) for node in postorder(*subject.source.roots))),
    }
    without = rendered("export.py.jinja", imports=(), **seen)
    return rendered("export.py.jinja", imports=tuple(import_lines(names_in(without))), **seen)


def _file(subject: Subject, plans: tuple[KernelPlan, ...], learnt: Learnt) -> ExportFile:
    source, derivation, spec = subject.source, subject.derivation, subject.spec
    symbols = identifiers(source.params)
    return ExportFile(
        docstring=docstring(subject, symbols, plans, learnt),
        launches=tuple(launch_text(subject, symbols, plan) for plan in plans),
        statistics=derivation.statistics_kernels,
        maximum=derivation.maximum,
        has_lse=derivation.streaming.lse is not None,
        dtype=DTYPES[spec.dtype],
        head_dim=spec.head_dim,
        v_head_dim=spec.v_head_dim,
        parameters=parameters_text(source, symbols),
        learnt=sequence((symbols[name] for name in learnt.names), 0),
        not_learnt=mapping({symbols[name]: quoted(why) for name, why in learnt.refused.items()}),
        requirements=requirements_text(source.requirements, symbols),
        duties=duties_text(subject.program, symbols),
        backward=backward_text(derivation, replace(spec, gradients=frozenset(learnt.names)), symbols),
        reference=reference_text(source, symbols),
        lengths=_lengths(source),
    )


def _lengths(source: Variant) -> str:
    """What the file tests itself with."""
    conditions = [requirement.condition for requirement in source.requirements]
    named = [int(node.value) for node in postorder(*conditions) if isinstance(node, Const) and node.dtype.is_int]
    sizes = [*LENGTHS, *((size, size) for size in dict.fromkeys(named) if 1 < size <= 1024)]
    return ", ".join(map(repr, sizes))


def _copies(solves: bool) -> tuple[str, ...]:
    """Functions of this package that files use, those of thresholds where there is one."""
    return (
        *(definitions_of("roots.py") if solves else ()),
        *copied("dense.py", "floor_divide", "remainder", "_divisor", "bit_length", "_gather"),
        *definitions_of("guarded.py"),
        *copied("reference.py", "_Rounded", "_RoundedGradient"),
        *copied("runtime/interpreter.py", "silent_arithmetic", "mend_interpreter"),
        *copied("runtime/interpreter.py", "_multiply_bfloat16_by_value", "_spread_truth_values"),
    )

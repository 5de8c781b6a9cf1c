"""A forward plan as C++ text: prints what the plan holds into the lines its template arranges."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.analysis.streaming import Term
from attndsl.codegen.cpp_ends import end_lines, merge_lines, out
from attndsl.codegen.cpp_gradients import emit_gradients
from attndsl.codegen.cpp_kernel import CppKernel
from attndsl.codegen.cpp_passes import Pass, passes
from attndsl.codegen.cpp_signature import ELEMENTS, cpp_row_pointer, stored_rows
from attndsl.codegen.cpp_text import SOLVE, TEMPLATE, environment
from attndsl.codegen.plan import KernelPlan
from attndsl.ir import build
from attndsl.ir.rewrite import postorder


@dataclass(frozen=True, slots=True)
class KernelText:
    """What the template sees: finished lines, nothing to decide.

    `held` is held for every row of a tile, `stored` are arguments with the names of their values.
    """

    header: str
    defines: tuple[str, ...]
    before: str
    products: str
    element: str
    head_dim: int
    v_head_dim: int
    terms: tuple[Term | None, ...]
    members: tuple[str, ...]
    locals: tuple[str, ...]
    row_members: tuple[str, ...]
    row_names: tuple[str, ...]
    row_lines: tuple[str, ...]
    column_members: tuple[str, ...]
    column_names: tuple[str, ...]
    column_lines: tuple[str, ...]
    held: tuple[str, ...]
    program_lines: tuple[str, ...]
    start_lines: tuple[str, ...]
    walk: tuple[str, ...]
    passes: tuple[Pass, ...]
    live_lines: tuple[str, ...]
    live: str
    merge_lines: tuple[str, ...]
    reads_key: bool
    hides_keys: bool
    solves: bool
    heaviest_last: bool
    end_program_lines: tuple[str, ...]
    end_lines: tuple[str, ...]
    out: str
    stored: tuple[tuple[str, str], ...]


def emit(plan: KernelPlan) -> str:
    """The module text of a kernel; the same plan gives the same bytes."""
    if plan.kernel != "forward":
        return emit_gradients(plan)
    return environment().get_template(TEMPLATE).render(kernel=_text(CppKernel(plan)))


def _text(kernel: CppKernel) -> KernelText:
    plan, spec = kernel.plan, kernel.plan.spec
    return KernelText(
        header=kernel.header(),
        defines=kernel.defines(),
        before=kernel.headers(*((SOLVE,) if kernel.roots else ())),
        products=kernel.products(),
        element=ELEMENTS[spec.dtype],
        head_dim=spec.head_dim,
        v_head_dim=spec.v_head_dim,
        terms=kernel.streaming.terms or (None,),
        members=kernel.record(),
        locals=tuple(kernel.locals()),
        row_members=("vint q_idx;", *kernel.members(kernel.row)),
        row_names=kernel.bindings,
        row_lines=tuple(kernel.statements(kernel.row, kernel.program_names)),
        column_members=kernel.members(kernel.column),
        column_names=tuple(line.name for line in kernel.column),
        column_lines=tuple(kernel.statements(kernel.column, kernel.program_names)),
        held=kernel.held,
        program_lines=tuple(kernel.statements(kernel.program, {})),
        start_lines=tuple(kernel.start_lines()),
        walk=tuple(kernel.walk()),
        passes=tuple(passes(kernel)),
        live_lines=tuple(kernel.live_lines()),
        live=kernel.live(),
        merge_lines=tuple(merge_lines(kernel)),
        reads_key=any(node is build.K for node in postorder(plan.score, *kernel.peaks())),
        hides_keys=plan.hides_keys,
        solves=bool(kernel.roots),
        heaviest_last=plan.walk.ascending,
        end_program_lines=tuple(kernel.statements(kernel.renamed(plan.last.program), {})),
        end_lines=tuple(end_lines(kernel)),
        out=out(kernel),
        stored=tuple((cpp_row_pointer(name), name) for name in stored_rows(plan)),
    )

"""A forward plan as C++ text: prints what the plan holds into the lines its template arranges."""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.codegen.cpp_ends import end_lines, merge_lines, out
from attndsl.codegen.cpp_gradients import emit_gradients
from attndsl.codegen.cpp_kernel import CppKernel
from attndsl.codegen.cpp_passes import Pass, passes
from attndsl.codegen.cpp_signature import cpp_row_pointer, stored_rows
from attndsl.codegen.cpp_text import PAGES, SOLVE, TEMPLATE
from attndsl.codegen.drawn import Drawn
from attndsl.codegen.plan import KernelPlan
from attndsl.ir import build
from attndsl.ir.rewrite import postorder


@dataclass(frozen=True, slots=True)
class ForwardText:
    """What the template sees: finished lines, nothing to decide.

    `held` is held for every row of a tile, `stored` are arguments with the names of their values.
    """

    held: tuple[str, ...]
    start_lines: tuple[str, ...]
    passes: tuple[Pass, ...]
    merge_lines: tuple[str, ...]
    reads_key: bool
    solves: bool
    heaviest_last: bool
    end_program_lines: tuple[str, ...]
    end_lines: tuple[str, ...]
    out: str
    stored: tuple[tuple[str, str], ...]
    paged: bool
    keys_at: str
    values_at: str


def emit(plan: KernelPlan) -> Drawn:
    """The module text of a kernel; the same plan gives the same bytes."""
    if plan.kernel != "forward":
        return emit_gradients(plan)
    kernel = CppKernel(plan)
    headers = (SOLVE,) if kernel.roots else ()
    pages = (PAGES,) if plan.spec.paged else ()
    lines = kernel.module(headers=headers, sums=pages, terms=max(1, len(kernel.streaming.terms)))
    return Drawn(TEMPLATE, (("lines", lines), ("kernel", _text(kernel))))


def _text(kernel: CppKernel) -> ForwardText:
    plan = kernel.plan
    return ForwardText(
        held=kernel.held,
        start_lines=tuple(kernel.start_lines()),
        passes=tuple(passes(kernel)),
        merge_lines=tuple(merge_lines(kernel)),
        reads_key=any(node is build.K for node in postorder(plan.score, *kernel.peaks())),
        solves=bool(kernel.roots),
        heaviest_last=plan.walk.ascending,
        end_program_lines=tuple(kernel.statements(kernel.renamed(plan.last.program), {})),
        end_lines=tuple(end_lines(kernel)),
        out=out(kernel),
        stored=tuple((cpp_row_pointer(name), name) for name in stored_rows(plan)),
        paged=plan.spec.paged,
        keys_at=_at("K", "k", plan.spec.paged),
        values_at=_at("V", "v", plan.spec.paged),
    )


def _at(pointer: str, name: str, paged: bool) -> str:
    """Where a tile of keys or values lies: the first element and the strides of rows and columns."""
    if paged:
        return f"{name}_at.at, {name}_at.stride, {name}_at.stride_d"
    return f"{pointer} + start_n * args.stride_{name}n, args.stride_{name}n, args.stride_{name}d"

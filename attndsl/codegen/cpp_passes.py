"""The passes of a C++ kernel over the keys of a query tile: what each of them computes.

In: a `CppKernel`. Out: a `Pass` for each, in order. Statistics come in the passes that were derived for them, the
output in the last one, with the statistics it streams beside or once all are known. A root is looked for among scores
that the pass before the first of them keeps, so that a step of the search multiplies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.analysis.streaming import LSE, Kind, Passes, Statistic, Term
from attndsl.codegen.cpp_kernel import CppKernel, shift_of
from attndsl.codegen.cpp_signature import MAX_SCORE
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the keys, finished lines of what the template repeats for each; or the search for `root`.

    `terms`: it sums the output, where `skips` says that tiles may add nothing. `keeps`: it keeps the scores.
    """

    comment: str
    scale: str = ""
    plain: bool = False
    stores: bool = False
    open_lines: tuple[str, ...] = ()
    score_lines: tuple[str, ...] = ()
    largest_lines: tuple[str, ...] = ()
    grow_lines: tuple[str, ...] = ()
    weight_lines: tuple[str, ...] = ()
    close_lines: tuple[str, ...] = ()
    weights_read_columns: bool = False
    terms: bool = False
    skips: bool = False
    keeps: bool = False
    root: str = ""


def passes(kernel: CppKernel) -> Iterator[Pass]:
    """The passes of a kernel."""
    statistics = _statistics(kernel)
    first_root = next((number for number, part in enumerate(statistics) if _is_root(part)), 0)
    for number, part in enumerate(statistics):
        if _is_root(part):
            yield _search(kernel, part[0])
        else:
            is_last = number == len(statistics) - 1
            yield _PassText(kernel, part, is_last, keeps=number + 1 == first_root).text()


def _statistics(kernel: CppKernel) -> Passes:
    """The statistics by the pass that computes them: one pass before the first root, one that can sum the output."""
    found = kernel.streaming.passes
    if found and _is_root(found[0]):
        found = ((), *found)
    return found if kernel.streaming.terms and found else (*found, ())


def _is_root(part: tuple[Statistic, ...]) -> bool:
    return any(statistic.kind is Kind.SOLVE for statistic in part)


def _search(kernel: CppKernel, root: Statistic) -> Pass:
    """The search for a root: between which ends, for which total, and what is summed over the keys."""
    assert root.solve is not None
    ends = {"total_i": root.solve.total, "lower_i": root.solve.lower, "upper_i": root.solve.upper}
    known = (*_known(kernel, but={root.name}),)
    text = kernel.printer.named(root.integrand, kernel.row_values | kernel.row_names, kernel.loads)
    return Pass(
        comment=f"// The root {root.name} of each row, among the scores that were kept.",
        open_lines=(
            *known,
            *(f"const vreal {name} = {kernel.of_row(end, kernel.row_names)};" for name, end in ends.items()),
        ),
        weight_lines=(f"return select(s == vreal(-INF), vreal(0), vreal({text}));",),
        root=root.name,
    )


def _known(kernel: CppKernel, but: Iterable[str]) -> Iterator[str]:
    """What is known of rows so far, but for some."""
    for name in kernel.row_values.values():
        if name not in but:
            yield f"const vreal {name} = w.{name}[i];"


class _PassText:
    """Prints one pass of a kernel."""

    def __init__(self, kernel: CppKernel, statistics: tuple[Statistic, ...], is_last: bool, keeps: bool) -> None:
        self.kernel, self.is_last, self.keeps = kernel, is_last, keeps
        self.terms: tuple[Term, ...] = kernel.streaming.terms if is_last else ()
        self.maxima = [part for part in statistics if part.kind is Kind.MAX]
        self.sums = [part for part in statistics if part.kind is Kind.SUM]
        self.values = [term.value for term in self.terms]
        if is_last and not self.terms:
            self.values = [kernel.streaming.weight]

    def text(self) -> Pass:
        kernel, tracks = self.kernel, self.is_last and self.kernel.tracks_maximum
        added = [*(part.integrand for part in self.sums), *self.values]
        later = {part.name for part in self.sums}
        return Pass(
            comment="// Row statistics and the output." if self.is_last else "// Row statistics.",
            scale="" if kernel.late else " * sm_scale",
            plain=kernel.late,
            stores=not kernel.late,
            open_lines=(
                *_known(kernel, later),
                *(f"vreal {_largest(part)}(-INF);" for part in self.maxima),
                *((f"vreal {MAX_SCORE} = w.{MAX_SCORE}[i];",) if tracks else ()),
                *((kernel.lse_line(),) if self._reads_lse() else ()),
            ),
            score_lines=tuple(kernel.score_lines()),
            largest_lines=(
                *((f"{MAX_SCORE} = larger({MAX_SCORE}, s);",) if tracks else ()),
                *self._largest_lines(),
            ),
            grow_lines=tuple(self._grow_lines()),
            weight_lines=tuple(self._weight_lines()),
            close_lines=(
                *(f"w.{part.name}[i] = {part.name} + {part.name}_tile;" for part in self.sums),
                *((f"w.{MAX_SCORE}[i] = {MAX_SCORE};",) if tracks else ()),
            ),
            weights_read_columns=any(Axis.K in axes_of(node) for node in postorder(*added)),
            terms=self.is_last,
            skips=self.is_last and bool(kernel.roots),
            keeps=self.keeps,
        )

    def _reads_lse(self) -> bool:
        """Whether the log of the divisor is to be made of statistics here."""
        return self.is_last and not self.terms and LSE in postorder(*self.values)

    def _largest_lines(self) -> Iterator[str]:
        kernel = self.kernel
        for part in self.maxima:
            value = "s"
            if part.integrand is not build.SCORE:
                text = kernel.printer.named(part.integrand, kernel.row_names, kernel.loads)
                value = f"select(s == vreal(-INF), vreal(-INF), vreal({text}))"
            yield f"{_largest(part)} = larger({_largest(part)}, {value});"

    def _grow_lines(self) -> Iterator[str]:
        """Maxima take in the tile; what was summed so far is rescaled to them."""
        late = self.kernel.late
        for part in self.maxima:
            new, scale = part.grown.name, " * sm_scale" if late else ""
            yield f"const vreal {new} = larger({part.name}, {_largest(part)}{scale});"
            yield f"const vreal {shift_of(part)} = select({new} == vreal(-INF), vreal(0), {new});"
            if late:
                yield f"const vreal {shift_of(part)}_2 = {shift_of(part)} * LOG2E;"
            yield f"w.{part.name}[i] = {new};"
        factors: dict[Expr, str] = {}
        for rescale in (*(part.rescale for part in self.sums), *(term.rescale for term in self.terms)):
            if rescale is not None and rescale not in factors:
                factors[rescale] = f"alpha_{len(factors)}" if factors else "alpha"
                yield f"const vreal {factors[rescale]} = {self.kernel.rescale(rescale, self.maxima)};"
        for part in self.sums:
            factor = "" if part.rescale is None else f" * {factors[part.rescale]}"
            yield f"const vreal {part.name} = w.{part.name}[i]{factor};"
            yield f"vreal {part.name}_tile(0);"
        for place, term in enumerate(self.terms):
            if term.rescale is not None:
                factor = factors[term.rescale]
                yield f"if (any({factor} != vreal(1))) w.products.rescale({place}, i, {factor});"

    def _weight_lines(self) -> Iterator[str]:
        """What is summed over the keys of a tile, and the weights of its values."""
        names: dict[Expr, str] = {}
        for value in (*(part.integrand for part in self.sums), *self.values):
            if value not in names:
                names[value] = f"p_{len(names)}" if names else "p"
                yield f"const vreal {names[value]} = {self._value(value)};"
        for part in self.sums:
            yield f"{part.name}_tile = {part.name}_tile + {names[part.integrand]};"
        for place, value in enumerate(self.values):
            yield f"weights[{place}][e] = {names[value]};"

    def _value(self, value: Expr) -> str:
        kernel = self.kernel
        exponential = kernel.exponential_of(value, self.maxima)
        if exponential is not None:
            return exponential
        names = {**kernel.row_values, LSE: LSE.name, **{part.value: shift_of(part) for part in self.maxima}}
        text = kernel.printer.named(value, names | kernel.row_names, kernel.loads)
        return f"select(s == vreal(-INF), vreal(0), vreal({text}))"


def _largest(part: Statistic) -> str:
    return part.name.replace("m_i", "largest")

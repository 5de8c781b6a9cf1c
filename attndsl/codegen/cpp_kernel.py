"""What the C++ of every part of a kernel has in common: names, statements, and the mask and the score of a tile.

In: a `KernelPlan`. Out: a `CppKernel`, lines for the printers of passes (`cpp_passes`) and of what follows them
(`cpp_ends`). Names are those of the field: `m_i`, `l_i`, `acc`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attndsl.analysis.streaming import LSE, Kind, Statistic
from attndsl.codegen.cpp_lines import CppLines, names_of
from attndsl.codegen.cpp_signature import MAX_SCORE
from attndsl.codegen.plan import KernelPlan, is_maximum
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, RowValue
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder


class CppKernel(CppLines):
    """Prints the parts of a forward plan that stand before anything is summed.

    `row_values` are the names of what is known of rows.
    """

    def __init__(self, plan: KernelPlan) -> None:
        self.streaming = plan.streaming
        self.statistics = self.streaming.statistics
        self.roots = tuple(part for part in self.statistics if part.kind is Kind.SOLVE)
        self.row_values: dict[Expr, str] = {part.value: part.name for part in self.statistics}
        self.plan = plan
        leaves: dict[Expr, str] = {build.SCORE: "s", build.THRESHOLD: "t_i"}
        super().__init__(plan, (plan.mask, plan.score, *self._expressions()), (plan.placement,), leaves)
        is_exponential = all(map(self._is_exponential, self._integrands()))
        self.late = plan.scales_late and is_exponential and not self.roots

    @property
    def has_maximum(self) -> bool:
        """Whether a statistic is the largest score."""
        return any(map(is_maximum, self.statistics))

    @property
    def tracks_maximum(self) -> bool:
        """Whether the largest score, which every forward leaves, is looked for beside the statistics."""
        return not self.has_maximum

    @property
    def held(self) -> tuple[str, ...]:
        """What is held for every row of a tile along the walk."""
        own = (MAX_SCORE,) if self.tracks_maximum else ()
        return (*(part.name for part in self.statistics), *own)

    def _expressions(self) -> Iterator[Expr]:
        """Everything the normalizer and the weight mods are made of."""
        streaming = self.streaming
        yield from self._integrands()
        yield from (term.factor for term in streaming.terms)
        yield from self.rescales()
        yield from self.plan.bracket
        yield streaming.weight
        yield from (extra for extra in (streaming.lse, streaming.sink) if extra is not None)

    def peaks(self) -> Iterator[Expr]:
        """What maxima are taken of."""
        return (part.integrand for part in self.statistics if part.kind is Kind.MAX)

    def _integrands(self) -> Iterator[Expr]:
        """What is summed over the keys."""
        yield from (part.integrand for part in self.statistics if part.kind is not Kind.MAX)
        yield from (term.value for term in self.streaming.terms)
        if not self.streaming.terms:
            yield self.streaming.weight

    def locals(self) -> Iterator[str]:
        yield from super().locals()
        if self.late:
            yield "const real qk_scale = sm_scale * LOG2E;"

    def start_lines(self) -> Iterator[str]:
        """What is held of rows before the walk."""
        for statistic in self.statistics:
            yield f"w.{statistic.name}[i] = vreal({'-INF' if statistic.kind is Kind.MAX else '0'});"
        if self.tracks_maximum:
            yield f"w.{MAX_SCORE}[i] = vreal(-INF);"

    def score_lines(self) -> Iterator[str]:
        """The final score, from the scaled product."""
        if self.plan.score is build.SCORE:
            return
        yield from self.statements(self.full_tile, self.key_names)
        if self.plan.score_origin is not None:
            yield f"// {self.plan.score_origin}"
        names = self.key_names | names_of(self.full_tile)
        yield f"s = vreal({self.printer.named(self.plan.score, names, self.loads)});"

    def of_row(self, value: Expr, names: Mapping[Expr, str] | None = None) -> str:
        """A value of a vector of rows over their `row_values`, some of them and further ones by other names."""
        known = self.row_values if names is None else {**self.row_values, **names}
        return f"vreal({self.printer.named(value, known, self.loads)})"

    def lse_line(self) -> str:
        assert self.streaming.lse is not None
        return f"const vreal {LSE.name} = {self.of_row(self.streaming.lse)};"

    def rescales(self) -> dict[Expr, str]:
        """The names of what sums and accumulators are multiplied by when a maximum grows."""
        moves = [*(part.rescale for part in self.statistics), *(term.rescale for term in self.streaming.terms)]
        known = dict.fromkeys(move for move in moves if move is not None)
        return {move: f"alpha_{place}" if place else "alpha" for place, move in enumerate(known)}

    def rescale(self, rescale: Expr, maxima: Iterable[Statistic]) -> str:
        """What these maxima have grown by."""
        match rescale:
            case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(RowValue(name=old), RowValue(name=new))),)) if any(
                part.name == old and part.grown.name == new for part in maxima
            ):
                shift = next(shift_of(part) for part in maxima if part.name == old)
                return f"exp2_flushing(({old} - {shift}) * LOG2E)"
            case _:
                return self.of_row(rescale, {part.grown: shift_of(part) for part in maxima} | self.row_names)

    def exponential_of(self, value: Expr, maxima: Iterable[Statistic]) -> str | None:
        """How much a score is below its row's maximum, exponentiated: what most normalizers sum."""
        shift = next((shift_of(part) for part in maxima if part.value in postorder(value)), None)
        if shift is None or not self._is_exponential(value):
            return None
        exp2 = "exp2_roughly" if self.plan.spec.dtype == "bf16" else "exp2_flushing"
        # Not multiplied before it is subtracted: scores as large as floats go, as of additive masks, would be infinite.
        return f"{exp2}(s * qk_scale - {shift}_2)" if self.late else f"{exp2}((s - {shift}) * LOG2E)"

    def _is_exponential(self, value: Expr) -> bool:
        match value:
            case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(score, RowValue(name=name))),)):
                return score is build.SCORE and any(part.name == name for part in filter(is_maximum, self.statistics))
            case _:
                return False


def shift_of(part: Statistic) -> str:
    """What a maximum is measured from: 0 while no key was live."""
    return part.name.replace("m_i", "shift")

"""What is derived of a variant: how it streams, how it is differentiated, which kernels compute it.

In: a variant after its passes. Out: a `Derivation`, of which every stage is computed when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from attndsl.analysis.axes import axes_of
from attndsl.analysis.backward import Backward, differentiate
from attndsl.analysis.calculus import cotangents
from attndsl.analysis.exponential import exponential
from attndsl.analysis.streaming import Refusal, Streaming, stream
from attndsl.analysis.structure import Structure, structure_of
from attndsl.analysis.with_sums import with_sums
from attndsl.codegen.placement import Scope, scope_of
from attndsl.codegen.plan import Specialisation, Target, is_maximum
from attndsl.diagnostics import UnsupportedError
from attndsl.ir import build
from attndsl.ir.nodes import Const, Expr, Load
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, substitute
from attndsl.ir.row_sums import RowSum
from attndsl.ir.variant import Variant


@dataclass(frozen=True)
class Derivation:
    """What is derived of a variant, once for all its kernels.

    `program` is the variant after its passes, `transpose` makes its mask as keys see it (`passes.transpose_mask`).
    `sums` are further sums of its rows that a call returns.
    """

    program: Variant
    transpose: Callable[[], Expr]
    sums: tuple[RowSum, ...] = ()

    @cached_property
    def transposed_mask(self) -> Expr:
        return self.transpose()

    @cached_property
    def streaming(self) -> Streaming:
        found = stream(self.program)
        if isinstance(found, Refusal):
            raise UnsupportedError(found.reasons)
        return found

    @cached_property
    def derivative(self) -> Backward | Refusal:
        found = differentiate(self.program, self.streaming)
        return found if isinstance(found, Refusal) else with_sums(found, self.sums)

    @property
    def backward(self) -> Backward:
        if isinstance(self.derivative, Refusal):
            raise UnsupportedError(self.derivative.reasons)
        return self.derivative

    @property
    def maximum(self) -> str:
        """The name of the row value that holds the largest score; of its own where no statistic is one."""
        return next((part.name for part in self.streaming.statistics if is_maximum(part)), "m_i_peak")

    @cached_property
    def has_parts(self) -> bool:
        """Whether outputs over parts of the keys, each normalized on its own, can be joined by their `lse`."""
        kin, streaming = exponential(self.program.normalizer), self.streaming
        if kin is None or kin.sinks is None or streaming.lse is None or self.program.weight is not build.WEIGHT:
            return False
        has_sinks = streaming.sink is not None and not any(isinstance(sink, Const) for sink in kin.sinks)
        return (not kin.sinks or has_sinks) and len(streaming.passes) == len(streaming.terms) == 1

    @property
    def statistics_kernels(self) -> tuple[str, ...]:
        """One for each pass over the keys before the one that sums the output."""
        alone = self.streaming.passes[:-1] if self.streaming.terms else self.streaming.passes
        return tuple(f"statistics_{number}" if number else "statistics" for number, _ in enumerate(alone))

    @property
    def backward_kernels(self) -> tuple[str, ...]:
        """Those the derivative takes; asks for the derivative only where one is known."""
        rows = ("backward_rows",) if self.backward.sums else ()
        structures = {structure_of(load) for load in self.cotangents if isinstance(load, Load)}
        diagonal = ("backward_diagonal",) if Structure.DIAGONAL in structures else ()
        pairs = ("backward_pairs",) if Structure.PAIRS in structures else ()
        return (*rows, "backward_dq", "backward_dkv", *diagonal, *pairs)

    @property
    def native_kernels(self) -> tuple[str, ...]:
        """The names of the C++ kernels. `backward` leaves in one walk what those of q and of k and v leave in two."""
        outputs = ("forward", *(("row_outputs",) if self.sums else ()))
        if isinstance(self.derivative, Refusal):
            return outputs
        found = self.backward_kernels
        place = found.index("backward_dq")
        return (*outputs, *found[:place], "backward", *found[place:])

    def kernels_of(self, target: Target) -> tuple[str, ...]:
        """The names of all kernels of a target, in the order they run."""
        return self.native_kernels if target is Target.CPP else self.kernels

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names of the Triton kernels."""
        has_backward = isinstance(self.derivative, Backward)
        outputs = ("row_outputs",) if self.sums else ()
        return (*self.statistics_kernels, "forward", *outputs, *(self.backward_kernels if has_backward else ()))

    @cached_property
    def final(self) -> Expr:
        """The final score as later expressions read it: the score expression itself, which a kernel has named."""
        score = self.program.score
        return score if scope_of(axes_of(score)) is Scope.TILE else build.SCORE

    def over_products(self, expr: Expr) -> Expr:
        """An expression over the final score as one over the scaled product."""
        return substitute(expr, {build.SCORE: self.final})

    @cached_property
    def cotangents(self) -> dict[Expr, Expr]:
        """Derivatives, pair by pair, by the scaled product (`build.SCORE`) and by every float element that is read."""
        program, backward = self.program, self.backward
        loads = tuple(_float_loads(program.score))
        found = dict(cotangents(program.score, self.over_products(backward.dscore), (build.SCORE, *loads)))
        for load, value in backward.dloads:
            more = self.over_products(value)
            found[load] = build.apply(Op.ADD, found[load], more) if load in found else more
        return found

    def structures(self, spec: Specialisation) -> dict[str, Structure]:
        """What the sums of gradients are taken over, by name."""
        return {name: which for which in Structure for name in self.captured(spec, which)} if spec.gradients else {}

    def captured(self, spec: Specialisation, structure: Structure) -> dict[str, Load]:
        """The elements of the tensors whose gradients are asked for, of one structure, by the names of their sums."""
        loads = (load for load in self.cotangents if isinstance(load, Load) and load.tensor in spec.gradients)
        named = {f"d_{load.tensor}_{number}": load for number, load in enumerate(loads)}
        return {name: load for name, load in named.items() if structure_of(load) is structure}


def _float_loads(score: Expr) -> Iterator[Load]:
    return (node for node in postorder(score) if isinstance(node, Load) and node.dtype.is_float)

"""The derivative of a variant's output by its scores and captured tensors, pair by pair.

In: a variant and its `Streaming`. Out: a `Backward`, or the reasons why there is none. Expressions are over
`Input(SCORE)` = the final score, `Input(DWEIGHT)` = the derivative by the final weight of the pair, coordinates,
captures, the `RowValue`s the forward keeps, and two more: `delta`, the row's sum of DWEIGHT times the final weight
(the product of output and its gradient, where nothing but the output has one), and `dlse`, the gradient of `lse`.
"""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.analysis.streaming import Refusal, Streaming
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Load
from attndsl.ir.ops import Op
from attndsl.ir.variant import Variant

DELTA = build.row_value("delta")
DLSE = build.row_value("dlse")


@dataclass(frozen=True, slots=True)
class RowFormula:
    """A value of each row under the name of its `RowValue`."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Backward:
    """Derivatives, in the order they are computed.

    `sums`: further sums over the live keys of each row, of these integrands: one more pass over the keys, none for
    softmax and its kin. `rows`: values once a row, from what is known then; later ones may read earlier ones.
    `kept` are the row values that `weight`, `dscore` and `dloads` read, apart from coordinates and captures.

    `weight` is the final weight, for the gradient of v. `dscore` is the derivative by the final score of the pair,
    which goes on through the score mods to q, k and captures. `dloads` are derivatives by captured elements that the
    normalizer and the weight mods read, pair by pair; `drows` those by elements that are alike along the keys, where
    they are known row by row and need no pass: an element may stand in both, then the two add.
    All are about live pairs; elsewhere they are not evaluated, or selected away. `drows` hold for every row, live or
    not.
    """

    sums: tuple[RowFormula, ...]
    rows: tuple[RowFormula, ...]
    kept: tuple[str, ...]
    weight: Expr
    dscore: Expr
    dloads: tuple[tuple[Load, Expr], ...]
    drows: tuple[tuple[Load, Expr], ...]
    notes: tuple[str, ...] = ()


def differentiate(variant: Variant, streaming: Streaming) -> Backward | Refusal:
    """The derivative of a variant that streams."""
    net = build.row_value("net")
    dscore = build.apply(Op.MUL, streaming.weight, build.apply(Op.SUB, build.DWEIGHT, net))
    return Backward(
        sums=(),
        rows=(RowFormula("net", build.apply(Op.SUB, DELTA, DLSE)),),
        kept=("lse", "net"),
        weight=streaming.weight,
        dscore=dscore,
        dloads=(),
        drows=(),
    )

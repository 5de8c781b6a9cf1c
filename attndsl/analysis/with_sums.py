"""Gradients of further sums over the rows, on top of that of the output.

In: a `Backward` and the `RowSum`s a call returns beside its output. Out: the `Backward` of both. A sum of terms t(w)
adds t'(w) times its own gradient to the derivative by the weight of a pair; the gradient of the sum `entropy` is the
`RowValue` of the name `dentropy`, the sum itself that of the name `entropy`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from attndsl.analysis.arithmetic import add, mul, total
from attndsl.analysis.backward import DELTA, Backward, RowFormula
from attndsl.analysis.calculus import cotangents
from attndsl.ir import build
from attndsl.ir.nodes import Expr, RowValue
from attndsl.ir.rewrite import postorder, substitute
from attndsl.ir.row_sums import RowSum

WHOLE_DELTA = build.row_value("delta_all")


def with_sums(backward: Backward, sums: tuple[RowSum, ...]) -> Backward:
    """The derivative of the output and of these sums."""
    if not sums:
        return backward
    added: list[Expr] = []
    flows: list[Expr] = []
    further: list[RowFormula] = []
    for row_sum in sums:
        weighed, whole = substitute(row_sum.term, {build.WEIGHT: backward.weight}), build.row_value(row_sum.name)
        slope = cotangents(row_sum.term, build.real(1.0), [build.WEIGHT])[build.WEIGHT]
        slope = substitute(slope, {build.WEIGHT: backward.weight})
        gradient = build.row_value(f"d{row_sum.name}")
        added.append(mul(gradient, slope))
        product = mul(slope, backward.weight)
        if product is not weighed:
            whole = build.row_value(f"{row_sum.name}_slope")
            further.append(RowFormula(whole.name, product))
        flows.append(mul(gradient, whole))
    by_pair: dict[Expr, Expr] = {build.DWEIGHT: add(build.DWEIGHT, total(added))}
    by_row: dict[Expr, Expr] = {DELTA: WHOLE_DELTA}
    dscore = substitute(backward.dscore, by_pair)
    dloads = tuple((load, substitute(value, by_pair)) for load, value in backward.dloads)
    rows = (RowFormula(formula.name, substitute(formula.value, by_row)) for formula in backward.rows)
    return replace(
        backward,
        sums=(*(replace(one, value=substitute(one.value, by_pair)) for one in backward.sums), *further),
        rows=(RowFormula(WHOLE_DELTA.name, add(DELTA, total(flows))), *rows),
        kept=_row_values(backward.weight, dscore, *(value for _, value in dloads)),
        dscore=dscore,
        dloads=dloads,
        drows=tuple((load, substitute(value, by_row)) for load, value in backward.drows),
    )


def _row_values(*roots: Expr) -> tuple[str, ...]:
    names: Iterable[str] = (node.name for node in postorder(*roots) if isinstance(node, RowValue))
    return tuple(dict.fromkeys(names))

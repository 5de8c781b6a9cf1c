"""The kernels of a variant: what each of them computes.

In: a variant after its passes, what was derived of it, and a `Specialisation`. Out: a `KernelPlan` for each.

    forward        statistics and output of a row, in one pass over the keys where they stream
    statistics     the statistics alone, where the output needs all of them first
    row_outputs    sums of a row that a call returns beside its output
    backward_rows  further sums of a row that its derivative needs
    backward_dq    the gradient of q, and of captures that are alike along the keys
    backward_dkv   the gradients of k and v, and of captures that are alike along the queries
    backward_diagonal, backward_pairs
                   gradients of captures by the distance of query and key, and of all others, tile by tile
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from attndsl.analysis.bounds import choose_strategy
from attndsl.analysis.exponential import exponential
from attndsl.analysis.natural import natural_divisions
from attndsl.analysis.proofs import row_proofs
from attndsl.analysis.statistics import Kind, Statistic
from attndsl.analysis.streaming import Refusal, Streaming
from attndsl.analysis.structure import Structure
from attndsl.codegen.derivation import Derivation
from attndsl.codegen.names import kernel_names
from attndsl.codegen.placement import Placement, Placer, Side, origin_of
from attndsl.codegen.plan import (
    Gather,
    KernelPlan,
    Operand,
    Product,
    Specialisation,
    Target,
    branch_loads,
    used_params,
)
from attndsl.codegen.walk import KeyWalk, plan_query_walk, plan_walk
from attndsl.diagnostics import CallError, UnsupportedError, fail
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, RowValue
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, substitute
from attndsl.ir.types import DType

SPLIT = build.scalar("%split", DType.I64)
"""The number of a program among those that share the keys of a tile; no parameter can have its name."""

FINAL_SCORE = "s"
"""The name of the final score of a pair in every kernel."""


def plan_kernel(derivation: Derivation, name: str, spec: Specialisation) -> KernelPlan:
    """The plan of one of `derivation.kernels_of`; refused with reasons when the variant is outside what kernels do."""
    if name.startswith("backward") and isinstance(derivation.derivative, Refusal):
        raise UnsupportedError(derivation.derivative.reasons)
    if name not in derivation.kernels_of(spec.target):
        known = ", ".join(f"`{kernel}`" for kernel in derivation.kernels_of(spec.target))
        message = f"there is no kernel `{name}`"
        raise fail(CallError, "unknown-kernel", message, None, help=f"the kernels are {known}")
    if name == "forward":
        return (_native_forward if spec.target is Target.CPP else _forward)(derivation, spec)
    if name in derivation.statistics_kernels:
        number = derivation.statistics_kernels.index(name)
        return _statistics(derivation, name, number, spec)
    if name == "row_outputs":
        return _row_outputs(derivation, spec)
    return (_NATIVE_BACKWARD if spec.target is Target.CPP else _BACKWARD)[name](derivation, spec)


def _statistics(derivation: Derivation, name: str, number: int, spec: Specialisation) -> KernelPlan:
    """One pass of statistics; after the last the log of the divisor is known, where there is one."""
    streaming = derivation.streaming
    statistics = _over_products(derivation, streaming.passes[number])
    is_last = number + 1 == len(streaming.passes)
    at_end = (streaming.lse,) if is_last and streaming.lse is not None else ()
    return _planned(derivation, name, spec, Side.QUERIES, statistics, at_end=at_end)


def _forward(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    streaming, products = derivation.streaming, _outputs(derivation)
    peak = (Statistic("m_i_peak", Kind.MAX, derivation.final),) if derivation.maximum == "m_i_peak" else ()
    if not streaming.terms:
        return _planned(derivation, "forward", spec, Side.QUERIES, peak, products)
    statistics = (*peak, *_over_products(derivation, streaming.passes[-1] if streaming.passes else ()))
    return _planned(derivation, "forward", spec, Side.QUERIES, statistics, products, _after_walk(streaming))


def _outputs(derivation: Derivation) -> tuple[Product, ...]:
    """The accumulators of the output: a term each, or the weight."""
    streaming, final = derivation.streaming, derivation.over_products
    online = tuple(
        Product(f"acc_{number}" if number else "acc", final(term.value), Operand.VALUE, term.rescale)
        for number, term in enumerate(streaming.terms)
    )
    return online or (Product("acc", final(streaming.weight), Operand.VALUE),)


def _after_walk(streaming: Streaming) -> tuple[Expr, ...]:
    """What a forward computes of a row after its walk: the factors of its terms, and `lse`."""
    return (*(term.factor for term in streaming.terms), *(() if streaming.lse is None else (streaming.lse,)))


def _native_forward(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    """The forward in one kernel, which passes over the keys of a tile as often as its statistics ask for."""
    streaming = derivation.streaming
    statistics = _over_products(derivation, streaming.statistics)
    outputs, at_end = _outputs(derivation), _after_walk(streaming)
    planned = _planned(derivation, "forward", spec, Side.QUERIES, statistics, outputs, at_end)
    sink = () if streaming.sink is None else (streaming.sink,)
    last = Placer(derivation.program, planned.symbols).place(sink)
    # With the values of mask and score alone named: the compiler finds those of weights that are computed twice.
    placed = Placer(derivation.program, planned.symbols).place((derivation.program.score,), (derivation.program.mask,))
    return replace(planned, placement=placed, kept=(), last=last)


def _row_sums(derivation: Derivation) -> tuple[Statistic, ...]:
    weight: dict[Expr, Expr] = {build.WEIGHT: derivation.streaming.weight}
    return tuple(Statistic(one.name, Kind.SUM, substitute(one.term, weight)) for one in derivation.sums)


def _row_outputs(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    sums = _over_products(derivation, _row_sums(derivation))
    return _planned(derivation, "row_outputs", spec, Side.QUERIES, sums)


def _backward_rows(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    sums = tuple(Statistic(formula.name, Kind.SUM, formula.value) for formula in derivation.backward.sums)
    return _planned(derivation, "backward_rows", spec, Side.QUERIES, _over_products(derivation, sums))


def _backward_dq(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    sums = _gradient_sums(derivation, spec, Structure.ROW)
    return _planned(derivation, "backward_dq", spec, Side.QUERIES, sums, _of_queries(derivation))


def _backward_dkv(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    """A program keeps keys; of the native kernel it keeps queries, and a task of several programs sums for the keys."""
    sums = _gradient_sums(derivation, spec, Structure.COLUMN)
    side = Side.QUERIES if spec.target is Target.CPP else Side.KEYS
    return _planned(derivation, "backward_dkv", spec, side, sums, _of_keys(derivation))


def _backward(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    structures = (Structure.ROW, Structure.COLUMN, Structure.DIAGONAL)
    sums = tuple(part for which in structures for part in _gradient_sums(derivation, spec, which))
    products = (*_of_keys(derivation), *_of_queries(derivation))
    return _planned(derivation, "backward", spec, Side.QUERIES, sums, products)


def _of_queries(derivation: Derivation) -> tuple[Product, ...]:
    return (Product("dq", derivation.cotangents[build.SCORE], Operand.KEY),)


def _of_keys(derivation: Derivation) -> tuple[Product, ...]:
    return (
        Product("dv", derivation.over_products(derivation.backward.weight), Operand.GRADIENT),
        Product("dk", derivation.cotangents[build.SCORE], Operand.QUERY),
    )


def _backward_diagonal(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    """Tiles of a diagonal are a program; of the native kernel they are like any others."""
    sums = _gradient_sums(derivation, spec, Structure.DIAGONAL)
    gather = Gather.WALK if spec.target is Target.CPP else Gather.DIAGONAL
    return _planned(derivation, "backward_diagonal", spec, Side.QUERIES, sums, gather=gather)


def _backward_pairs(derivation: Derivation, spec: Specialisation) -> KernelPlan:
    sums = _gradient_sums(derivation, spec, Structure.PAIRS)
    return _planned(derivation, "backward_pairs", spec, Side.QUERIES, sums, gather=Gather.PAIRS)


_BACKWARD = {
    "backward_rows": _backward_rows,
    "backward_dq": _backward_dq,
    "backward_dkv": _backward_dkv,
    "backward_diagonal": _backward_diagonal,
    "backward_pairs": _backward_pairs,
}
_NATIVE_BACKWARD = {**_BACKWARD, "backward": _backward}


def _over_products(derivation: Derivation, statistics: tuple[Statistic, ...]) -> tuple[Statistic, ...]:
    return tuple(replace(part, integrand=derivation.over_products(part.integrand)) for part in statistics)


def _gradient_sums(derivation: Derivation, spec: Specialisation, structure: Structure) -> tuple[Statistic, ...]:
    """Sums over the walk of the derivatives by captured elements."""
    captured = derivation.captured(spec, structure)
    return tuple(Statistic(name, Kind.SUM, derivation.cotangents[load]) for name, load in captured.items())


def _planned(
    derivation: Derivation,
    name: str,
    spec: Specialisation,
    side: Side,
    statistics: tuple[Statistic, ...] = (),
    products: tuple[Product, ...] = (),
    at_end: tuple[Expr, ...] = (),
    gather: Gather = Gather.WALK,
) -> KernelPlan:
    """The plan of a kernel that computes these."""
    program, streaming = derivation.program, derivation.streaming
    if spec.split:
        at_end, streaming = _with_one_sink(derivation, at_end)
    # Along the walk what is measured from a maximum is measured from what it grows to at the tile at hand.
    grown: dict[Expr, Expr] = {part.value: part.grown for part in statistics if part.kind is Kind.MAX}
    statistics = tuple(replace(part, integrand=substitute(part.integrand, grown)) for part in statistics)
    products = tuple(replace(part, value=substitute(part.value, grown)) for part in products)
    peaks = [part.integrand for part in statistics if part.kind is Kind.MAX]
    rest = [*(part.value for part in products), *(part.integrand for part in statistics if part.kind is not Kind.MAX)]
    moves = [move for move in (*(p.rescale for p in products), *(s.rescale for s in statistics)) if move is not None]
    solves = (part.solve for part in statistics if part.solve is not None)
    bracket = tuple(part for solve in solves for part in (solve.total, solve.lower, solve.upper))
    roots = (program.mask, program.score, *peaks, *rest, *moves, *at_end, *bracket)
    known = {value.name for value in postorder(*roots) if isinstance(value, RowValue)}
    own = {part.name for part in statistics} | {part.grown.name for part in statistics}
    params = used_params(program, roots)
    symbols = kernel_names((param.name for param in params), known | own)
    if spec.split:
        symbols[SPLIT.name] = "split"
    hints = _hints(products)
    placer = Placer(program, symbols, side, hints, frozenset(own), taken=known | own)
    placement = placer.place((program.score,), (program.mask,), later=(*peaks, *rest))
    if derivation.final is not build.SCORE:
        placer.names[derivation.final] = FINAL_SCORE
    sink = () if streaming.sink is None or not at_end else (streaming.sink,)
    return KernelPlan(
        kernel=name,
        side=side,
        variant=program,
        spec=spec,
        streaming=streaming,
        walk=_walk(derivation, spec, side),
        mask=program.mask,
        score=program.score,
        final=derivation.final,
        statistics=statistics,
        products=products,
        kept=tuple(sorted(known - own)),
        at_end=at_end,
        bracket=bracket,
        params=params,
        symbols=symbols,
        placement=placement,
        peaks=placer.place(peaks, later=rest),
        rest=_with_moves(placer.place(rest), placer.place(moves)),
        last=Placer(program, symbols, side, _divisors(at_end), taken=placer.taken).place((*at_end, *sink, *bracket)),
        names=placer.names,
        rows=row_proofs(program.mask, program.score) if spec.fast and not spec.split else (),
        cheap_division=natural_divisions(roots) if spec.fast else frozenset(),
        branch_loads=branch_loads(program.score, *peaks, *rest),
        gather=gather,
        structures=derivation.structures(spec),
        mask_origin=origin_of(program, program.mask),
        score_origin=origin_of(program, program.score),
    )


def _with_one_sink(derivation: Derivation, at_end: tuple[Expr, ...]) -> tuple[tuple[Expr, ...], Streaming]:
    """Of programs that share the keys of a tile, the first has the sinks."""
    kin, streaming = exponential(derivation.program.normalizer), derivation.streaming
    if kin is None or streaming.sink is None:
        return at_end, streaming
    is_first = build.apply(Op.EQ, SPLIT, build.integer(0))
    own: dict[Expr, Expr] = {
        sink: build.apply(Op.WHERE, is_first, sink, build.real(-math.inf)) for sink in kin.sinks or ()
    }
    lse = None if streaming.lse is None else substitute(streaming.lse, own)
    streaming = replace(streaming, sink=substitute(streaming.sink, own), lse=lse)
    return tuple(substitute(value, own) for value in at_end), streaming


def _with_moves(rest: Placement, moves: Placement) -> Placement:
    """What is computed of pairs, and what rescaling needs before the walk: in it a row's value is printed whole."""
    return replace(rest, program=(*rest.program, *moves.program), own=(*rest.own, *moves.own))


def _divisors(values: Iterable[Expr]) -> dict[Expr, str]:
    """What rows are divided by has a name."""
    divided = (node for node in postorder(*values) if isinstance(node, Apply) and node.op is Op.DIV)
    return {node.args[1]: "divisor" for node in divided if not isinstance(node.args[1], RowValue)}


def _hints(products: tuple[Product, ...]) -> dict[Expr, str]:
    """Names of the values of products: `ds` for derivatives by the score, `p` for weights."""
    weights = [part.value for part in products if part.name not in ("dq", "dk")]
    derivatives = {part.value: "ds" for part in products if part.name in ("dq", "dk")}
    return derivatives | {value: f"p_{place}" if place else "p" for place, value in enumerate(dict.fromkeys(weights))}


def _walk(derivation: Derivation, spec: Specialisation, side: Side) -> KeyWalk:
    if side is Side.QUERIES:
        mask = derivation.program.mask
        return plan_walk(mask, choose_strategy(mask) if spec.strategy is None else spec.strategy)
    mask = derivation.transposed_mask
    return plan_query_walk(mask, choose_strategy(mask) if spec.strategy is None else spec.strategy)

"""What must hold for a call to have a meaning, and which of it is proven.

In: a variant and the ranges, scalars, summaries and layouts of a call. Out: a `Verdict`: what is provably wrong, what
intervals leave open (the runtime evaluates those densely), and the facts kernels choose their integer width by.

A load is read in bounds, a divisor is not 0 and a shift is in 0..63 on live pairs and taken branches; every integer
fits in 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

import numpy as np

from attndsl.analysis.intervals import Box, Known, evaluate_exactly, whole
from attndsl.analysis.reach import Guards, ways_to_reach
from attndsl.analysis.values import INT64_MAX, INT64_MIN, Interval, Truth, Value
from attndsl.diagnostics import Diagnostic
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Coord, Expr, Input, Load, Reduce, Scalar, children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Coordinate
from attndsl.ir.variant import Variant

INT32 = 2**31 - 1


class Kind(Enum):
    INDEX = auto()
    DIVISOR = auto()
    SHIFT = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Obligation:
    """`operand` of `node` must be in range wherever `node` is reached; `size` is that of the dimension of an index."""

    kind: Kind
    node: Load | Apply
    operand: Expr
    reached: tuple[Guards, ...]
    dimension: int = 0
    size: int = 0

    @property
    def violation(self) -> Expr:
        """The boolean that is true where the obligation is broken."""
        match self.kind:
            case Kind.DIVISOR:
                return build.apply(Op.EQ, self.operand, build.integer(0))
            case Kind.INDEX | Kind.SHIFT:
                below = build.apply(Op.LT, self.operand, build.integer(0))
                limit = 64 if self.kind is Kind.SHIFT else self.size
                return build.disjunction([below, build.apply(Op.GE, self.operand, build.integer(limit))])

    @property
    def depends_on_data(self) -> bool:
        """Whether the operand is computed from scores, weights or row statistics: no host can check it beforehand."""
        return _depends_on_data(self.operand)

    def holds(self, value: Interval) -> bool:
        """Whether no integer of the interval breaks it."""
        lo, hi = value.extremes
        match self.kind:
            case Kind.DIVISOR:
                return lo > 0 or hi < 0
            case Kind.INDEX:
                return lo >= 0 and hi < self.size
            case Kind.SHIFT:
                return lo >= 0 and hi < 64


@dataclass(frozen=True, slots=True)
class Layout:
    """How a captured tensor lies in memory, strides in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def last_offset(self) -> int:
        """The largest element offset from the first element."""
        pairs = zip(self.shape, self.strides, strict=True)
        return sum((size - 1) * abs(stride) for size, stride in pairs) if all(self.shape) else 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known before a call runs.

    `refusals`: provably wrong. `undecided`: not provable from ranges; settle them by evaluation. `fits_int32`: every
    integer, coordinate and element offset does. `reads_in_bounds`: every index is in bounds on every pair, dead ones
    and branches not taken included. `nonneg`: positions are not negative and scalar divisors are positive.
    """

    refusals: tuple[Diagnostic, ...] = ()
    undecided: tuple[Obligation, ...] = ()
    fits_int32: bool = True
    reads_in_bounds: bool = True
    nonneg: bool = True


def call_box(batch: int, heads: int, q_len: int, kv_len: int, q_offset: tuple[int, int] = (0, 0)) -> Box:
    """All pairs of a call, as one box; `q_offset` is the smallest and the largest."""
    return whole(
        {
            Coordinate.B: (0, batch - 1),
            Coordinate.H: (0, heads - 1),
            Coordinate.Q_IDX: (q_offset[0], q_offset[1] + q_len - 1),
            Coordinate.KV_IDX: (0, kv_len - 1),
            Coordinate.Q_LEN: (q_len, q_len),
            Coordinate.KV_LEN: (kv_len, kv_len),
        }
    )


def obligations(variant: Variant, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Obligation, ...]:
    """Everything that must hold, with how it is reached."""
    return _obligations(variant, tuple(shapes.items()))


@lru_cache(maxsize=64)
def _obligations(variant: Variant, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[Obligation, ...]:
    reached, by_name = ways_to_reach(variant), dict(shapes)
    return tuple(found for node in reached for found in _of_node(node, reached[node], by_name))


def check_call(variant: Variant, box: Box, known: Known, layouts: Mapping[str, Layout]) -> Verdict:
    """Decide every obligation of a call that ranges can decide."""
    if any(lo > hi for lo, hi in (interval.extremes for interval in box.ranges.values())):
        return Verdict()
    found = obligations(variant, {name: layout.shape for name, layout in layouts.items()})
    values = evaluate_exactly(variant.roots, box, known)
    doubtful = [o for o in found if not o.holds(_interval(values[o.operand]))]
    unproven = [o for o in doubtful if not _holds_where_reached(o, box, known)]
    refused: list[Diagnostic] = list(_overflows(variant, values, box, known))
    undecided: list[Obligation] = []
    for obligation in unproven:
        refusal = _refusal(variant, obligation, box, known)
        if refusal is None:
            undecided.append(obligation)
        else:
            refused.append(refusal)
    return Verdict(
        tuple(dict.fromkeys(refused)),
        tuple(undecided),
        fits_int32=_fits_int32(box, values, layouts),
        reads_in_bounds=not any(o.kind is Kind.INDEX for o in doubtful),
        nonneg=_nonneg(found, box, values),
    )


def broken(variant: Variant, obligation: Obligation, notes: tuple[str, ...], value: int | None = None) -> Diagnostic:
    """The diagnostic for an obligation that does not hold."""
    from attndsl.ir.printer import print_expr

    text = print_expr(obligation.node)
    operand = print_expr(obligation.operand)
    spans = variant.origins
    span = spans.first(obligation.operand) or spans.first(obligation.node)
    match obligation.kind:
        case Kind.DIVISOR:
            help_ = "guard it: `where(divisor != 0, ..., ...)`, or make the divisor at least 1 with `max(divisor, 1)`"
            return Diagnostic("division-by-zero", f"`{text}` divides by zero", span, notes, help_)
        case Kind.SHIFT:
            help_ = "bound it: `clamp(shift, 0, 63)`"
            return Diagnostic("shift-out-of-range", f"`{text}` shifts by `{operand}`, not 0 to 63", span, notes, help_)
    assert isinstance(obligation.node, Load)
    code = "index-negative" if value is not None and value < 0 else "index-out-of-bounds"
    what = f"index `{operand}` of `{obligation.node.tensor}` leaves dimension {obligation.dimension}"
    help_ = "mask the pairs that read outside, or clamp the index; negative indices do not wrap"
    if isinstance(obligation.operand, Coord):
        help_ = f"pass a tensor with an element for every `{operand}` of the call, or clamp the index"
    return Diagnostic(code, f"{what}, which has size {obligation.size}", span, notes, help_)


def _of_node(node: Expr, reached: tuple[Guards, ...], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Obligation]:
    match node:
        case Load(tensor=tensor, indices=indices):
            for dimension, (index, size) in enumerate(zip(indices, shapes[tensor], strict=True)):
                yield Obligation(Kind.INDEX, node, index, reached, dimension, size)
        case Apply(op=Op.FLOORDIV | Op.MOD, args=(_, divisor)) if divisor.dtype.is_int:
            yield Obligation(Kind.DIVISOR, node, divisor, reached)
        case Apply(op=Op.SHL | Op.SHR, args=(_, shift)):
            yield Obligation(Kind.SHIFT, node, shift, reached)


def _holds_where_reached(obligation: Obligation, box: Box, known: Known) -> bool:
    """Whether ranges prove it in every way of reaching it."""
    for guards in obligation.reached:
        values = evaluate_exactly((obligation.operand, *guards), box, known)
        if any(not _truth(values[guard]).can_be_true.any() for guard in guards):
            continue
        values = evaluate_exactly((obligation.operand,), box, known, guards)
        if not obligation.holds(_interval(values[obligation.operand])):
            return False
    return True


def _refusal(variant: Variant, obligation: Obligation, box: Box, known: Known) -> Diagnostic | None:
    """The diagnostic for an obligation that is broken for certain, or that nobody could check before the call."""
    value = evaluate_exactly((obligation.operand,), box, known)[obligation.operand]
    found = _interval(value)
    lo, hi = found.extremes
    ranges = (f"it takes values from {lo} to {hi} over all pairs",) if lo < hi else ()
    if obligation.depends_on_data:
        return broken(variant, obligation, ("it depends on the score, so it must be bounded where it is written",))
    witness = _witness(obligation, box, known)
    if witness is None:
        return None
    where, value_there = witness
    return broken(variant, obligation, (f"it is {value_there} at {where}", *ranges), value_there)


def _witness(obligation: Obligation, box: Box, known: Known) -> tuple[str, int] | None:
    """A pair among the corners of the box on which the obligation is reached and broken for certain."""
    corners = _corners(box)
    everywhere = np.ones(corners.ranges[Coordinate.B].lo.shape, bool)
    if _spread(box.ranges[Coordinate.Q_IDX]) != int(box.ranges[Coordinate.Q_LEN].lo.max()):
        # Offsets differ between batches: not every corner is a pair of the call.
        return None
    violation = obligation.violation
    for guards in obligation.reached:
        values = evaluate_exactly((obligation.operand, violation, *guards), corners, known)
        certain = [~_truth(values[node]).can_be_false for node in (violation, *guards)]
        hit = np.logical_and.reduce(np.broadcast_arrays(everywhere, *certain))
        if hit.any():
            at = int(np.argmax(hit))
            found = np.broadcast_to(_interval(values[obligation.operand]).lo, hit.shape)
            return _position(corners, at), int(found.flat[at])
    return None


def _corners(box: Box) -> Box:
    """The corners of a box, as points side by side."""
    names = [c for c in Coordinate if c not in (Coordinate.Q_LEN, Coordinate.KV_LEN)]
    ranges = dict(box.ranges)
    for place, name in enumerate(names):
        interval = box.ranges[name]
        ends = [interval.hi if corner >> place & 1 else interval.lo for corner in range(1 << len(names))]
        point = np.concatenate(ends)
        ranges[name] = Interval(point, point)
    return Box(ranges)


def _position(corners: Box, at: int) -> str:
    names = (Coordinate.B, Coordinate.H, Coordinate.Q_IDX, Coordinate.KV_IDX)
    return ", ".join(f"{name.value} = {int(corners.ranges[name].lo.flat[at])}" for name in names)


def _overflows(variant: Variant, values: Mapping[Expr, Value], box: Box, known: Known) -> Iterator[Diagnostic]:
    """Integers that may leave 64 bits: the innermost only, what they are part of follows."""
    beyond = {node for node, value in values.items() if isinstance(value, Interval) and not _within(value)}
    if not beyond:
        return
    from attndsl.ir.printer import print_expr

    reached = ways_to_reach(variant)
    innermost = [node for node in values if node in beyond and not beyond.intersection(children(node))]
    for node in innermost:
        if not _fits_where_reached(node, reached[node], box, known):
            value = _interval(values[node])
            lo, hi = value.extremes
            does = "leaves" if lo == hi else "may leave"
            yield Diagnostic(
                "integer-overflow",
                f"`{print_expr(node)}` {does} the range of 64-bit integers",
                variant.origins.first(node),
                (f"it is {lo}" if lo == hi else f"it takes values from {lo} to {hi}",),
                "bound its operands with `clamp`, or compute it in floats" if children(node) else None,
            )


def _fits_where_reached(node: Expr, reached: tuple[Guards, ...], box: Box, known: Known) -> bool:
    return all(_within(_interval(evaluate_exactly((node,), box, known, guards)[node])) for guards in reached)


def _within(value: Interval, lo: int = INT64_MIN, hi: int = INT64_MAX) -> bool:
    least, greatest = value.extremes
    return least >= lo and greatest <= hi


def _fits_int32(box: Box, values: Mapping[Expr, Value], layouts: Mapping[str, Layout]) -> bool:
    integers = (value for value in (*box.ranges.values(), *values.values()) if isinstance(value, Interval))
    return all(_within(value, -INT32, INT32) for value in integers) and all(
        layout.last_offset <= INT32 for layout in layouts.values()
    )


def _spread(interval: Interval) -> int:
    """How many integers the range of a coordinate holds."""
    lo, hi = interval.extremes
    return hi - lo + 1


def _nonneg(found: tuple[Obligation, ...], box: Box, values: Mapping[Expr, Value]) -> bool:
    divisors = (o.operand for o in found if o.kind is Kind.DIVISOR and isinstance(o.operand, Scalar))
    positive = all(_interval(values[divisor]).extremes[0] >= 1 for divisor in divisors)
    return positive and box.ranges[Coordinate.Q_IDX].extremes[0] >= 0


def _depends_on_data(node: Expr) -> bool:
    return any(isinstance(below, Input | Reduce) for below in postorder(node))


def _interval(value: Value) -> Interval:
    assert isinstance(value, Interval)
    return value


def _truth(value: Value) -> Truth:
    assert isinstance(value, Truth)
    return value

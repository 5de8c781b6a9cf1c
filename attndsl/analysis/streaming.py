"""How a normalizer streams over the keys: which row statistics are kept, and what divides the row at the end.

In: the normalizer of a variant, mathematics over the final score and row statistics. Out: a `Streaming`, or the reasons
why none is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from attndsl.analysis.axes import axes_of
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Input, Reduce
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import Axis, Reduction


@dataclass(frozen=True, slots=True)
class Streaming:
    """Weights exp(s - m) / (sum exp(s - m) + exp(sink - m)) with m the running maximum; no sink, no last term.

    The statistics rescale by exp(m - m') when the maximum grows, so one pass over the keys suffices.
    """

    sink: Expr | None = None


def stream(normalizer: Expr) -> Streaming | None:
    """The streaming form of a normalizer, by its structure; `None` when it is not of the softmax family."""
    shift = build.row(Reduction.MAX, build.SCORE)
    weight = build.apply(Op.EXP, build.apply(Op.SUB, build.SCORE, shift))
    total = build.row(Reduction.SUM, weight)
    match normalizer:
        case Apply(op=Op.DIV, args=(numerator, divisor)) if numerator is weight:
            if divisor is total:
                return Streaming()
            return _with_sink(divisor, total, shift)
        case _:
            return None


def _with_sink(divisor: Expr, total: Expr, shift: Expr) -> Streaming | None:
    if not (isinstance(divisor, Apply) and divisor.op is Op.ADD and total in divisor.args):
        return None
    extra = divisor.args[0] if divisor.args[1] is total else divisor.args[1]
    match extra:
        case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(sink, shifted)),)) if shifted is shift:
            return Streaming(sink) if _is_row_value(sink) else None
        case Apply(op=Op.EXP, args=(Apply(op=Op.NEG, args=(shifted,)),)) if shifted is shift:
            return Streaming(build.real(0.0))
        case _:
            return None


def _is_row_value(sink: Expr) -> bool:
    """Free of the score, of statistics and of the key."""
    return Axis.K not in axes_of(sink) and not any(isinstance(node, Input | Reduce) for node in postorder(sink))

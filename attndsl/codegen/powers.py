"""Powers that are multiplied out: `x ** 2.0` is a product; a power in general takes a logarithm and an exponential.

In: an expression. Out: the exponent, where it is that small.
"""

from __future__ import annotations

from attndsl.ir.nodes import Apply, Const
from attndsl.ir.ops import Op

MOST = 4


def small_exponent(node: Apply) -> int | None:
    """The exponent of a power that is multiplied out: a whole one from 2 to `MOST`."""
    match node:
        case Apply(op=Op.POW, args=(_, Const(value=float(exponent)))) if exponent in range(2, MOST + 1):
            return int(exponent)
        case _:
            return None

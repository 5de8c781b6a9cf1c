"""What a row solve binds, and what is one value to a row.

In: expressions. Out: which of their nodes hold a threshold that nothing around them binds, and whether a value differs
from key to key.
"""

from __future__ import annotations

from attndsl.ir.nodes import Coord, Expr, Input, Reduce, RowValue, Solve, children, postorder
from attndsl.ir.types import Coordinate, Flow


def open_nodes(*roots: Expr) -> set[Expr]:
    """The nodes in which the threshold occurs free: those that mean something only in the body of a solve."""
    found: set[Expr] = set()
    for node in postorder(*roots):
        # A solve binds the threshold of its body and of nothing else.
        inherited = children(node)[1:] if isinstance(node, Solve) else children(node)
        is_threshold = isinstance(node, Input) and node.flow is Flow.THRESHOLD
        if is_threshold or any(child in found for child in inherited):
            found.add(node)
    return found


def varies_along_keys(root: Expr) -> bool:
    """Whether a value may differ between the keys of a row."""
    seen: set[Expr] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in seen or isinstance(node, Reduce | Solve | RowValue):
            continue
        seen.add(node)
        if isinstance(node, Input) or (isinstance(node, Coord) and node.coordinate is Coordinate.KV_IDX):
            return True
        stack.extend(children(node))
    return False

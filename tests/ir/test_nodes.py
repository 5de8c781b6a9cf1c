"""Nodes are one object for one structure."""

from __future__ import annotations

import gc
import math
import weakref

from attndsl.ir import build
from attndsl.ir.nodes import children, with_children
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder, rewrite, substitute, uses
from attndsl.ir.types import DType, Reduction


def test_equal_structure_is_one_object() -> None:
    assert build.apply(Op.ADD, build.Q, build.K) is build.apply(Op.ADD, build.Q, build.K)
    assert build.apply(Op.ADD, build.Q, build.K) is not build.apply(Op.ADD, build.K, build.Q)


def test_constants_are_told_apart_by_type_and_bits() -> None:
    constants = [build.integer(1), build.boolean(True), build.real(1.0), build.real(0.0), build.real(-0.0)]
    assert len(set(constants)) == 5
    assert build.real(math.nan) is build.real(math.nan)


def test_unused_nodes_are_let_go() -> None:
    node = weakref.ref(build.apply(Op.ADD, build.Q, build.integer(123456789)))
    gc.collect()
    assert node() is None


def test_with_children_keeps_or_remakes() -> None:
    for node in (
        build.apply(Op.LT, build.Q, build.K),
        build.load("t", (build.Q, build.K), DType.F32),
        build.row(Reduction.MAX, build.SCORE),
        build.Q,
    ):
        assert with_children(node, children(node)) is node
    swapped = with_children(build.apply(Op.LT, build.Q, build.K), (build.K, build.Q))
    assert swapped is build.apply(Op.LT, build.K, build.Q)
    assert with_children(build.load("t", (build.Q,), DType.F32), (build.K,)) is build.load("t", (build.K,), DType.F32)
    assert with_children(build.row(Reduction.SUM, build.SCORE), (build.WEIGHT,)) is build.row(
        Reduction.SUM, build.WEIGHT
    )


def test_postorder_visits_each_node_once_operands_first() -> None:
    shared = build.apply(Op.ADD, build.Q, build.K)
    root = build.apply(Op.MUL, shared, shared)
    assert list(postorder(root)) == [build.Q, build.K, shared, root]
    assert uses([root])[shared] == 2


def test_depth_is_no_matter() -> None:
    root = build.Q
    for _ in range(20_000):
        root = build.apply(Op.NEG, root)
    assert len(list(postorder(root))) == 20_001
    moved = substitute(root, {build.Q: build.K})
    assert next(iter(postorder(moved))) is build.K


def test_rewrite_comes_to_rest() -> None:
    def towards_zero(node: object) -> object:
        value = getattr(node, "value", 0)
        return build.integer(value - 1) if value > 0 else None

    root = build.apply(Op.ADD, build.Q, build.integer(5))
    assert rewrite(root, towards_zero) is build.apply(Op.ADD, build.Q, build.integer(0))  # type: ignore[arg-type]

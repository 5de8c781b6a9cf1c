"""Every node of a traced function knows the exact stretch of Python it was written at."""

from __future__ import annotations

import linecache

import torch

import attndsl as ad
from attndsl.frontend.tracing import Program, trace
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, postorder
from attndsl.ir.ops import Op

TABLE = torch.rand(8, 8)


def written(program: Program, node: Expr) -> list[tuple[int, int, int, int]]:
    return [(span.line, span.column, span.end_line, span.end_column) for span in program.variant.origins.of(node)]


def texts(program: Program) -> dict[str, str]:
    """The source of every operator and load, by the operator's name."""
    found = {}
    for node in postorder(*program.variant.roots):
        span = program.variant.origins.first(node)
        if span is not None:
            name = node.op.name if isinstance(node, Apply) else type(node).__name__
            found[name] = span.source.line(span.line)[span.column - 1 : span.end_column - 1]
    return found


def function_from(text: str, name: str = "written.py"):
    """A function from source the interpreter can look up, as from a file."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace = {"ad": ad, "torch": torch, "TABLE": TABLE}
    exec(compile(text, name, "exec"), namespace)
    return namespace["f"]


def test_lines_and_columns_are_exact() -> None:
    program = trace(mask_mod=function_from("def f(q_idx, kv_idx):\n    return (q_idx - kv_idx) < 7\n"))
    difference = build.apply(Op.SUB, build.Q, build.K)
    assert written(program, difference) == [(2, 13, 2, 27)]
    assert written(program, program.variant.mask) == [(2, 12, 2, 32)]
    span = program.variant.origins.first(difference)
    assert span is not None
    assert span.source.name == "written.py"


def test_columns_count_characters_not_bytes() -> None:
    program = trace(
        mask_mod=function_from("def f(q_idx, kv_idx):\n    'né'; é = q_idx; return é - kv_idx < 7\n", "utf.py")
    )
    difference = build.apply(Op.SUB, build.Q, build.K)
    assert written(program, difference) == [(2, 29, 2, 39)]


def test_a_node_keeps_every_place_it_was_written_at() -> None:
    source = "def f(q_idx, kv_idx):\n    a = q_idx - kv_idx\n    return (q_idx - kv_idx < 3) | (a > 5)\n"
    program = trace(mask_mod=function_from(source, "twice.py"))
    difference = build.apply(Op.SUB, build.Q, build.K)
    assert written(program, difference) == [(2, 9, 2, 23), (3, 13, 3, 27)]


def test_expressions_over_several_lines() -> None:
    program = trace(
        mask_mod=function_from("def f(q_idx, kv_idx):\n    return (q_idx <\n            kv_idx)\n", "lines.py")
    )
    assert written(program, program.variant.mask) == [(2, 13, 3, 19)]


def test_every_kind_of_operation() -> None:
    program = trace(
        score_mod=lambda score, h, q_idx, kv_idx: torch.where(q_idx < kv_idx, TABLE[h, kv_idx] * 2.0, -score.tanh())
    )
    assert texts(program) == {
        "LT": "q_idx < kv_idx",
        "Load": "TABLE[h, kv_idx]",
        "MUL": "TABLE[h, kv_idx] * 2.0",
        "TANH": "score.tanh()",
        "NEG": "-score.tanh()",
        "WHERE": "torch.where(q_idx < kv_idx, TABLE[h, kv_idx] * 2.0, -score.tanh())",
    }


def test_functions_of_ad_and_of_torch_are_not_the_place() -> None:
    program = trace(score_mod=lambda score: ad.clamp(torch.nn.functional.softplus(score), 0.0, 1.0))
    assert texts(program)["ABS"] == "torch.nn.functional.softplus(score)"
    assert texts(program)["MIN"] == "ad.clamp(torch.nn.functional.softplus(score), 0.0, 1.0)"


def test_the_place_is_inside_the_mod_that_is_called() -> None:
    inner = ad.mask_mod(function_from("def f(q_idx, kv_idx):\n    return kv_idx <= q_idx\n", "inner.py"))
    program = trace(mask_mod=lambda q_idx, kv_idx: inner(q_idx, kv_idx) & (q_idx > 3))
    span = program.variant.origins.first(build.apply(Op.LE, build.K, build.Q))
    assert span is not None
    assert str(span) == "inner.py:2:12"


def test_same_code_in_two_files_is_two_places() -> None:
    source = "def f(q_idx, kv_idx):\n    return kv_idx <= q_idx\n"
    first, second = function_from(source, "first.py"), function_from(source, "second.py")
    assert [str(trace(mask_mod=f).variant.origins.first(trace(mask_mod=f).variant.mask)) for f in (first, second)] == [
        "first.py:2:12",
        "second.py:2:12",
    ]


def test_renamed_nodes_keep_their_places() -> None:
    near = ad.mask_mod(function_from("def f(q_idx, kv_idx, *, w):\n    return q_idx - kv_idx < w\n", "near.py"))
    program = trace(mask_mod=near(w=3) & near(w=4))
    left, right = program.variant.mask.args
    assert written(program, left) == [(2, 12, 2, 30)]
    assert written(program, right) == [(2, 12, 2, 30)]


def test_without_source_there_are_no_places() -> None:
    namespace: dict[str, object] = {}
    exec("def f(q_idx, kv_idx): return kv_idx <= q_idx", namespace)
    program = trace(mask_mod=namespace["f"])
    assert written(program, program.variant.mask) == []

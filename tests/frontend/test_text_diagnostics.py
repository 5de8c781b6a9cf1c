"""Every mistake one can make in a text, with its caret and its help; one golden file for each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from attndsl.diagnostics import ProgramError
from attndsl.frontend.parse import parse

FRONTEND = Path(__file__).parents[2] / "attndsl" / "frontend"

TEXTS = {
    "syntax-error": "attention a {\n    mask  (q_idx - kv_idx <= 3\n}",
    "syntax-error-assignment": "attention a {\n    mask  q_idx = kv_idx\n}",
    "syntax-error-end": "attention a {\n    mask  q_idx < (kv_idx\n\n",
    "syntax-error-python": "attention a {\n    mask  q_idx < 3 && !flag\n}",
    "syntax-error-character": "attention a {\n    mask  q_idx < $3\n}",
    "syntax-error-top": "mask q_idx < 3",
    "syntax-error-parameter": "attention a(window int) {}",
    "no-attention": "# nothing here\n",
    "unknown-name": "attention a(window: int) {\n    mask  q_idx - kv_idx < windw\n}",
    "unknown-name-function": "def causal() = kv_idx <= q_idx\nattention a {\n    mask  causal\n}",
    "unknown-name-outside": "def near() = q_idx < window\nattention a(window: int) {\n    mask  near()\n}",
    "unknown-name-later": "attention a {\n    mask  d < 3\n    let d = q_idx - kv_idx\n}",
    "unknown-function": "def soft(x) = tanh(x)\nattention a {\n    score  sotf(score) + tahn(score)\n}",
    "wrong-arity": "def soft(x, cap) = cap * tanh(x / cap)\nattention a {\n    score  soft(score) + exp(score, 2)\n}",
    "wrong-arity-builtin": "attention a {\n    score  clamp(score, 1.0)\n    normalizer  row_sum() + row_max(1, 2)\n}",
    "wrong-arity-fold": "attention a {\n    score  max(score)\n}",
    "unknown-argument": "def soft(x, cap) = cap * tanh(x / cap)\nattention a {\n    score  soft(score, cup = 3.0)\n}",
    "unknown-argument-builtin": "attention a {\n    score  exp(x = score)\n}",
    "duplicate-argument": "def soft(x, cap) = cap * tanh(x / cap)\nattention a {\n    score  soft(score, x = 3.0)\n}",
    "duplicate-parameter": "def f(x, x) = x\nattention a(w: int, w: float) {}",
    "duplicate-let": "attention a(w: int) {\n    let d = q_idx\n    let d = kv_idx\n    let w = 3\n}",
    "duplicate-def": "def f(x) = x\ndef f(y) = y\nattention a {\n    def f(z) = z\n}",
    "duplicate-attention": "attention a {}\nattention a {}",
    "duplicate-normalizer": "attention a {\n    normalizer  softmax\n    normalizer  sigmoid(score)\n}",
    "reserved-name": "def exp(x) = x\nattention a(q_idx: int, inf: float) {\n    let score = 3\n}",
    "parameter-type": "attention a(a: integer, c: bool, d: tensor, e: int[H]) {}",
    "default-type": "attention a(a: int = 1.5, c: float = true, d: int = 2 * 3, e: tensor[H] = 0.0) {}",
    "tensor-without-index": "attention a(slopes: tensor[H], t: tensor[B, H]) {\n    score  score * slopes\n}",
    "tensor-rank": "attention a(t: tensor[B, H]) {\n    score  score * t[h]\n}",
    "too-many-dimensions": f"attention a(t: tensor[{', '.join('N' * 65)}]) {{}}",
    "index-not-integer": "attention a(t: tensor[N]) {\n    score  score * t[q_idx / 2]\n}",
    "not-a-tensor": "attention a(w: int) {\n    mask  w[q_idx] < q_idx[0]\n    score  (score + 1.0)[h]\n}",
    "wrong-stage": "attention a {\n    let m = row_max(1)\n    mask  score > 0.0\n    score  m\n    weight  score\n}",
    "recursive-def": "def f(x) = g(x)\ndef g(x) = f(x) + 1\ndef k(x) = k(x)\nattention a {\n    score  f(score)\n}",
    "nesting-too-deep": "attention a {\n    mask  " + "not " * 300 + "true\n}",
    "text-too-large": "attention a {}\n" + "+" * 100_001,
    "expansion-too-large": "".join(f"def f{n}(x) = f{n + 1}(x + 1) + f{n + 1}(x * 2)\n" for n in range(30))
    + "def f30(x) = x\nattention a {\n    score  f0(score)\n}",
    "integer-too-large": f"attention a {{\n    mask  q_idx < 9223372036854775808\n    mask  q_idx < {'9' * 90}\n}}",
    "program-too-deep": "attention a {\n    score  " + " + ".join(["score"] * 500) + "\n}",
    "operand-type": "attention a {\n    mask  q_idx and kv_idx\n    score  score * (q_idx < kv_idx)\n}",
    "mask-not-boolean": "attention a {\n    mask  q_idx - kv_idx\n}",
    "score-not-float": "attention a {\n    score  q_idx\n}",
    "weight-not-float": "attention a {\n    weight  q_idx\n}",
    "normalizer-not-float": "attention a {\n    normalizer  q_idx\n}",
    "division-by-zero": "attention a {\n    mask  q_idx // 0 == 1\n}",
    "shift-out-of-range": "attention a {\n    mask  q_idx << 64 == 1\n}",
    "power-not-constant": "attention a {\n    mask  2 ** q_idx < kv_idx\n}",
    "grid-size": "attention a {\n    grid g(y = 0, x = 4)\n    grid f(a = 1, b = 2, c = 3, d = 4, e = 5)\n}",
    "grid-size-total": "attention a {\n    grid g(y = 65536, x = 32768)\n    grid f(x = 123456789012345678901)\n}",
    "grid-tile": (
        "attention a {\n    grid g(y = 4, x = 6) tile (3, 4)\n    grid f(y = 4, x = 6) tile (2)\n"
        "    grid e(y = 4, x = 6) tile (0, 123456789012345678901)\n}"
    ),
    "two-orders": "attention a {\n    grid g(y = 4, x = 6) tile (2, 3)\n    grid f(y = 4, x = 6) tile (2, 2)\n}",
    "grid-without-axis": "attention a {\n    grid g(y = 4, x = 4)\n    mask  g(q_idx) == g(kv_idx)\n}",
    "grid-index": "attention a {\n    grid g(y = 4, x = 4)\n    score  score + float(g(score).x)\n}",
    "unknown-axis": "attention a {\n    grid g(y = 4, x = 4)\n    mask  g(q_idx).z == g(kv_idx).x\n}",
    "unknown-name-grid": "attention a {\n    grid g(y = 4, x = 4)\n    mask  g == 3\n}",
    "not-a-grid": "attention a {\n    grid g(x = 4)\n    mask  g.x == h(q_idx).y and (q_idx + 1).x == 2\n}",
    "duplicate-axis": "attention a {\n    grid g(x = 4, x = 4)\n}",
    "duplicate-grid": (
        "def f(x) = x\n"
        "attention a(w: int) {\n    grid g(x = 4)\n    grid g(x = 4)\n    grid w(x = 4)\n    grid f(x = 4)\n}"
    ),
    "duplicate-let-grid": "attention a {\n    grid g(x = 4)\n    let g = 3\n}",
    "requirement-not-boolean": 'attention a(w: int) {\n    require  w, "a window"\n}',
    "requirement-operand": 'attention a(t: tensor[H]) {\n    require  h == 0 and t[kv_idx] > 0.0, "no"\n}',
    "bad-string": 'attention a(w: int) {\n    require  w >= 1, "\\d"\n}',
    "syntax-error-message": "attention a(w: int) {\n    require  w >= 1, window\n}",
    "nested-solve": (
        "attention a {\n    let top = row_max(score)\n"
        "    normalizer  row_solve(t: t - row_solve(u: score - u, total = 1.0, lower = 0.0, upper = top),"
        " total = 1.0, lower = 0.0, upper = top)\n}"
    ),
    "nested-solve-sum": (
        "attention a {\n"
        "    normalizer  row_solve(t: score - t * row_sum(score - t), total = 1.0, lower = 0.0, upper = 1.0)\n}"
    ),
    "not-a-solve": "attention a {\n    normalizer  exp(t: score - t)\n}",
    "solve-without-threshold": "attention a {\n    normalizer  row_solve(t: score, total = 1, lower = 0, upper = 1)\n}",
    "solve-not-of-row": (
        "attention a {\n    normalizer  row_solve(t: score - t, total = score, lower = 0, upper = float(kv_idx))\n}"
    ),
    "reserved-name-solve": (
        "attention a {\n    normalizer  row_solve(exp: score - exp, total = 1, lower = 0, upper = 1)\n}"
    ),
    "unknown-argument-solve": (
        "attention a {\n    normalizer  row_solve(t: score - t, totl = 1, lower = 0, upper = 1)\n}"
    ),
    "wrong-arity-solve": "attention a {\n    normalizer  row_solve(score - 1.0, total = 1, lower = 0, upper = 1)\n}",
    "wrong-stage-solve": "attention a {\n    mask  row_solve(t: 1.0 - t, total = 1, lower = 0, upper = 1) > 0.0\n}",
    "wrong-stage-library": "attention a {\n    score  sparsemax\n    weight  topk(3)\n    mask  decay(1.0)\n}",
    "wrong-arity-library": "attention a {\n    normalizer  topk\n}",
    "unknown-function-library": "attention a {\n    normalizer  sparsmax()\n}",
    "unknown-name-library": "attention a {\n    normalizer  entmax_15\n}",
    "requirement-operand-library": "attention a(k: int tensor[H]) {\n    normalizer  topk(k[h])\n}",
    "operand-type-statistic": "attention a {\n    normalizer  score / row_sum(score > 0.0) + row_max(q_idx == 1)\n}",
    "normalizer-not-float-bool": "attention a {\n    normalizer  score > row_max(score)\n}",
    "weight-not-float-bool": "attention a {\n    weight  weight > 0.5\n}",
    "score-not-float-bool": "attention a {\n    score  score > 0.0\n}",
    "several": "attention a(w: int) {\n    mask  q_idx\n    score  scor\n    weight  weight[0]\n}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_diagnostic(name: str, golden: Callable[..., None]) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(TEXTS[name], f"{name}.attn")
    codes = [diagnostic.code for diagnostic in caught.value.diagnostics]
    assert name == "several" or all(name.startswith(code) for code in codes)
    golden(str(caught.value), "diagnostics")


def test_every_code_of_the_text_front_end_has_a_golden() -> None:
    """`nul-byte` and `not-utf-8` belong to files and are tested with them."""
    source = "".join(path.read_text() for path in FRONTEND.glob("*.py") if path.name in _MODULES)
    literal = re.compile(r"\b(?:fail\(\s*ProgramError|error\(\s*)[,\s]*\"([a-z0-9-]+)\"")
    codes = set(literal.findall(source)) - {"nul-byte", "not-utf-8"}
    assert len(codes) > 25
    assert codes <= TEXTS.keys()


_MODULES = {
    "builder.py",
    "calls.py",
    "declarations.py",
    "expand.py",
    "layout.py",
    "lookup.py",
    "parse.py",
    "requirements.py",
    "scope.py",
    "syntax.py",
}

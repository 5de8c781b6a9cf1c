"""The fingerprint sees structure and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.fingerprint import fingerprint
from attndsl.ir.ops import Op
from attndsl.ir.variant import Variant

TEXT = """
attention gpt(window: int = 128, sink: tensor[H]) {
    mask        kv_idx <= q_idx and q_idx - kv_idx < window
    normalizer  softmax(sink = sink[h])
}
"""


def parsed(text: str) -> Variant:
    (variant,) = parse(text)
    return variant


@pytest.mark.parametrize(
    "other",
    [
        TEXT.replace("gpt", "other"),
        TEXT.replace("window", "width").replace("[H]", "[Heads]"),
        TEXT.replace("sink:", "z:").replace("sink[h]", "z[h]"),
        TEXT.replace("128", "64"),
        TEXT.replace("window: int = 128, sink: tensor[H]", "unused: float, sink: tensor[H], window: int"),
        TEXT.replace("kv_idx <= q_idx and", "# a comment\n (kv_idx <= q_idx) and"),
    ],
)
def test_luggage_does_not_matter(other: str) -> None:
    assert other != TEXT
    assert fingerprint(parsed(other)) == fingerprint(parsed(TEXT))


@pytest.mark.parametrize(
    "other",
    [
        TEXT.replace("kv_idx <= q_idx", "kv_idx < q_idx"),
        TEXT.replace("< window", "< window + 1"),
        TEXT.replace("sink[h]", "sink[b]"),
        TEXT.replace("softmax(sink = sink[h])", "softmax()"),
        TEXT.replace("mask ", "score score * 2.0 mask "),
        TEXT.replace("mask ", "weight weight * 2.0 mask "),
    ],
)
def test_structure_matters(other: str) -> None:
    assert other != TEXT
    assert fingerprint(parsed(other)) != fingerprint(parsed(TEXT))


@pytest.mark.parametrize(
    "one, other",
    [
        ("a[h] + a[b]", "a[h] + c[b]"),
        ("score + 0.0", "score + -0.0"),
        ("score + float(h)", "score + float(b)"),
        ("score + a[0]", "score + a[1]"),
    ],
)
def test_pairs_that_differ(one: str, other: str) -> None:
    texts = [f"attention t(a: tensor[H], c: tensor[H]) {{ score {score} }}" for score in (one, other)]
    assert fingerprint(parsed(texts[0])) != fingerprint(parsed(texts[1]))


def test_linear_in_the_size_of_the_graph() -> None:
    """80 doublings: as a tree it would have 2**80 nodes."""
    total = build.SCORE
    for _ in range(80):
        total = build.apply(Op.ADD, total, total)
    variant = parsed(TEXT)
    deep = variant.map(lambda root: total if root is variant.score else root)
    assert fingerprint(deep) != fingerprint(variant)


def test_alike_in_another_process() -> None:
    program = (
        "from attndsl.frontend.parse import parse; from attndsl.ir.fingerprint import fingerprint;"
        f"print(fingerprint(parse({TEXT!r})[0]))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == fingerprint(parsed(TEXT))

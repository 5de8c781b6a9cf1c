"""The order of the passes, the verifier between them, and the IR after each of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attndsl.diagnostics import CallError, VerifyError
from attndsl.frontend.parse import parse
from attndsl.ir import build
from attndsl.ir.printer import print_variant
from attndsl.ir.variant import Variant
from attndsl.passes import pipeline
from attndsl.passes.pipeline import PASSES, run_passes

PROGRAMS = {
    "gpt_oss": """
attention gpt_oss(window: int = 128, sink: tensor[H]) {
    mask        kv_idx <= q_idx and q_idx - kv_idx < window
    normalizer  softmax(sink = sink[h])
}
""",
    "dead_scores": """
attention dead_scores(slopes: tensor[H]) {
    score  score + (0.0 if not (kv_idx > q_idx) else -inf)
    score  score - slopes[h] * float(q_idx - kv_idx) if h < 2 * 4 else score * 1.0
}
""",
    "prefix_lm": """
attention prefix_lm(prefix: int tensor[B]) {
    mask  true if kv_idx < prefix[b] else kv_idx <= q_idx
}
""",
    "neighbourhood": """
attention neighbourhood() {
    mask  abs(q_idx // 14 - kv_idx // 14) <= 3 and abs(q_idx % 14 - kv_idx % 14) <= 3
}
""",
    "dilated_blocks": """
attention dilated_blocks(doc: int tensor[N]) {
    mask  q_idx // 64 == kv_idx // 64 and (q_idx - kv_idx) % 2 == 0 and doc[q_idx] == doc[kv_idx] and 1 < 2
}
""",
}


def parsed(text: str) -> Variant:
    (variant,) = parse(text)
    return variant


@pytest.mark.parametrize("name", PROGRAMS)
def test_ir_after_each_pass(name: str, golden: Callable[..., None]) -> None:
    variant = parsed(PROGRAMS[name])
    texts = {"as written": print_variant(variant)}
    texts |= {f"after {pass_.__name__}": print_variant(run_passes(variant, pass_.__name__)) for pass_, _ in PASSES}
    texts["at the end"] = print_variant(run_passes(variant))
    sections: list[str] = []
    previous = ""
    for title, text in texts.items():
        sections.append(f"# {title}\n{text.strip() if text != previous else '(the same)'}\n")
        previous = text
    golden("\n".join(sections), "passes")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_end_is_stable(name: str) -> None:
    end = run_passes(parsed(PROGRAMS[name]))
    assert run_passes(end) is end


def test_spans_follow_the_nodes() -> None:
    """A condition moved and solved by three passes still knows where it was written."""
    text = "attention t(w: int) { score score if not (q_idx - kv_idx >= w) else -inf }"
    after = run_passes(parsed(text))
    (span,) = after.origins.of(after.mask)
    assert text[span.column - 1 : span.end_column - 1] in ("not (q_idx - kv_idx >= w)", "q_idx - kv_idx >= w")


def test_each_pass_is_named_once() -> None:
    names = [pass_.__name__ for pass_, _ in PASSES]
    assert len(set(names)) == len(names)
    assert all(pass_.__module__ == f"attndsl.passes.{pass_.__name__}" for pass_, _ in PASSES)
    assert all(reason for _, reason in PASSES)


def test_an_unknown_pass_lists_the_known(golden: Callable[..., None]) -> None:
    with pytest.raises(CallError) as caught:
        run_passes(parsed(PROGRAMS["gpt_oss"]), after="inline")
    golden(str(caught.value), "diagnostics", name="unknown-pass")


def spoil(variant: Variant) -> Variant:
    return variant.map(lambda root: build.WEIGHT if root is variant.score else root)


def swing(variant: Variant) -> Variant:
    """A pass that never rests."""
    return variant.map(lambda root: {build.TRUE: build.FALSE, build.FALSE: build.TRUE}.get(root, root))


def test_the_verifier_names_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PASSES", ((spoil, "to break a rule"),))
    with pytest.raises(VerifyError, match="after `spoil`"):
        run_passes(parsed(PROGRAMS["gpt_oss"]))


def test_passes_that_never_rest_are_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PASSES", ((swing, "to go in circles"),))
    with pytest.raises(VerifyError, match="do not come to rest on `t`"):
        run_passes(parsed("attention t() { mask true }"))

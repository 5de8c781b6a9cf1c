"""Every mistake in a traced function: what it says, where, and what to write instead."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import pytest
import torch

import attndsl as ad
from attndsl.diagnostics import CallError, DiagnosticError, ProgramError
from attndsl.frontend.decorators import as_mod
from attndsl.frontend.signatures import Stage
from attndsl.frontend.tracing import trace

SLOPES = torch.rand(4)
TABLE = torch.rand(2, 4)


def nothing(q_idx, kv_idx):
    kv_idx <= q_idx  # noqa: B015


def branch(q_idx, kv_idx):
    if kv_idx <= q_idx:
        return kv_idx > 3
    return kv_idx > 4


def conjunction_in_branch(q_idx, kv_idx):
    if kv_idx <= q_idx and q_idx < 7:
        return kv_idx > 3
    return kv_idx > 4


def loop(q_idx, kv_idx):
    seen = kv_idx == 0
    for step in range(q_idx):
        seen = seen | (kv_idx == step)
    return seen


def repeat(q_idx, kv_idx):
    while q_idx > kv_idx:
        q_idx = q_idx - 1
    return q_idx == 0


def claim(q_idx, kv_idx):
    assert q_idx >= 0
    return kv_idx <= q_idx


def several(score, q_idx, kv_idx):
    shifted = score + (q_idx < kv_idx)
    biased = SLOPES[q_idx, kv_idx]
    indexed = SLOPES[score]
    return shifted * biased + indexed + q_idx // 0


def write(score, h):
    SLOPES[h] = 0.0
    return score


def parameter(q_idx, kv_idx, *, window):
    return q_idx - kv_idx < window


MASKS = {
    "branch": branch,
    "conjunction-in-branch": conjunction_in_branch,
    "loop": loop,
    "while": repeat,
    "assert": claim,
    "and": lambda q_idx, kv_idx: kv_idx <= q_idx and q_idx - kv_idx < 7,
    "or": lambda q_idx, kv_idx: kv_idx <= q_idx or q_idx - kv_idx < 7,
    "not": lambda q_idx, kv_idx: not kv_idx <= q_idx,
    "chained-comparison": lambda q_idx, kv_idx: q_idx - 8 < kv_idx <= q_idx,
    "in": lambda q_idx, kv_idx: kv_idx in (1, 2),
    "int-of-symbol": lambda q_idx, kv_idx: int(q_idx / 2) < kv_idx,
    "list-index": lambda q_idx, kv_idx: kv_idx < [3, 4][q_idx],
    "comprehension": lambda q_idx, kv_idx: any(kv_idx == other for other in (1, 2)),
    "builtin-max": lambda q_idx, kv_idx: max(q_idx, kv_idx) < 8,
    "mask-not-boolean": lambda q_idx, kv_idx: q_idx - kv_idx,
    "bare-coordinate": lambda q_idx, kv_idx: q_idx,
    "returns-nothing": nothing,
    "returns-something-else": lambda q_idx, kv_idx: "causal",
    "bitwise-precedence": lambda q_idx, kv_idx: kv_idx <= q_idx & q_idx < 3,
    "row-statistic-in-mask": lambda q_idx, kv_idx: ad.row_max(q_idx * 1.0) > 3,
    "combined-not-boolean": ad.mask_mod(lambda q_idx, kv_idx: q_idx) & (lambda q_idx, kv_idx: kv_idx <= q_idx),
}
SCORES = {
    "several": several,
    "conditional-expression": lambda score, q_idx: score if q_idx > 3 else 0.0,
    "math-function": lambda score, q_idx: math.exp(score),
    "score-not-float": lambda score, q_idx: q_idx,
    "open-dimensions": lambda score, b, h: score + TABLE[h],
    "tensor-not-indexed": lambda score, b, h: score + SLOPES,
    "slice-of-symbol": lambda score, b, h: score + SLOPES[:h].sum(),
    "torch-reduction": lambda score: torch.softmax(score, dim=-1),
    "torch-method": lambda score: score.sum(),
    "torch-argument": lambda score: torch.max(score, dim=0),
    "in-place": lambda score: score.mul_(2.0),
    "write": write,
    "item": lambda score: score * SLOPES[0].item(),
    "float-of-tensor": lambda score: score * float(SLOPES.sum()),
    "branch-on-tensor": lambda score: score * 2.0 if SLOPES.sum() > 0 else score,
    "tolist": lambda score: score * SLOPES.tolist()[0],
    "mask-index": lambda score, q_idx: score + SLOPES[q_idx > 3],
    "none-index": lambda score, h: score + SLOPES[None, h],
    "value-index": lambda score, h: score[h],
}


def nested_solve(score):
    def body(t):
        return ad.row_solve(lambda u: score - t - u, total=0.0, lower=0.0, upper=1.0) - t

    return ad.row_solve(body, total=1.0, lower=0.0, upper=1.0)


def escape(score):
    found = []
    ad.row_solve(lambda t: found.append(t) or score - t, total=1.0, lower=0.0, upper=1.0)
    return score * found[0]


def branch_in_solve(score):
    return ad.row_solve(lambda t: score - t if score > t else 0.0, total=1.0, lower=0.0, upper=1.0)


NORMALIZERS = {
    "nested-solve": nested_solve,
    "nested-solve-statistic": lambda score: ad.row_solve(
        lambda t: ad.row_sum(score - t), total=1.0, lower=0.0, upper=1.0
    ),
    "threshold-escapes": escape,
    "branch-in-solve": branch_in_solve,
    "solve-not-of-row": lambda score: ad.row_solve(lambda t: score - t, total=score, lower=score, upper=1.0),
    "solve-without-threshold": lambda score: ad.row_solve(lambda t: score, total=1.0, lower=0.0, upper=1.0),
    "solve-of-nothing": lambda score: ad.row_solve(lambda t: 0.0, total=1.0, lower=0.0, upper=1.0),
    "statistic-of-bools": lambda score: score / ad.row_sum(score > 0.0),
    "normalizer-not-float": lambda score: score > 0.0,
}
WEIGHTS = {
    "weight-not-float": lambda weight, kv_idx: kv_idx,
    "weight-is-a-condition": lambda weight: weight > 0.5,
    "solve-in-weight": lambda weight: ad.row_solve(lambda t: weight - t, total=1.0, lower=0.0, upper=1.0),
}


def rendered(error: DiagnosticError) -> str:
    """The message without the folder of this file and without line numbers, which change with every edit of it."""
    text = str(error).replace(__file__, Path(__file__).name)
    text = re.sub(r"(?m)^(  --> [^:]*):\d+:", r"\1:N:", text)
    text = re.sub(r"(?m)^ \d+ \| ", " N | ", text)
    return re.sub(r"(?m)^ +\| ( *\^)", r"   | \1", text)


@pytest.mark.parametrize("case", MASKS)
def test_mask(case: str, golden) -> None:
    with pytest.raises(ProgramError) as caught:
        trace(mask_mod=MASKS[case])
    golden(rendered(caught.value), "tracing")


@pytest.mark.parametrize("case", SCORES)
def test_score(case: str, golden) -> None:
    with pytest.raises(ProgramError) as caught:
        trace(score_mod=SCORES[case])
    golden(rendered(caught.value), "tracing")


@pytest.mark.parametrize("case", NORMALIZERS)
def test_normalizer(case: str, golden) -> None:
    with pytest.raises(ProgramError) as caught:
        trace(normalizer=NORMALIZERS[case])
    golden(rendered(caught.value), "tracing", name=f"normalizer-{case}")


@pytest.mark.parametrize("case", WEIGHTS)
def test_weight(case: str, golden) -> None:
    with pytest.raises(ProgramError) as caught:
        trace(weight_mod=WEIGHTS[case])
    golden(rendered(caught.value), "tracing", name=f"weight-{case}")


def test_mistakes_of_all_mods_are_reported_together() -> None:
    with pytest.raises(ProgramError) as caught:
        trace(
            score_mod=[SCORES["conditional-expression"], SCORES["score-not-float"]],
            mask_mod=MASKS["mask-not-boolean"],
            normalizer=lambda score: score if score > 0 else 0.0,
            weight_mod=lambda weight, q_idx: q_idx,
        )
    assert [found.code for found in caught.value.diagnostics] == [
        "control-flow",
        "score-not-float",
        "mask-not-boolean",
        "control-flow",
        "weight-not-float",
    ]


def test_mistakes_found_before_the_trace_stopped_are_kept() -> None:
    def function(score, q_idx):
        wrong = score + (q_idx < 3)
        return wrong if q_idx > 3 else score

    with pytest.raises(ProgramError) as caught:
        trace(score_mod=function)
    assert [found.code for found in caught.value.diagnostics] == ["operand-type", "control-flow"]


def test_a_handler_does_not_hide_a_mistake() -> None:
    def function(q_idx, kv_idx):
        try:
            return bool(q_idx)
        except ValueError:
            return kv_idx <= q_idx

    with pytest.raises(ProgramError, match="control-flow"):
        trace(mask_mod=function)


def test_without_source_the_instruction_tells() -> None:
    texts = {
        "lambda q_idx, kv_idx: not q_idx > kv_idx": "`not` needs a value",
        "lambda q_idx, kv_idx: q_idx in (1, 2)": "`in` needs a value",
        "lambda q_idx, kv_idx: q_idx > 3 and kv_idx > 3": "`if`, `and`, `or` or a chained comparison needs",
        "lambda q_idx, kv_idx: int(q_idx) > 3": "a Python function needs a value",
    }
    for text, message in texts.items():
        with pytest.raises(ProgramError, match=message) as caught:
            trace(mask_mod=eval(text))
        assert caught.value.diagnostics[0].span is None


# Before a trace begins.


def by_size(q_idx, kv_idx, *, size: int):
    return kv_idx <= q_idx if size > 3 else kv_idx < q_idx


CALLS = {
    "unknown-argument": lambda: trace(mask_mod=lambda q_idx, kv_idx, window: q_idx - kv_idx < window),
    "unknown-score-argument": lambda: trace(score_mod=lambda s, b, h, q: s),
    "unknown-normalizer-argument": lambda: trace(normalizer=lambda x: x),
    "positional-count": lambda: trace(mask_mod=lambda q_idx, kv_idx: q_idx < kv_idx, positional=True),
    "score-argument-in-mask": lambda: trace(mask_mod=lambda score, q_idx: q_idx > 3),
    "missing-parameter": lambda: trace(mask_mod=ad.mask_mod(parameter)),
    "open-control-flow": lambda: trace(mask_mod=by_size),
    "open-operation": lambda: trace(score_mod=lambda score, h, *, t=ad.Tensor["H"]: score + torch.exp(t)[h]),
    "open-size": lambda: trace(score_mod=lambda score, h, *, t=ad.Tensor["H"]: score + t[h % t.shape[0]]),
    "open-row-size": lambda: trace(score_mod=lambda score, h, *, t=ad.Tensor["H, 2"]: score + t[h][len(t[h].shape)]),
    "open-from-the-end": lambda: trace(score_mod=lambda score, *, t=ad.Tensor["H"]: score + t[-1]),
    "open-evaluated": lambda: ad.masks.sliding_window(3, 4),
    "dimension-name": lambda: ad.Tensor["B, H!"],
    "parameter-name": lambda: ad.param("the window", 3),
    "parameter-index": lambda: ad.param("gain", ad.Tensor["H"])[0],
    "parameter-kind": lambda: ad.param("window", "int"),
    "unknown-parameter": lambda: ad.mask_mod(parameter)(windw=3),
    "duplicate-parameter": lambda: ad.mask_mod(parameter)(window=3)(window=4),
    "list-parameter": lambda: ad.mask_mod(parameter)(window=[1, 2]),
    "array-parameter": lambda: ad.mask_mod(parameter)(window=torch.rand(3).numpy()),
    "wrong-arity": lambda: ad.mask_mod(parameter)(1, 2, 3),
    "missing-coordinate": lambda: ad.mask_mod(parameter)(q_idx=3, window=4),
    "unknown-combined-parameter": lambda: (ad.mask_mod(parameter) & ad.masks.causal)(size=3),
    "not-a-function": lambda: trace(mask_mod=torch.ones(3, 3)),
    "wrong-stage": lambda: trace(score_mod=ad.mask_mod(parameter)),
    "uncalled-softmax": lambda: trace(normalizer=ad.softmax),
    "row-outside-normalizer": lambda: ad.row_max(3.0),
    "row-in-a-weight": lambda: trace(weight_mod=lambda weight: weight / ad.row_sum(weight)),
    "combined-with-a-number": lambda: ad.masks.causal & 3,
}


@pytest.mark.parametrize("case", CALLS)
def test_call(case: str, golden) -> None:
    with pytest.raises(ProgramError) as caught:
        CALLS[case]()
    golden(rendered(caught.value), "tracing")


def test_sink_of_another_shape() -> None:
    with pytest.raises(CallError, match=r"sink of softmax has shape \(1, 2, 3, 4\)\n note: allowed are \(\), \(H,\), "):
        ad.softmax(sink=torch.zeros(1, 2, 3, 4))


def test_builtins_are_taken_positionally() -> None:
    assert as_mod(Stage.MASK, functools.partial(max)).order == ("b", "h", "q_idx", "kv_idx")

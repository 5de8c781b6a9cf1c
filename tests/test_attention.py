"""The object users hold: signatures, values of parameters, copies, what it tells without being called."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attentions import ALIBI, CAUSAL, DOCUMENTS, PERMUTED, by_hand, emissions, lower, qkv, text, traced_alibi
from compare import assert_rows_close
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention
from attndsl.diagnostics import CallError

# Signatures.


def signature(function: Callable[..., Any]) -> dict[str, Any]:
    """Names with defaults, keyword-only ones after `*`."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found.setdefault("*", None)
        found[name] = ... if parameter.default is parameter.empty else parameter.default
    found.pop("self", None)
    return found


def test_attention_signature() -> None:
    mods = {"*": None, "score_mod": None, "mask_mod": None, "normalizer": None, "weight_mod": None, "name": None}
    assert list(signature(ad.attention).items()) == list(mods.items())


def test_call_signature() -> None:
    assert list(signature(Attention.__call__).items()) == [
        *(("q", ...), ("k", ...), ("v", ...), ("*", None), ("scale", None), ("enable_gqa", False), ("q_offset", 0)),
        *(("blocks", None), ("return_aux", False), ("backend", "auto"), ("check", False)),
    ]


def test_plan_signature() -> None:
    assert list(signature(Attention.plan).items()) == [
        *(("q_len", ...), ("kv_len", None), ("*", None), ("batch", 1), ("heads", 1), ("block", (128, 128))),
        *(("q_offset", 0), ("blocks", None), ("exact", False)),
    ]


def test_other_signatures() -> None:
    dtype = {"dtype": torch.bfloat16, "head_dim": 128, "v_head_dim": None}
    assert signature(Attention.source) == {"kernel": "forward", "target": "triton", "*": None, **dtype}
    assert signature(Attention.kernels) == {"target": "triton"}
    assert signature(Attention.ir) == {"after": None}
    required = {"dtype": ..., "head_dim": ..., "v_head_dim": None}
    assert signature(Attention.compile_for) == {"target": ..., "*": None, **required}
    assert signature(Attention.invalidate) == {}


# Values.


def test_new_values_are_the_same_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted = emissions(monkeypatch)
    attention = text(ALIBI, slopes=torch.ones(2))
    sources = {attention.source(), attention.bind(window=7).source()}
    sources.add(attention.bind(window=9, slopes=torch.zeros(4)).source())
    assert len(sources) == 1
    assert emitted == ["forward"]


def test_new_values_give_new_results() -> None:
    tensors = qkv(dtype=torch.float64)
    attention = text(ALIBI, slopes=torch.zeros(2, dtype=torch.float64), window=2)
    live = lower(5, 5) & ~lower(5, 5, -2)
    assert_rows_close(attention(*tensors), by_hand(*tensors, live)[0], 1e-12)
    assert_rows_close(attention.bind(window=64)(*tensors), by_hand(*tensors, lower(5, 5))[0], 1e-12)
    assert_rows_close(attention(*tensors), by_hand(*tensors, live)[0], 1e-12)  # binding changed another attention


@pytest.mark.parametrize("make", [lambda slopes: text(ALIBI, slopes=slopes), traced_alibi], ids=["text", "python"])
def test_captured_tensors_are_read_at_each_call(make: Callable[[Tensor], Attention]) -> None:
    slopes, tensors = torch.zeros(2), qkv()
    attention = make(slopes)
    distance = (torch.arange(5)[:, None] - torch.arange(5)).float()
    for step in range(3):
        slopes.fill_(step / 2)
        expected, _ = by_hand(*tensors, lower(5, 5), -step / 2 * distance)
        assert_rows_close(attention.reference(*tensors), expected, 1e-5)


def test_fingerprints_are_of_the_structure() -> None:
    one = text(ALIBI, slopes=torch.ones(2))
    assert one.fingerprint == text(ALIBI, slopes=torch.zeros(4), window=9).fingerprint
    assert one.fingerprint == one.bind(window=3).fingerprint
    renamed = ALIBI.replace("slopes", "s").replace("window", "w").replace("alibi", "other")
    assert one.fingerprint == text(renamed, s=torch.ones(2)).fingerprint
    assert one.fingerprint != text(ALIBI.replace("<=", "<", 1), slopes=torch.ones(2)).fingerprint
    assert one.fingerprint != text(ALIBI.replace("score - slopes", "score + slopes"), slopes=torch.ones(2)).fingerprint


def test_python_and_text_are_one_program() -> None:
    slopes = torch.ones(2)
    written, traced = text(ALIBI, slopes=slopes), traced_alibi(slopes)
    assert written.fingerprint == traced.fingerprint
    plain = [[line for line in attention.source().splitlines() if "# " not in line] for attention in (written, traced)]
    assert sorted(plain[0]) == sorted(plain[1])
    tensors = qkv()
    assert torch.equal(written.reference(*tensors), traced.reference(*tensors))


def test_fingerprints_and_sources_are_those_of_another_process() -> None:
    code = f"import attndsl as ad\n(a,) = ad.parse({ALIBI!r})\nprint(a.fingerprint)\nprint(a.source())"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    ).stdout
    attention = text(ALIBI, slopes=torch.ones(2))
    assert printed == f"{attention.fingerprint}\n{attention.source()}\n"


def test_copies_have_tensors_of_their_own() -> None:
    slopes, tensors = torch.ones(2), qkv()
    attention = text(ALIBI, slopes=slopes)
    copied = copy.deepcopy(attention)
    before = attention.reference(*tensors)
    slopes.zero_()
    assert torch.equal(copied.reference(*tensors), before)
    assert not torch.equal(attention.reference(*tensors), before)


def test_copies_share_tensors_with_what_is_copied_beside_them() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slopes = torch.nn.Parameter(torch.ones(2))
            self.attention = text(ALIBI, slopes=self.slopes)

    layer, tensors = copy.deepcopy(Layer()), qkv()
    layer.attention.reference(*tensors).square().sum().backward()
    assert layer.slopes.grad is not None
    assert layer.slopes.grad.ne(0).any()


@pytest.mark.parametrize("make", [lambda slopes: text(ALIBI, slopes=slopes), traced_alibi], ids=["text", "python"])
def test_pickles_are_the_same_attention(make: Callable[[Tensor], Attention]) -> None:
    attention, tensors = make(torch.tensor([0.5, 2.0])), qkv()
    copied = pickle.loads(pickle.dumps(attention))
    assert copied.fingerprint == attention.fingerprint
    assert copied.name == attention.name
    assert torch.equal(copied.reference(*tensors), attention.reference(*tensors))
    assert copied.bind(window=2).plan(100).counts == attention.bind(window=2).plan(100).counts


def test_an_attention_lets_go_of_calls() -> None:
    """Remembered facts keep neither the tensors of a call nor captured ones of another attention alive."""
    attention, tensors = text(DOCUMENTS, doc=torch.zeros(1, 5, dtype=torch.int64)), qkv()
    attention(*tensors)
    held = weakref.ref(tensors[0])
    del tensors
    assert held() is None
    doc = torch.zeros(1, 5, dtype=torch.int64)
    bound = attention.bind(doc=doc)
    bound(*qkv())
    held = weakref.ref(doc)
    del doc, bound
    assert held() is None


# What is asked of an attention.


def test_invalidate_sees_what_torch_does_not() -> None:
    doc = torch.zeros(1, 5, dtype=torch.int64)
    attention, tensors = text(PERMUTED, order=doc, table=torch.ones(3)), qkv()
    attention(*tensors)
    doc.numpy()[0, 2] = 7
    attention(*tensors)
    attention.invalidate()
    with pytest.raises(CallError, match="it is 7 at"):
        attention(*tensors)


def test_printed_forms() -> None:
    attention = text(ALIBI, slopes=torch.ones(2), window=7)
    assert repr(attention) == f"<attention alibi {attention.fingerprint[:12]}>"
    assert "window: int = 7" in attention.text
    assert text(attention.text, slopes=torch.ones(2)).fingerprint == attention.fingerprint
    assert attention.kernels() == ("forward", "backward_dq", "backward_dkv")
    assert attention.ir(after="fold_constants").startswith("attention alibi(")


def test_plan_of_a_call() -> None:
    attention = text(CAUSAL)
    plan = attention.plan(512)
    assert plan.counts == {"full": 6, "partial": 4, "empty": 6}
    assert plan.strategy == "closed_form"
    assert plan.nbytes == 0
    assert plan.sparsity == 6 / 16
    assert plan.classes().shape == (1, 1, 4, 4)
    assert attention.plan(512, batch=3, heads=2).classes().shape == (1, 1, 4, 4)
    assert attention.plan(128, 512, q_offset=384).counts == {"full": 3, "partial": 1, "empty": 0}


def test_a_plan_leaves_scores_alone() -> None:
    """The slopes of ALiBi have no say in what is masked: a plan for one head needs no more of them than it has."""
    assert text(ALIBI, slopes=torch.ones(1)).plan(256, heads=4).counts["empty"] == 1


def test_explain_names_the_reasons() -> None:
    explained = str(text(ALIBI, slopes=torch.ones(2), window=100).explain(16384))
    for words in ("closed_form", "keys end at `q_idx`", "full", "empty", "GFLOP", "forward"):
        assert words in explained


def test_explain_of_what_kernels_cannot_do() -> None:
    nested = "score / row_sum(abs(score - row_sum(score)))"
    assert "normalizer-needs-more-passes" in str(text(f"attention a {{\n    normalizer  {nested}\n}}").explain(256))

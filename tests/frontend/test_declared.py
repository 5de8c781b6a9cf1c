"""Parameters that are declared before they have a value, and parameters that several mods share."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compare import assert_rows_close
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention
from attndsl.diagnostics import CallError, ProgramError


@ad.score_mod
def penalty(score, h, q_idx, kv_idx, *, slopes: ad.Tensor["H"], strength: float):  # noqa: F821, UP037
    return score - strength * slopes[h] * (q_idx - kv_idx)


@ad.mask_mod
def near(q_idx, kv_idx, *, window: int):
    return (kv_idx <= q_idx) & (q_idx - kv_idx < window)


@ad.score_mod
def beyond(score, q_idx, kv_idx, *, window):
    return score - ad.minimum(q_idx - kv_idx, window)


SLOPES = torch.tensor([0.5, 0.25])
REACH, GAIN = ad.param("reach", 3), ad.param("gain", ad.Tensor["H"])
VALUES: dict[str, Any] = {"slopes": SLOPES, "strength": 2, "window": 5}
TEXT = """
attention near_penalty(slopes: tensor[H], strength: float, window: int) {
    let d0 = q_idx - kv_idx
    mask        kv_idx <= q_idx and d0 < window
    score       score - strength * slopes[h] * float(d0)
}
"""


def qkv() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 19, 8, generator=generator, dtype=torch.float64) for _ in "qkv"]


def open_attention() -> Attention:
    return ad.attention(mask_mod=near, score_mod=penalty)


def messages(function: Callable[[], Any], kind: type[Exception] = CallError) -> str:
    with pytest.raises(kind) as caught:
        function()
    return str(caught.value)


def test_the_program_is_that_of_a_text() -> None:
    attention = open_attention()
    assert attention.text.strip() == TEXT.strip()
    assert attention.fingerprint == ad.parse(TEXT).near_penalty.fingerprint
    assert "backward_dq" in attention.kernels()
    learnt = {"slopes": SLOPES.clone().requires_grad_(), "strength": 2.0}
    bound = ad.attention(mask_mod=near(window=5), score_mod=penalty(**learnt))
    (_, _, found), (_, _, expected) = (one.source("backward_dq").split('"""', 2) for one in (attention, bound))
    assert found == expected, "kernels give the gradients of what may be learnt"


def test_a_bound_one_is_what_its_values_make_it() -> None:
    given = qkv()
    found = open_attention().bind(window=5).bind(slopes=SLOPES, strength=2)
    expected = ad.attention(mask_mod=near(window=5), score_mod=penalty(slopes=SLOPES, strength=2.0))
    assert_rows_close(found.reference(*given), expected.reference(*given), 0.0)
    assert str(found.plan(64)) == str(expected.plan(64))
    assert found.bind(window=3).plan(64).counts != expected.plan(64, block=(2, 2)).counts


def test_a_call_says_everything_that_has_no_value() -> None:
    given, attention = qkv(), open_attention().bind(strength=2.0)
    asked = (
        lambda: attention(*given),
        lambda: attention.reference(*given),
        lambda: attention.plan(64),
        lambda: copy.deepcopy(attention)(*given),
        lambda: pickle.loads(pickle.dumps(attention))(*given),
    )
    for ask in asked:
        assert messages(ask) == (
            "error[missing-parameter]: `slopes` has no value\n help: bind `slopes=...`, a float tensor [H]\n"
            "error[missing-parameter]: `window` has no value\n help: bind `window=...`, an int"
        )
    again = pickle.loads(pickle.dumps(attention)).bind(slopes=SLOPES, window=5)
    assert_rows_close(again.reference(*given), open_attention().bind(**VALUES).reference(*given), 0.0)


def test_values_fit_what_is_declared() -> None:
    found = messages(lambda: open_attention().bind(slopes=torch.ones(2, 2), window=2.5, strength=SLOPES))
    assert "`slopes` is a float tensor [H], got a float tensor with 2 dimension(s)" in found
    assert "`window` is an int, got a value of type float" in found
    assert "`strength` is a float, got a float tensor with 1 dimension(s)" in found


def test_declarations_stand_for_values() -> None:
    attention = ad.attention(
        mask_mod=ad.masks.document(doc=ad.IntTensor["B, N"]) & ad.masks.padding(lengths=ad.IntTensor["B"]),
        normalizer=ad.softmax(sink=ad.Tensor["H"]),
        name="packed",
    )
    assert attention.text.startswith("attention packed(doc: int tensor[B, N], lengths: int tensor[B], sink: tensor[H])")
    assert "sink = sink[h]" in attention.text
    scalar = ad.attention(normalizer=ad.softmax(sink=ad.Tensor[()]))
    assert "(sink: tensor[])" in scalar.text
    assert "softmax(sink = sink)" in scalar.text
    assert "(keep: bool tensor[B, 3])" in ad.attention(mask_mod=_kept(ad.BoolTensor["B", 3]), name="a").text


def _kept(keep: Any) -> Callable[..., Any]:
    return lambda b, kv_idx: keep[b][kv_idx] | keep[b, 0] | keep[0][kv_idx] | keep[0, 2]


def test_shapes_the_library_refuses() -> None:
    assert "is a float tensor [A, B, C, D]" in messages(lambda: ad.softmax(sink=ad.Tensor["A, B, C, D"]))
    assert "is a float tensor without dimensions" in messages(lambda: ad.normalizers.prior(ad.Tensor[()]))


def test_defaults_and_partials_may_be_declarations() -> None:
    @ad.score_mod
    def biased(score, h, *, bias=ad.Tensor["H"]):
        return score + bias[h]

    assert "(bias: tensor[H])" in ad.attention(score_mod=biased).text
    part = functools.partial(lambda score, h, *, bias: score + bias[h], bias=ad.Tensor["H"])
    assert "(bias: tensor[H])" in ad.attention(score_mod=part).text


def test_one_value_of_several_mods() -> None:
    window = ad.param("reach", 5)
    shared = ad.attention(mask_mod=near(window=window), score_mod=beyond(window=window), name="shared")
    assert shared.text.startswith("attention shared(reach: int = 5) {")
    apart = ad.attention(mask_mod=near(window=5), score_mod=beyond(window=5))
    given = qkv()
    assert_rows_close(shared.reference(*given), apart.reference(*given), 0.0)
    assert 'one parameter: pass them `ad.param("window", ...)`' in messages(lambda: apart.bind(window=3))
    both = apart.bind(near_window=3, beyond_window=3)
    assert_rows_close(shared.bind(reach=3).reference(*given), both.reference(*given), 0.0)
    assert near(window=window)(4, 0) is True
    assert near(window=window)(5, 0) is False


def test_one_open_tensor_of_several_mods() -> None:
    ids = ad.param("ids", ad.IntTensor["N"])
    mask = ad.masks.document(doc=ids) & ~ad.masks.document(doc=ad.param("others", torch.arange(19)))
    attention = ad.attention(mask_mod=mask | ad.masks.document(doc=ids), name="a")
    assert attention.text.startswith("attention a(ids: int tensor[N], others: int tensor[N])")
    open_window = ad.param("window", int)
    of_closures = ad.attention(
        mask_mod=lambda q_idx, kv_idx: q_idx - kv_idx < open_window,
        score_mod=lambda score, q_idx: score + (open_window > q_idx).to(torch.float32),
        name="a",
    )
    assert of_closures.text.startswith("attention a(window: int) {")
    of_module = ad.attention(
        mask_mod=lambda q_idx, kv_idx: q_idx - kv_idx < REACH, score_mod=lambda score, h: score * GAIN[h], name="a"
    )
    assert of_module.text.startswith("attention a(gain: tensor[H], reach: int = 3) {")


def test_a_graph_has_no_place_for_what_has_no_value() -> None:
    attention, tensors = open_attention(), qkv()
    with pytest.raises(Exception, match="no place for a parameter without a value"):
        torch.compile(attention, fullgraph=True, backend="eager")(*tensors)


def test_a_name_written_twice_is_two_parameters() -> None:
    mods = {"mask_mod": near(window=ad.param("w", 5)), "score_mod": beyond(window=ad.param("w", 5))}
    assert ad.attention(**mods, name="a").text.startswith("attention a(w: int = 5, w_2: int = 5)")


def test_predicates_of_a_mass_are_bound_too() -> None:
    given, share = qkv(), ad.aux.mass(near)
    attention = ad.attention(mask_mod=ad.masks.causal)
    assert "`window` has no value" in messages(lambda: attention.reference(*given, return_aux=[share]))
    found, expected = (
        attention.reference(*given, return_aux=[one])[1].mass
        for one in (share.bind(window=3), ad.aux.mass(near(window=3)))
    )
    assert_rows_close(found[..., None], expected[..., None], 0.0)
    assert 0 < float(found.min()) < float(found.max()) == pytest.approx(1)


def test_what_a_function_raises_is_its_own() -> None:
    def raises(q_idx, kv_idx, *, size: int):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ad.attention(mask_mod=raises)


def test_annotations_nobody_can_evaluate_declare_nothing() -> None:
    def odd(q_idx, kv_idx, *, size: "no such ] thing", other: Missing = 3):  # noqa: F722, F821
        return q_idx - kv_idx < size + other

    with pytest.raises(ProgramError, match="has no value for `size`"):
        ad.attention(mask_mod=odd)
    assert "size: int = 4" in ad.attention(mask_mod=ad.mask_mod(odd)(size=4)).text


def test_callable_objects_declare_too() -> None:
    class Bias:
        def __call__(self, score, b, h, *, bias: ad.Tensor[B, H]):  # noqa: F821
            return score + bias[b, h]

    assert "(bias: tensor[B, H])" in ad.attention(score_mod=Bias()).text

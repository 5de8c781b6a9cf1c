"""Captured tensors: how they are indexed, what is recorded and replayed, and how their values are swapped."""

from __future__ import annotations

import pytest
import torch

import attndsl as ad
from attndsl.diagnostics import CallError, ProgramError
from attndsl.frontend.parse import parse
from attndsl.frontend.tracing import Program, trace
from attndsl.ir import build
from attndsl.ir.types import DType
from attndsl.ir.variant import TensorParam

BIAS = torch.rand(2, 4, 8, 8)
SLOPES = torch.rand(4)


@ad.score_mod
def alibi(score, h, q_idx, kv_idx, *, slopes):
    return score - slopes[h] * (q_idx - kv_idx)


@ad.mask_mod
def near(q_idx, kv_idx, *, window):
    return q_idx - kv_idx < window


def score_of(function) -> Program:
    return trace(score_mod=function)


def loads(program: Program) -> dict[str, object]:
    return {param.name: program.variant.loads_of(param.name) for param in program.variant.tensors}


NESTED = [
    lambda score, b, h, q, k: score + BIAS[b, h, q, k],
    lambda score, b, h, q, k: score + BIAS[b][h][q][k],
    lambda score, b, h, q, k: score + BIAS[b][h, q, k],
    lambda score, b, h, q, k: score + BIAS[b, h][q, k],
    lambda score, b, h, q, k: score + BIAS[b, :, q][h, k],
    lambda score, b, h, q, k: score + BIAS[:, h][b][q, k],
    lambda score, b, h, q, k: score + BIAS[..., k][b, h, q],
    lambda score, b, h, q, k: score + BIAS[b, ..., k][h, q],
    lambda score, b, h, q, k: score + BIAS[b, h, :, k][q],
]


@pytest.mark.parametrize("number", range(len(NESTED)))
def test_nested_indexing_is_one_load(number: int) -> None:
    program = score_of(NESTED[number])
    expected = build.load("BIAS", (build.B, build.H, build.Q, build.K), DType.F32)
    assert loads(program) == {"BIAS": (expected,)}
    assert program.variant.params == (TensorParam("BIAS", DType.F32, ("B", "H", "Q", "K")),)
    assert program.bindings.resolve()["BIAS"] is BIAS


DERIVED = [
    (lambda score, b, h, q, k: score + BIAS[0][h, q, k], "BIAS_0", BIAS[0]),
    (lambda score, b, h, q, k: score + BIAS[:, 0][b, q, k], "BIAS_0", BIAS[:, 0]),
    (lambda score, b, h, q, k: score + BIAS[-1, h, q, k], "BIAS_m1", BIAS[-1]),
    (lambda score, b, h, q, k: score + BIAS[b, 1:, 2:, 3:][h, q, k], "BIAS_rows", BIAS[:, 1:, 2:, 3:]),
    (lambda score, b, h, q, k: score + torch.sigmoid(SLOPES)[h], "SLOPES_sigmoid", torch.sigmoid(SLOPES)),
    (lambda score, b, h, q, k: score + SLOPES.exp().log()[h], "SLOPES_exp_log", SLOPES.exp().log()),
    (lambda score, b, h, q, k: score + BIAS[0, 0].t()[q, k], "BIAS_0_0_t", BIAS[0, 0].t()),
    (lambda score, b, h, q, k: score + BIAS[0, 0].T[q, k], "BIAS_0_0_T", BIAS[0, 0].t()),
    (lambda score, b, h, q, k: score + SLOPES.mean(), "SLOPES_mean", SLOPES.mean()),
    (lambda score, b, h, q, k: score + BIAS.unbind(1)[2][b, q, k], "BIAS_unbind", BIAS[:, 2]),
    (lambda score, b, h, q, k: score + ad.exp(SLOPES)[h], "SLOPES_exp", SLOPES.exp()),
]


@pytest.mark.parametrize("number", range(len(DERIVED)))
def test_operations_on_captured_tensors_are_replayed(number: int) -> None:
    function, name, value = DERIVED[number]
    program = score_of(function)
    resolved = program.bindings.resolve()
    assert list(resolved) == [name]
    torch.testing.assert_close(resolved[name], value)


def test_replaying_sees_new_values_and_gradients() -> None:
    slopes = torch.rand(4, requires_grad=True)
    program = score_of(lambda score, h: score * torch.sigmoid(slopes * 2.0)[h])
    (name,) = (param.name for param in program.variant.params)
    with torch.no_grad():
        slopes.add_(1.0)
    value = program.bindings.resolve()[name]
    torch.testing.assert_close(value, torch.sigmoid(slopes * 2.0))
    value.sum().backward()
    expected = torch.autograd.grad(torch.sigmoid(slopes * 2.0).sum(), slopes)[0]
    torch.testing.assert_close(slopes.grad, expected)


def test_one_operation_written_twice_is_one_parameter() -> None:
    program = score_of(lambda score, h, b: score * torch.sigmoid(SLOPES)[h] + torch.sigmoid(SLOPES)[b])
    assert len(program.variant.params) == 1


def test_the_tensor_and_what_is_computed_from_it() -> None:
    program = score_of(lambda score, h: score * torch.sigmoid(SLOPES)[h] + SLOPES[h])
    assert set(program.bindings.resolve()) == {"SLOPES_sigmoid", "SLOPES"}
    new = torch.rand(4)
    resolved = program.bindings.bind(SLOPES=new).resolve()
    assert resolved["SLOPES"] is new
    torch.testing.assert_close(resolved["SLOPES_sigmoid"], new.sigmoid())


def test_zero_dimensional_tensors_are_loads() -> None:
    scale = torch.tensor(2.0)
    program = score_of(lambda score: scale * score + score * scale)
    load = build.load("scale", (), DType.F32)
    assert loads(program) == {"scale": (load,)}
    assert program.variant.tensors == (TensorParam("scale", DType.F32, ()),)


def test_tensors_made_inside_are_constants_or_tables() -> None:
    program = score_of(lambda score, h: score + torch.tensor(0.5))
    assert program.variant.params == ()
    program = score_of(lambda score, h: score + torch.arange(8, device=score.device)[h])
    (param,) = program.variant.params
    assert param == TensorParam(param.name, DType.I64, ("H",))
    torch.testing.assert_close(program.bindings.resolve(torch.device("cpu"))[param.name], torch.arange(8))
    with pytest.raises(CallError, match="the parameters are none"):
        program.bindings.bind(**{param.name: torch.arange(9)})


def test_the_device_of_a_symbol_is_wherever_the_call_runs() -> None:
    program = score_of(lambda score, h: score + SLOPES.to(score.device)[h])
    assert program.bindings.resolve()["SLOPES"] is SLOPES


def test_a_symbol_looks_like_a_tensor_of_one_element() -> None:
    def looks(score, q_idx, kv_idx):
        assert score.shape == ()
        assert score.ndim == 0 == score.dim()
        assert score.dtype == torch.float32
        assert q_idx.dtype == torch.int64
        assert (q_idx < kv_idx).dtype == torch.bool
        assert BIAS[q_idx].shape == (4, 8, 8)
        assert SLOPES.shape == (4,)
        assert SLOPES.dtype == torch.float32
        return score

    assert score_of(looks).variant.score is build.SCORE


def test_names_of_dimensions() -> None:
    ids = torch.zeros(2, 8, dtype=torch.int32)
    program = trace(mask_mod=lambda b, q_idx, kv_idx: ids[b, q_idx] == ids[b, kv_idx])
    assert program.variant.params == (TensorParam("ids", DType.I64, ("B", "N")),)
    program = score_of(lambda score, h, q_idx, kv_idx: score + BIAS[0, h, q_idx - kv_idx, 3] + BIAS[1, h, 0, h])
    assert program.variant.params == (TensorParam("BIAS", DType.F32, ("D0", "H", "D2", "D3")),)


def test_one_tensor_under_two_names_is_two_parameters() -> None:
    @ad.score_mod
    def other(score, h, *, gain):
        return score * gain[h]

    program = trace(score_mod=[alibi(slopes=SLOPES), other(gain=SLOPES)])
    resolved = program.bindings.resolve()
    assert resolved["slopes"] is resolved["gain"] is SLOPES


def test_one_tensor_in_two_closures_is_one_parameter() -> None:
    def shift(slopes):
        return lambda score, b, h, q, k: score + slopes[h]

    def scale(slopes):
        return lambda score, b, h, q, k: score * slopes[h]

    program = trace(score_mod=[shift(SLOPES), scale(SLOPES)])
    assert list(program.bindings.resolve()) == ["slopes"]
    program = trace(score_mod=[shift(SLOPES), shift(BIAS[0, :, 0, 0])])
    assert list(program.bindings.resolve()) == ["slopes", "slopes_2"]


def test_mixed_with_text() -> None:
    program = trace(score_mod=lambda score, h, kv_idx: score + BIAS[kv_idx % 2, h, 0, kv_idx // 2])
    text = "attention a(BIAS: tensor[B, H, Q, K]) { score score + BIAS[kv_idx % 2, h, 0, kv_idx // 2] }"
    assert program.variant.score is parse(text)[0].score


# Binding.


def test_bind_swaps_values_and_keeps_the_rest() -> None:
    program = trace(mask_mod=near(window=8), score_mod=alibi(slopes=SLOPES))
    new = torch.rand(6)
    bound = program.bindings.bind(window=9, slopes=new)
    assert bound.resolve() == {"slopes": new, "window": 9}
    assert program.bindings.resolve()["window"] == 8
    assert program.bindings.bind(**{"near.window": 3}).resolve()["window"] == 3


def test_bind_takes_ints_for_floats() -> None:
    program = trace(score_mod=ad.scores.soft_cap(cap=50.0))
    value = program.bindings.bind(cap=30).resolve()["cap"]
    assert isinstance(value, float)
    assert value == 30.0


MISFITS = {
    "an int": ({"window": 2.5}, "`window` is an int, got a value of type float"),
    "no bool": ({"window": True}, "`window` is an int, got a value of type bool"),
    "no tensor": ({"window": torch.tensor(3)}, "`window` is an int, got a int tensor with 0 dimension"),
    "no number": ({"slopes": 2.0}, "`slopes` is a float tensor with 1 dimension.*got a value of type float"),
    "rank": ({"slopes": torch.rand(2, 2)}, "got a float tensor with 2 dimension"),
    "kind": ({"slopes": torch.arange(4)}, "got a int tensor"),
    "unknown": ({"slope": SLOPES}, "no parameter `slope`\n note: the parameters are `slopes`, `window`"),
    "dotted": ({"far.window": 3}, "no parameter `far.window`"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_bind_refuses(case: str) -> None:
    values, message = MISFITS[case]
    program = trace(mask_mod=near(window=8), score_mod=alibi(slopes=SLOPES))
    with pytest.raises(CallError, match=message):
        program.bindings.bind(**values)


def test_bind_reports_everything_together() -> None:
    program = trace(mask_mod=near(window=8), score_mod=alibi(slopes=SLOPES))
    with pytest.raises(CallError) as caught:
        program.bindings.bind(window=1.5, slopes=3, nothing=1)
    assert [found.code for found in caught.value.diagnostics] == [
        "parameter-type",
        "parameter-type",
        "unknown-parameter",
    ]


def test_an_ambiguous_dotted_name_is_refused() -> None:
    program = trace(mask_mod=near(window=8) & near(window=9))
    with pytest.raises(CallError, match=r"could be any of `near_window`, `near_window_2`"):
        program.bindings.bind(**{"near.window": 3})


def test_a_size_that_python_read_is_fixed() -> None:
    program = score_of(lambda score, h: score * SLOPES[h] * SLOPES.shape[0])
    assert program.bindings.bind(SLOPES=torch.rand(4))
    with pytest.raises(CallError, match=r"traced with the sizes of `SLOPES`, \[4\], got \[5\]"):
        program.bindings.bind(SLOPES=torch.rand(5))
    free = score_of(lambda score, h: score * SLOPES[h])
    assert free.bindings.bind(SLOPES=torch.rand(5))


def test_what_is_computed_cannot_be_bound() -> None:
    program = score_of(lambda score, h: score * torch.sigmoid(SLOPES)[h])
    with pytest.raises(CallError, match="`SLOPES_sigmoid` is computed inside the variant"):
        program.bindings.bind(SLOPES_sigmoid=SLOPES)


def test_a_complex_tensor_is_refused() -> None:
    table = torch.zeros(4, dtype=torch.complex64)
    with pytest.raises(ProgramError, match=r"`table` is a tensor of torch\.complex64"):
        score_of(lambda score, h: score + table[h])


def test_tracing_leaves_captured_tensors_alone() -> None:
    slopes = torch.rand(4, requires_grad=True)
    before = slopes._version
    program = trace(score_mod=[alibi(slopes=slopes), lambda score, b, h, q, k: score + slopes.exp()[h]])
    assert slopes._version == before
    assert program.bindings.resolve()["alibi_slopes"] is slopes


def test_names_from_where_a_tensor_is_indexed() -> None:
    layer = torch.nn.Embedding(4, 8)
    program = score_of(lambda score, h, q_idx: score + layer.weight[h, q_idx])
    assert list(program.bindings.resolve()) == ["weight_"]

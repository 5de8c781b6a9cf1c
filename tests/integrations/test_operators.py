"""Operators on their own: sound to torch's checks, kept out of CUDA graphs where they read values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import ATTENTIONS, Calling, inputs, window
from torch import Tensor

import attndsl as ad
from attndsl import operators
from attndsl.diagnostics import UnsupportedError

pytestmark = [
    pytest.mark.usefixtures("forgotten"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # torch's compiler warns of torch itself
]


def arguments(attend: Any, args: list[Tensor], **more: Any) -> tuple[Any, ...]:
    """The arguments of `attndsl::attend`, for an attention without scalars."""
    values = attend._bindings.resolve()
    how = {"scale": None, "enable_gqa": False, "program": attend._compilation.text(), **more}
    numbers = (how["scale"], how["enable_gqa"])
    return (*args, list(values.values()), [], [], None, 0, *numbers, how["program"], "", False, "auto")


FACTORS = torch.tensor([1.0, 0.5], requires_grad=True)
SMALL = ad.attention(mask_mod=lambda q_idx, kv_idx: kv_idx <= q_idx, score_mod=lambda score, h: score * FACTORS[h])


def relative(table: Tensor) -> Callable[..., Any]:
    return lambda score, q_idx, kv_idx: score + table[q_idx - kv_idx + 20]


TABLE = torch.zeros(40)
LEARNT = torch.zeros(40, requires_grad=True)
TIMES = torch.arange(40) / 4


@pytest.mark.parametrize("operator", [torch.ops.attndsl.attend, torch.ops.attndsl.attend_by_values])
def test_the_operators_are_sound(operator: Any) -> None:
    given = arguments(SMALL, inputs(18, heads=2, kv_heads=2))
    torch.library.opcheck(operator.default, given)


def test_the_backward_is_sound() -> None:
    with torch.no_grad():
        tensors = [one.detach() for one in inputs(18, heads=2, kv_heads=2)]
        given = arguments(SMALL.bind(FACTORS=FACTORS.detach()), tensors)
        rows = operators.attend(*given, by_values=False)
    cotangents = [torch.ones_like(rows[0]), None, torch.ones_like(rows[2])]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    needed = [True, True, False, True]
    backward = torch.ops.attndsl.attend_backward.default
    torch.library.opcheck(backward, (*given, rows, cotangents, needed), test_utils=checks)
    dq, dk, dfactors = backward(*given, rows, cotangents, needed)
    assert (dq.shape, dk.shape, dfactors.shape) == (rows[0].shape, rows[0].shape, FACTORS.shape)


def test_values_keep_an_operator_out_of_cuda_graphs() -> None:
    unsafe = torch.Tag.cudagraph_unsafe
    assert unsafe not in torch.ops.attndsl.attend.default.tags
    assert unsafe not in torch.ops.attndsl.attend_backward.default.tags
    assert unsafe in torch.ops.attndsl.attend_by_values.default.tags
    assert unsafe in torch.ops.attndsl.attend_by_values_backward.default.tags


@pytest.mark.parametrize(
    "attend, how, name",
    [
        (ad.attention(mask_mod=window(size=9)), {}, "attend"),
        (SMALL, {}, "attend"),
        (ATTENTIONS["documents"], {}, "attend_by_values"),
        (ad.attention(score_mod=relative(TABLE)), {}, "attend"),
        (
            ad.attention(score_mod=relative(LEARNT)),
            {},
            "attend_by_values",
        ),
        (ad.attention(mask_mod=window(size=9)), {"q_offset": torch.tensor([0, 1])}, "attend_by_values"),
        (ad.attention(mask_mod=lambda q_idx, kv_idx: TIMES[q_idx] - TIMES[kv_idx] < 2.5), {}, "attend_by_values"),
        (ad.attention(mask_mod=lambda q_idx, kv_idx: (TIMES[q_idx] > 2.5) & (kv_idx <= q_idx)), {}, "attend"),
    ],
)
def test_calls_that_read_values_take_the_operator_that_may(attend: Any, how: dict[str, Any], name: str) -> None:
    args = tuple(one.detach() for one in inputs(20, heads=2, kv_heads=2))
    program = torch.export.export(Calling(lambda *args: attend(*args, **how)), args, strict=False)
    called = [node.target for node in program.graph.nodes if "attndsl" in str(node.target)]
    assert called == [getattr(torch.ops.attndsl, name).default]


@pytest.mark.usefixtures("dense_engines")
def test_gradients_of_gradients_are_refused() -> None:
    args = inputs(20, dtype=torch.float64)
    out, *_ = operators.attend(*arguments(ad.attention(), args), by_values=False)
    (dq,) = torch.autograd.grad(out.sum(), args[:1], create_graph=True)
    with pytest.raises(UnsupportedError) as caught:
        dq.sum().backward()
    assert [one.code for one in caught.value.diagnostics] == ["double-backward"]


def test_mapped_calls_are_refused() -> None:
    args = [one.detach()[None] for one in inputs(20)]
    with pytest.raises(UnsupportedError) as caught:
        torch.vmap(lambda *args: operators.attend(*arguments(ad.attention(), list(args)), by_values=False))(*args)
    assert [one.code for one in caught.value.diagnostics] == ["no-vmap"]

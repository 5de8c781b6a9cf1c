"""Mods outside of a trace: binding, calling, combining."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

import attndsl as ad
from attndsl.frontend.decorators import MaskMod
from attndsl.frontend.tracing import trace


@ad.mask_mod
def near(q_idx, kv_idx, *, window=4):
    """Close by."""
    return abs(q_idx - kv_idx) < window


@ad.mask_mod
def reordered(kv_idx, q_idx, h, b):
    return (kv_idx <= q_idx) & (b <= h)


@ad.score_mod
def bump(score, h, *, by):
    return score + by * h


def test_a_mod_keeps_the_face_of_its_function() -> None:
    assert near.__name__ == "near"
    assert near.__doc__ == "Close by."
    assert repr(near(window=3)) == "<mask_mod near(window=3)>"
    assert repr(bump(by=torch.rand(4))) == "<score_mod bump(by=tensor[4])>"
    assert list(inspect.signature(near).parameters) == ["b", "h", "q_idx", "kv_idx"]


def test_calls_in_its_own_order_and_in_flexattentions() -> None:
    assert near(7, 5) is True
    assert near(0, 0, 7, 2) is False
    assert near(q_idx=7, kv_idx=5) is True
    assert near(q_idx=7, kv_idx=5, window=1) is False
    assert reordered(1, 2, 3, 0) is True
    assert bump(1.0, 2, by=3.0) == 7.0
    assert bump(by=3.0)(1.0, 0, 2, 5, 5) == 7.0


def test_calls_on_tensors() -> None:
    q, k = torch.arange(6)[:, None], torch.arange(6)[None, :]
    mask = ad.masks.causal & ~near(window=2)
    expected = (k <= q) & ~((q - k).abs() < 2)
    assert torch.equal(mask(q, k), expected)
    assert torch.equal(mask(0, 0, q, k), expected)
    assert torch.equal((ad.masks.causal ^ near)(q, k), (k <= q) ^ ((q - k).abs() < 4))
    assert torch.equal((ad.masks.causal | near)(q, k), (k <= q) | ((q - k).abs() < 4))


def test_calls_on_numbers() -> None:
    assert (~near)(1, 9) is True
    assert (near | ad.masks.causal)(9, 1) is True
    assert ad.masks.full() is ad.masks.full


def test_masks_combine_with_plain_functions_on_either_side() -> None:
    def causal(b, h, q, k):
        return k <= q

    left, right = causal & near, near & causal
    assert isinstance(left, MaskMod)
    assert left(0, 0, 9, 8) is True
    assert left(0, 0, 8, 9) is right(0, 0, 8, 9) is False
    assert trace(mask_mod=left).variant.mask is not trace(mask_mod=right).variant.mask
    assert (causal | near)(0, 0, 1, 2) is (causal ^ near)(0, 0, 1, 2) is True


def test_parameters_of_combined_masks_are_bound_together() -> None:
    @ad.mask_mod
    def far(q_idx, kv_idx, *, limit):
        return q_idx - kv_idx > limit

    both = far & ad.masks.causal
    assert trace(mask_mod=both(limit=5)).bindings.resolve() == {"limit": 5}
    assert both.open_names() == {"limit"}
    assert both(limit=5).open_names() == set()


def test_torch_evaluates_mods_as_its_own() -> None:
    mask = create_mask(ad.masks.sliding_window(window=3), 1, 1, 8, 8, device="cpu")
    q, k = torch.arange(8)[:, None], torch.arange(8)[None, :]
    assert torch.equal(mask[0, 0], (k <= q) & (q - k < 3))


def test_a_decorated_mod_is_itself() -> None:
    assert ad.mask_mod(near) is near


NUMBERS = {
    "exp": math.exp,
    "exp2": lambda x: 2.0**x,
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "erf": math.erf,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "abs": abs,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_mathematics_on_numbers_and_tensors(name: str) -> None:
    function = getattr(ad, name)
    assert function(1.25) == pytest.approx(NUMBERS[name](1.25))
    value = function(torch.tensor(1.25, dtype=torch.float64))
    assert value.item() == pytest.approx(NUMBERS[name](1.25))


def test_mathematics_of_several_operands() -> None:
    assert ad.where(True, 1, 2) == 1
    assert torch.equal(ad.where(torch.tensor([True, False]), 1.0, 2.0), torch.tensor([1.0, 2.0]))
    assert ad.minimum(3, 1, 2) == 1
    assert ad.maximum(3, 1, 2) == 3
    assert math.isnan(ad.maximum(1.0, math.nan))
    assert torch.equal(ad.maximum(torch.tensor([1, 5]), 3), torch.tensor([3, 5]))
    assert ad.clamp(9, 0, 4) == 4
    assert torch.equal(ad.clamp(torch.tensor([-1, 2, 9]), 0, 4), torch.tensor([0, 2, 4]))


@pytest.mark.parametrize("value", [0, 1, 2, 3, 255, 256, 2**40, 2**62, -5])
def test_bit_length(value: int) -> None:
    assert ad.bit_length(value) == value.bit_length()
    assert ad.bit_length(torch.tensor([value])).item() == value.bit_length()

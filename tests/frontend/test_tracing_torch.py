"""torch's functions on symbols compute what torch computes on tensors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from attndsl.dense import Env, evaluate
from attndsl.diagnostics import ProgramError
from attndsl.frontend.tracing import trace
from attndsl.ir import build

SCORES = torch.tensor([-7.5, -2.0, -1.25, -0.0, 0.0, 0.3, 1.0, 2.5, 30.0], dtype=torch.float64)
POSITIONS = torch.arange(9)

FLOATS = {
    "softplus": lambda x: F.softplus(x, threshold=1000),
    "softplus beta": lambda x: F.softplus(x, beta=2, threshold=1000),
    "gelu": lambda x: F.gelu(x),
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "log1p": lambda x: torch.log1p(x.exp()),
    "square": lambda x: torch.square(x) + x.square(),
    "reciprocal": lambda x: (x.abs() + 1).reciprocal(),
    "fmod": lambda x: torch.fmod(x, 2),
    "trunc": lambda x: torch.trunc(x) + x.fix(),
    "divide towards zero": lambda x: torch.div(x, 2, rounding_mode="trunc"),
    "divide down": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "sign": lambda x: torch.sign(x) * 1.0,
    "remainder": lambda x: torch.remainder(x, 3) + x % 4,
    "reflected": lambda x: torch.tensor(3.0, dtype=torch.float64) - x + 2.0 / (x.abs() + 1),
    "alpha": lambda x: torch.add(x, x, alpha=2) - torch.sub(x, 1, alpha=0.5),
    "one sided": lambda x: torch.clamp(x, min=-1) + x.clamp_max(2) + x.clamp_min(0) + F.relu(x),
    "powers": lambda x: torch.pow(x, 2) + torch.pow(2.0, x) + x**3.0,
    "like": lambda x: torch.ones_like(x) + x.new_full((), 2.0) + torch.full_like(x, 3.0) + x.new_tensor(4.0),
    "fill": lambda x: x.masked_fill(x > 1, -1.0),
    "is": lambda x: torch.isinf(x / 0.25).float() + torch.isnan(x).double() + (~torch.isneginf(x)).to(x.dtype),
    "round": lambda x: torch.round(x) + x.floor() - torch.ceil(x),
}
INTEGERS = {
    "logical": lambda i: torch.logical_and(i > 2, i < 7) ^ torch.logical_or(i == 3, torch.logical_not(i > 4)),
    "logical numbers": lambda i: torch.logical_xor(i, i - 3),
    "bits": lambda i: (torch.bitwise_and(i, 5) | torch.bitwise_xor(i, 3)) == torch.bitwise_not(-i),
    "shifts": lambda i: (torch.bitwise_left_shift(i, 2) >> 1) == (i << 1),
    "quotient": lambda i: torch.div(3 - i, 2, rounding_mode="trunc") == torch.fmod(4 - i, 3),
    "floor": lambda i: torch.floor_divide(3 - i, 2) == (3 - i) // 2,
    "extremes": lambda i: torch.minimum(i, torch.tensor(4)) == torch.max(i, i - 1),
    "bool": lambda i: i.bool() & (i - 1).to(torch.bool),
    "casts": lambda i: (i / 2).long() == (i.float() / 2).to(torch.int32),
    "comparisons": lambda i: torch.lt(i, 3) | torch.ge(i, 7) & torch.ne(i, 8) | torch.eq(i, 5),
    "ones": lambda i: i.new_ones((), dtype=torch.bool) & (i.new_zeros(()) == 0),
}


@pytest.mark.parametrize("name", FLOATS)
def test_on_scores(name: str) -> None:
    function = FLOATS[name]
    traced = trace(score_mod=lambda score: function(score)).variant.score
    got = evaluate(traced, Env({build.SCORE: SCORES}, dtype=torch.float64))
    torch.testing.assert_close(got.expand(9), function(SCORES).to(torch.float64).expand(9))


@pytest.mark.parametrize("name", INTEGERS)
def test_on_positions(name: str) -> None:
    function = INTEGERS[name]
    traced = trace(mask_mod=lambda q_idx: function(q_idx)).variant.mask
    got = evaluate(traced, Env({build.Q: POSITIONS}, dtype=torch.float64))
    assert torch.equal(got.expand(9), function(POSITIONS).expand(9))


REFUSED = {
    "detach": lambda score: score.detach(),
    "cumsum": lambda score: score.cumsum(0),
    "stack": lambda score: torch.stack([score, score]),
    "sizes": lambda score: score + score.new_zeros(3),
    "inplace": lambda score: F.silu(score, inplace=True),
    "out": lambda score: torch.exp(score, out=torch.zeros(())),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(ProgramError, match=r"torch-function|in-place"):
        trace(score_mod=REFUSED[name])


def test_bindings_can_be_copied_and_pickled() -> None:
    table = torch.rand(4, 8)
    program = trace(score_mod=lambda score, h, q_idx: score + table.T[q_idx, h] + torch.sigmoid(table)[h, q_idx])
    for bindings in (copy.deepcopy(program.bindings), pickle.loads(pickle.dumps(program.bindings))):
        resolved = bindings.resolve()
        torch.testing.assert_close(resolved["table_T"], table.T)
        torch.testing.assert_close(resolved["table_sigmoid"], table.sigmoid())

"""Thresholds of rows as `roots` finds them: the definition itself, on random rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attndsl.dense import reduced
from attndsl.ir.types import Reduction
from attndsl.roots import Sums, solve_rows

ROWS, KEYS = 5, 6
DTYPES = (torch.float32, torch.float64)
BODIES = {
    "gap": lambda s, t: (s - t).clamp(min=0),
    "square": lambda s, t: (s - t).clamp(min=0) ** 2,
    "count": lambda s, t: (s > t).to(s.dtype),
    "decay": lambda s, t: torch.exp(s - t),
    "never": lambda s, t: torch.full_like(s - t, math.inf),
}


def row(values: list[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype).view(1, 1, -1, 1)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Sums, Tensor, Tensor, Tensor, Tensor]:
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    size = draw(st.sampled_from((1.0, 1e-3, 1e3, 1e-30)))
    scores = torch.randn(1, 1, ROWS, KEYS, generator=generator, dtype=dtype) * size
    if draw(st.booleans()):
        scores = scores.round()
    live = torch.rand(1, 1, ROWS, KEYS, generator=generator) < draw(st.sampled_from((1.0, 0.5, 0.1)))
    body = BODIES[draw(st.sampled_from(sorted(BODIES)))]

    def sums(threshold: Tensor) -> Tensor:
        return reduced(Reduction.SUM, body(scores, threshold), live)

    numbers = st.sampled_from((0.0, 1.0, -1.0, 2.5, 1e-3, -1e4, 1e4, math.inf, -math.inf))
    ends = [sorted((draw(numbers), draw(numbers))) for _ in range(ROWS)]
    total = row([draw(st.sampled_from((0.0, 1.0, 2.0, 1e-3, 100.0, -1.0))) for _ in range(ROWS)], dtype)
    return sums, total, row([low for low, _ in ends], dtype), row([high for _, high in ends], dtype), live


@given(problems())
def test_the_least_that_is_enough(problem: tuple[Sums, Tensor, Tensor, Tensor, Tensor]) -> None:
    sums, total, lower, upper, live = problem
    found = solve_rows(sums, (), total, lower, upper, live)
    below = torch.nextafter(found, torch.full_like(found, -math.inf))
    visible = live.any(-1, keepdim=True)
    assert torch.equal(found[~visible], lower[~visible])
    assert ((lower <= found) & (found <= upper)).all()
    assert ((sums(found) <= total) | (found == upper) | ~visible).all()
    assert ((sums(below) > total) | (found == lower) | ~visible).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_between_zeros_of_both_signs(dtype: torch.dtype) -> None:
    live = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    lower, upper = row([-1.0], dtype), row([1.0], dtype)
    found = solve_rows(lambda at: (at < 0).to(dtype), (), row([0.0], dtype), lower, upper, live)
    assert found.item() == 0.0


def test_a_row_that_is_no_number_has_no_threshold() -> None:
    live = torch.ones(1, 1, 2, 1, dtype=torch.bool)
    lower, upper = row([0.0, math.nan], torch.float32), row([1.0, 1.0], torch.float32)
    found = solve_rows(lambda at: at * 0.0, (), row([1.0, 1.0], torch.float32), lower, upper, live)
    assert found[0, 0, 0, 0].item() == 0.0
    assert found[0, 0, 1, 0].isnan()

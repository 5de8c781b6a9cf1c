"""The comparison must fail where a reader would say it should."""

import pytest
import torch
from compare import assert_rows_close, row_errors

ROWS = torch.linspace(-1, 1, 64 * 128, dtype=torch.float64).reshape(64, 128)


def changed(row: int, column: int, value: float) -> torch.Tensor:
    actual = ROWS.clone()
    actual[row, column] = value
    return actual


def test_equal_and_slightly_different_rows_pass() -> None:
    assert_rows_close(ROWS, ROWS, 0.0)
    assert_rows_close(ROWS + 1e-7, ROWS, 1e-6)


def test_one_wrong_element_fails_however_small_the_mean() -> None:
    actual = changed(17, 5, float(ROWS[17, 5]) + 1e-3)
    assert float((actual - ROWS).abs().mean()) < 1e-6
    with pytest.raises(AssertionError, match=r"1 of 64 rows .* row \(17,\)"):
        assert_rows_close(actual, ROWS, 1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_fail(value: float) -> None:
    with pytest.raises(AssertionError):
        assert_rows_close(changed(3, 0, value), ROWS, 1e3)
    with pytest.raises(AssertionError):
        assert_rows_close(ROWS, changed(3, 0, value), 1e3)


def test_nan_fails_even_against_nan() -> None:
    with pytest.raises(AssertionError):
        assert_rows_close(changed(3, 0, torch.nan), changed(3, 0, torch.nan), 1.0)


def test_equal_infinities_pass_and_opposite_ones_fail() -> None:
    low = torch.full((2, 1), -torch.inf)
    assert_rows_close(low, low, 0.0)
    with pytest.raises(AssertionError):
        assert_rows_close(low, -low, 1e9)


def test_shapes_must_be_equal() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_rows_close(ROWS[:1], ROWS, 1e9)


def test_large_rows_are_compared_relatively_and_small_ones_absolutely() -> None:
    assert float(row_errors(torch.tensor([[1001.0]]), torch.tensor([[1000.0]]))) == pytest.approx(1e-3)
    assert float(row_errors(torch.tensor([[0.011]]), torch.tensor([[0.01]]))) == pytest.approx(1e-3, rel=1e-3)


def test_nothing_to_compare_passes() -> None:
    assert_rows_close(torch.zeros(2, 0), torch.zeros(2, 0), 0.0)
    assert_rows_close(torch.zeros(0, 4), torch.zeros(0, 4), 0.0)


def test_the_failure_carries_what_was_compared() -> None:
    with pytest.raises(AssertionError, match="kv_idx <= q_idx"):
        assert_rows_close(ROWS + 1, ROWS, 1e-3, "mask  kv_idx <= q_idx")

"""How entries of the gallery are held to their formulas: what its suites share.

In: an entry. Out: nothing, or an `AssertionError` that says which row of what is off. The formula runs in float64, the
entry in float32 through the kernels of `backend="auto"`.
"""

from __future__ import annotations

from typing import Any

import torch
from compare import assert_rows_close
from plans import counted
from torch import Tensor

from attndsl.reference import live_pairs
from examples.gallery.entry import SIZES, Draw, Entry, Inputs, Results, Size
from examples.gallery.recorded import Recorded

FORWARD = 2e-5
GRADIENT = 5e-4
BLOCK = (32, 32)


def drawn(entry: Entry, size: Size) -> Inputs:
    """The inputs of a size, the same each time."""
    return entry.inputs(size, Draw(SIZES.index(size) if size in SIZES else len(SIZES)))


def cast(inputs: Inputs, dtype: torch.dtype, *, learnt: bool = False) -> Inputs:
    """The same inputs, float tensors in another dtype and, if they are to be learnt, requiring grad."""

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.to(dtype).detach().clone().requires_grad_(learnt)

    return {name: one(value) for name, value in inputs.items()}


def check_forward(entry: Entry, size: Size) -> None:
    """Every row of every result."""
    inputs = drawn(entry, size)
    found, wanted = entry.run(**cast(inputs, torch.float32)), entry.formula(**inputs)
    for position, (one, other) in enumerate(zip(several(found), several(wanted), strict=True)):
        assert other.isfinite().all(), f"result {position} of the formula is not finite"
        assert_rows_close(one, other, FORWARD, f"result {position}, {size}")


def check_gradients(entry: Entry, size: Size) -> None:
    """The gradient of every float input."""
    inputs = drawn(entry, size)
    found = gradients(entry.run(**(given := cast(inputs, torch.float32, learnt=True))), given)
    wanted = gradients(entry.formula(**(given := cast(inputs, torch.float64, learnt=True))), given)
    assert any(bool(each.any()) for each in wanted.values()), "no gradient is anything but 0"
    for name, gradient in found.items():
        one, other = gradient, wanted[name]
        assert other.isfinite().all(), f"the formula's gradient of `{name}` is not finite"
        if name not in ("q", "k", "v"):
            one, other = one.reshape(1, -1), other.reshape(1, -1)
        assert_rows_close(one, other, GRADIENT, f"gradient of `{name}`, {size}")


def gradients(results: Results, inputs: Inputs) -> dict[str, Tensor]:
    """Of every float input, for gradients of the results that tell every number apart; 0 where nothing depends."""
    leaves = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad}
    draw, outputs = Draw(7), [each for each in several(results) if each.requires_grad]
    directions = [draw.normal(*each.shape).to(each.dtype) for each in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), directions, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if one is None else one
        for (name, leaf), one in zip(leaves.items(), found, strict=True)
    }


def check_plan(call: Recorded) -> None:
    """No live pair in an empty tile, no dead one in a full tile, and exactly so when it is settled by evaluation."""
    where = call.shape
    truth = counted(live_pairs(call.attention.variant, call.attention._values(), **where), BLOCK)
    found, truth = torch.broadcast_tensors(call.attention.plan(**where, block=BLOCK).classes(), truth)
    assert not ((found == 0) & (truth != 0)).any(), "a live pair in an empty tile"
    assert not ((found == 2) & (truth != 2)).any(), "a dead pair in a full tile"
    exact = call.attention.plan(**where, block=BLOCK, exact=True).classes()
    assert (exact == truth).all(), "an exact plan is not"


def unread(entry: Entry, size: Size) -> list[str]:
    """Numbers of an entry that may be one more and one less, or half as large again, and its formula says the same."""
    inputs = drawn(entry, size)
    numbers = {name: value for name, value in inputs.items() if type(value) in (int, float)}
    others = {name: (1.5 * n, 0.5 * n) if type(n) is float else (n + 1, n - 1) for name, n in numbers.items()}
    wanted = several(entry.formula(**inputs)) if numbers else ()
    return [
        name for name, tried in others.items() if all(_says(entry, {**inputs, name: other}, wanted) for other in tried)
    ]


def _says(entry: Entry, inputs: Inputs, wanted: tuple[Tensor, ...]) -> bool:
    """Whether the formula is of these results."""
    try:
        found = several(entry.formula(**inputs))
    except (IndexError, RuntimeError, ValueError):
        return False  # tensors are not of such a number
    pairs = zip(found, wanted, strict=True)
    return all(one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-9) for one, other in pairs)


def several(results: Results) -> tuple[Tensor, ...]:
    """The results as a tuple, also where there is one."""
    return results if isinstance(results, tuple) else (results,)

"""Gradients through emitted kernels, held against autograd of the reference in float64.

In: a program and a call. Out: gradients by name, `q`, `k`, `v` and captured tensors in backquotes, or an
`AssertionError` that says which row is off. Kernels are those of `launches`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from compare import assert_rows_close
from launches import TILE, Program, Value, poisoned, unseen
from strategies import Case
from torch import Tensor

from attndsl.analysis.backward import Backward
from attndsl.analysis.bounds import Strategy
from attndsl.compiler import Compilation
from attndsl.reference import Result, attend
from attndsl.runtime import autograd
from attndsl.runtime.arguments import Call
from attndsl.runtime.launch import Rows
from attndsl.runtime.tiles import TileShape

TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""Of a row of a gradient, or of all of a captured tensor's: its largest error, relative to its largest value where
that is above 1."""

INPUTS = ("q", "k", "v")
Cotangents = tuple[Tensor, Tensor | None]
"""The gradients of the output and of `lse`, where there is one."""


def learnt(call: Call, dtype: torch.dtype | None = None) -> Call:
    """The call with float tensors that require grad and are nobody else's, in another dtype if one is given."""

    def leaf(tensor: Tensor) -> Tensor:
        return (tensor if dtype is None else tensor.to(dtype)).detach().requires_grad_()

    values = {name: leaf(value) if is_float(value) else value for name, value in call.values.items()}
    return replace(call, q=leaf(call.q), k=leaf(call.k), v=leaf(call.v), values=values)


def is_float(value: Value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def leaves(call: Call) -> dict[str, Tensor]:
    """The tensors of a call gradients are asked of, by name."""
    captured = {f"`{name}`": value for name, value in call.values.items() if is_float(value)}
    return dict(zip(INPUTS, (call.q, call.k, call.v), strict=True)) | captured


def cotangents(rows: Rows | Result, dtype: torch.dtype) -> Cotangents:
    """Gradients of the outputs that tell every number apart, the same in every dtype up to its rounding."""
    generator = torch.Generator().manual_seed(5)
    dout = torch.randn(rows.out.shape, generator=generator).to(dtype)
    return dout, None if rows.lse is None else torch.randn(rows.lse.shape, generator=generator)


def pulled(rows: Rows | Result, call: Call, gradients: Cotangents) -> dict[str, Tensor]:
    """The gradients of the leaves of a call, zeros where nothing depends on them."""
    flows = [(out, to.to(out.dtype)) for out, to in zip((rows.out, rows.lse), gradients, strict=True) if to is not None]
    outputs, directions = zip(*(flow for flow in flows if flow[0].requires_grad), strict=True)
    wanted = leaves(call)
    found = torch.autograd.grad(outputs, list(wanted.values()), directions, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if one is None else one
        for (name, leaf), one in zip(wanted.items(), found, strict=True)
    }


def backward(
    subject: Program,
    call: Call,
    *,
    fast: bool,
    tile: TileShape | None = TILE,
    strategy: Strategy | None = None,
    gradients: Cotangents | None = None,
) -> dict[str, Tensor]:
    """All gradients of one call through its kernels."""
    call = learnt(call)
    rows = autograd.attend(subject.kernels(call, fast=fast, tile=tile, strategy=strategy), call)
    return pulled(rows, call, cotangents(rows, call.q.dtype) if gradients is None else gradients)


def expected(subject: Program, call: Call) -> dict[str, Tensor]:
    """The same by autograd of the reference in float64."""
    exact = learnt(call, torch.float64)
    how = {"scale": call.scale, "enable_gqa": True, "q_offset": call.q_offset}
    rows = attend(subject.variant, exact.values, exact.q, exact.k, exact.v, **how)
    return pulled(rows, exact, cotangents(rows, call.q.dtype))


def check_gradients(
    subject: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tile: TileShape | None = TILE,
    note: str = "",
    fast: bool | None = None,
    tolerance: float | None = None,
    **how: float | int | Tensor,
) -> dict[str, Tensor]:
    """The gradients through both kernels the call allows; returns those of the last, the general one."""
    call = subject.call(q, k, v, **how)
    is_fast = subject.is_fast(call)
    assert fast is None or fast is is_fast, f"the fast kernel is {'' if is_fast else 'not '}allowed"
    exact = expected(subject, call)
    for kind in (True, False) if is_fast else (False,):
        found = backward(subject, call, fast=kind, tile=tile)
        allowed = TOLERANCE[q.dtype] if tolerance is None else tolerance
        compare(found, exact, allowed, f"{'fast' if kind else 'general'} kernel, {tile}\n{note}")
    return found


def compare(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], tolerance: float, note: str) -> None:
    for name, gradient in found.items():
        other, allowed = exact[name], tolerance
        if name not in INPUTS:
            gradient, other = gradient.reshape(1, -1), other.reshape(1, -1)
            allowed += torch.finfo(gradient.dtype).eps
        assert_rows_close(gradient, other, allowed, f"gradient of {name}, {note}")


def check_gradient_walks(subject: Program, call: Call, tile: TileShape | None = TILE, note: str = "") -> None:
    """Every way to walk queries and keys gives the same bits."""
    fast = subject.is_fast(call)
    usual = backward(subject, call, fast=fast, tile=tile)
    for strategy in subject.walks():
        other = backward(subject, call, fast=fast, tile=tile, strategy=strategy)
        assert_same(other, usual, f"{strategy.value} walk, {tile}\n{note}")


def assert_same(found: Mapping[str, Tensor], other: Mapping[str, Tensor], note: str) -> None:
    for name, gradient in found.items():
        assert torch.equal(gradient, other[name]), f"the gradient of {name} has other bits: {note}"


def has_gradients(case: Case) -> bool:
    """Whether kernels give the gradients of a program that streams; what they refuse, the reference gives."""
    return isinstance(Compilation(case.variant).derivation.derivative, Backward)


def check_gradient_case(case: Case, tile: TileShape | None = TILE) -> None:
    """The gradients of a random program; a failure prints it as text."""
    subject, tensors = Program(case.variant, case.values), case.inputs()
    check_gradients(subject, *tensors, tile=tile, note=repr(case), q_offset=case.q_offset)
    check_gradient_walks(subject, subject.call(*tensors, q_offset=case.q_offset), tile, repr(case))
    check_gradient_poison(case, tile)


def check_gradient_poison(case: Case, tile: TileShape | None = TILE) -> None:
    """NaN in keys and values nobody of their (batch, key head) sees, in queries and gradients of rows that see none."""
    subject, tensors, places = Program(case.variant, case.values), case.inputs(), unseen(case)
    clean, dirty = (subject.call(*parts, q_offset=case.q_offset) for parts in (tensors, poisoned(tensors, *places)))
    check_same_gradients(subject, clean, dirty, fast=subject.is_fast(clean), tile=tile, note=repr(case))


def check_same_gradients(
    subject: Program, clean: Call, dirty: Call, *, fast: bool, tile: TileShape | None = TILE, note: str = ""
) -> dict[str, Tensor]:
    """Two calls have the same gradients, where those of the outputs of the second are NaN in rows without a key too."""
    rows = subject.run(clean, fast=fast, tile=tile)
    dout, dlse = cotangents(rows, clean.q.dtype)
    dirty_dout = torch.where((rows.max_score == -torch.inf)[..., None], torch.nan, dout)
    dirty_dlse = None if dlse is None else torch.where(rows.lse == -torch.inf, torch.nan, dlse)
    found = backward(subject, dirty, fast=fast, tile=tile, gradients=(dirty_dout, dirty_dlse))
    assert_same(found, backward(subject, clean, fast=fast, tile=tile), f"poison shows\n{note}")
    return found

"""Whether kernels compute what a variant means, on a call of any length.

In: an engine. Out: nothing, or a `VerifyError` that says what is wrong.

The reference evaluates some rows of the call, evenly spread, against all keys: memory is that of the rows. The output
is compared in these rows, and in all others with that of the first engine, which has the default tiles. The gradient of
the output is 0 outside of these rows, so that all of dq, dk, dv and of the gradients of captured tensors is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attndsl.compiler import Compilation
from attndsl.diagnostics import VerifyError
from attndsl.reference import attend
from attndsl.runtime import autograd, order
from attndsl.runtime.agreement import TOLERANCE
from attndsl.runtime.arguments import Call
from attndsl.runtime.engine import Engine

ROWS = 64
"""Queries that are held against the reference, at most."""

PLACES = 1 << 22
"""Pairs the reference evaluates at a time, and numbers that are compared."""

GROSS = 10
"""How many times the tolerance gradients of the default tiles may be off: sums over a whole call round more than a row
does. Those of others may be twice as far off as the default's."""


@dataclass(frozen=True, slots=True)
class Step:
    """The output of a step and its gradients, by the names of what they are by."""

    out: Tensor
    gradients: dict[str, Tensor]


class Judge:
    """Knows what one call must give."""

    def __init__(self, compilation: Compilation, call: Call, backward: bool) -> None:
        self.compilation, self.call, self.backward = compilation, call, backward
        count = min(ROWS, call.q_len)
        self.rows = torch.linspace(0, max(call.q_len - 1, 0), count, device=call.q.device).round().long().unique()
        self.dout = self._cotangent()
        self.expected = self._expected()
        self._first: Step | None = None
        self._limits: dict[str, float] = {}

    def judge(self, engine: Engine) -> None:
        """Run a step and hold it against what it must be; the first one sets what may be lost to rounding."""
        found, allowed = self._step(engine), TOLERANCE[self.call.q.dtype]
        errors = dict(self._errors(found))
        if self._first is None:
            self._limits = {name: 2 * error for name, error in errors.items()}
            self._check(errors, {name: allowed if name == "out" else GROSS * allowed for name in errors})
            self._first = found
        self._check(errors, {name: max(allowed, self._limits[name]) for name in errors})
        self._check({"out": _error(found.out, self._first.out)}, {"out": allowed})

    @staticmethod
    def _check(errors: dict[str, float], limits: dict[str, float]) -> None:
        for name, error in errors.items():
            if not error <= limits[name]:
                allowed = f"{limits[name]:.0e} is allowed, relative to 1 + |x|"
                raise VerifyError(f"the kernels' {name} differs from the reference by {error:.1e}; {allowed}")

    def _errors(self, found: Step) -> Iterator[tuple[str, float]]:
        yield "out", _error(found.out[:, :, self.rows], self.expected.out)
        for name, gradient in found.gradients.items():
            yield f"gradient of {name}", _error(gradient, self.expected.gradients[name])

    def _cotangent(self) -> Tensor:
        call, generator = self.call, torch.Generator().manual_seed(0)
        drawn = torch.randn(call.batch, call.heads, len(self.rows), call.v_head_dim, generator=generator)
        dout = call.q.new_zeros((call.batch, call.heads, call.q_len, call.v_head_dim))
        dout[:, :, self.rows] = drawn.to(dout)
        return dout

    def _step(self, engine: Engine) -> Step:
        tokens = self.compilation.source.order
        call, inputs = _learning(self.call, self.backward)
        with torch.set_grad_enabled(self.backward):
            rows = autograd.attend(engine, call if tokens is None else order.stored(call, tokens))
            out = (rows if tokens is None else order.restored(rows, tokens)).out
            gradients = torch.autograd.grad(out, tuple(inputs.values()), self.dout) if inputs else ()
        return Step(out.detach(), dict(zip(inputs, gradients, strict=True)))

    def _expected(self) -> Step:
        """What the reference gives, some rows at a time."""
        call = replace(self.call, q=self.call.q.double(), k=self.call.k.double(), v=self.call.v.double())
        call, inputs = _learning(call, self.backward)
        pairs = max(call.batch * call.heads * call.kv_len, 1)
        outs: list[Tensor] = []
        sums: dict[str, Tensor] = {name: torch.zeros_like(tensor) for name, tensor in inputs.items()}
        for rows in self.rows.split(max(1, PLACES // pairs)):
            with torch.set_grad_enabled(self.backward):
                out = self._reference(call, rows)
                dout = self.dout[:, :, rows].double()
                found = torch.autograd.grad(out, tuple(inputs.values()), dout, allow_unused=True) if inputs else ()
            outs.append(out.detach())
            for total, part in zip(sums.values(), found, strict=True):
                if part is not None:
                    total += part
        return Step(torch.cat(outs, 2), sums)

    def _reference(self, call: Call, rows: Tensor) -> Tensor:
        return attend(
            self.compilation.source,
            call.values,
            call.q,
            call.k,
            call.v,
            scale=call.scale,
            enable_gqa=True,
            q_offset=call.q_offset,
            rows=rows,
        ).out


def _learning(call: Call, backward: bool) -> tuple[Call, dict[str, Tensor]]:
    """The call over tensors of its own, and those of them that gradients are taken by."""
    q, k, v = (tensor.detach().requires_grad_(backward) for tensor in (call.q, call.k, call.v))
    learnt = {
        name: value.detach().requires_grad_(backward)
        for name, value in call.values.items()
        if isinstance(value, Tensor) and value.requires_grad
    }
    inputs = {"q": q, "k": k, "v": v, **learnt} if backward else {}
    return replace(call, q=q, k=k, v=v, values={**call.values, **learnt}), inputs


def _error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to 1 + |x|; a stretch of numbers at a time, in float64."""
    stretches = zip(found.reshape(-1).split(PLACES), expected.reshape(-1).split(PLACES), strict=True)
    return max((_largest(one.double(), other.double()) for one, other in stretches), default=0.0)


def _largest(found: Tensor, expected: Tensor) -> float:
    if found.numel() == 0:
        return 0.0
    error = (found - expected).abs() / (1.0 + expected.abs())
    same = (found == expected) | (found.isnan() & expected.isnan())
    return float(torch.where(same, 0.0, error.nan_to_num(torch.inf, torch.inf)).max())

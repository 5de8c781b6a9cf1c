"""The object users hold: an attention variant with its parameters' values, callable, inspectable, compilable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attndsl.codegen.plan import Specialisation
from attndsl.compiler import KERNELS, Compilation
from attndsl.diagnostics import CallError, UnsupportedError, fail
from attndsl.explain import explain
from attndsl.frontend.bindings import Bindings
from attndsl.frontend.tracing import trace
from attndsl.ir.printer import print_variant
from attndsl.ir.variant import Param, ScalarParam, Variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import Result, attend
from attndsl.runtime import launch
from attndsl.runtime.agreement import check_agreement
from attndsl.runtime.aot import CompileReport, compile_for
from attndsl.runtime.arguments import Call, check_call
from attndsl.runtime.facts import FactBook
from attndsl.runtime.interpreter import is_interpreting
from attndsl.runtime.planner import BlockPlan, plan_blocks

BACKENDS = ("auto", "triton", "cpu", "reference")
AUX = ("lse", "max_score")


@dataclass(frozen=True, slots=True)
class Aux:
    """What a call returns beside the output; `None` where it was not asked for.

    `lse` `(B, Hq, Nq)`, float32 (float64 from a float64 reference): natural log of the row's whole divisor, sinks
    included. `max_score` `(B, Hq, Nq)`: the row's largest final score. Both -inf in a row without a live key
    (with a sink, `lse` is the sink).
    """

    lse: Tensor | None = None
    max_score: Tensor | None = None


def attention(
    *,
    score_mod: Any = None,
    mask_mod: Any = None,
    normalizer: Any = None,
    weight_mod: Any = None,
    name: str | None = None,
) -> Attention:
    """An attention variant from Python functions.

    `mask_mod`: a function of any of `b`, `h`, `q_idx`, `kv_idx`, `q_len`, `kv_len`, true where a pair is live.
    `score_mod`: one or a list applied left to right, each a function of `score` and coordinates.
    `normalizer`: default `softmax()`. `weight_mod`: edits the normalized weight. FlexAttention's functions are taken
    as they are. Raises `ProgramError` with every mistake found.
    """
    program = trace(score_mod=score_mod, mask_mod=mask_mod, normalizer=normalizer, weight_mod=weight_mod, name=name)
    return Attention(Compilation(program.variant), program.bindings)


class Attention:
    """An attention variant. Made by `attention`, or from text by `load` and `parse`."""

    def __init__(self, compilation: Compilation, bindings: Bindings) -> None:
        self._compilation = compilation
        self._bindings = bindings
        self._facts = FactBook()

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        q_offset: int | Tensor = 0,
        blocks: Any = None,
        return_aux: bool | Iterable[str] = False,
        backend: str = "auto",
        check: bool = False,
    ) -> Any:
        """Attend: q `(B, Hq, Nq, Dk)`, k `(B, Hkv, Nk, Dk)`, v `(B, Hkv, Nk, Dv)` to `(B, Hq, Nq, Dv)` in q's dtype.

        `scale` defaults to `1/sqrt(Dk)`. `enable_gqa` lets Hkv divide Hq. `q_offset`, an int or an int tensor `(B,)`,
        is the position of the first query; positions are otherwise top-left aligned. `return_aux`: True or names of
        `lse`, `max_score`; then the result is `(out, Aux)`. `backend`: "triton" (GPU tensors, or any under
        TRITON_INTERPRET=1), "reference" (dense), or "auto": triton where it can run, the reference on plain CPU
        tensors. `check=True` also evaluates the reference and raises when the two differ.
        """
        wanted = _wanted(return_aux)
        _refuse_blocks(blocks)
        call = self._checked(q, k, v, scale=scale, enable_gqa=enable_gqa, q_offset=q_offset)
        facts = self._facts.of(self._compilation.source, self._compilation.program, call)
        if _backend(backend, q) == "reference":
            result = self._dense(call, enable_gqa)
            return _returned(result.out, result.lse, result.max_score, wanted)
        rows = self._launch(call, facts.fast)
        if check:
            expected = self._dense(call, enable_gqa)
            check_agreement("output", rows.out, expected.out, q.dtype)
            if expected.lse is not None:
                check_agreement("lse", rows.lse, expected.lse, q.dtype)
        return _returned(rows.out, rows.lse, rows.max_score, wanted)

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        q_offset: int | Tensor = 0,
        return_aux: bool | Iterable[str] = False,
    ) -> Any:
        """The dense meaning, in the dtype of the inputs (float64 for an oracle), differentiable by autograd."""
        return self(
            q,
            k,
            v,
            scale=scale,
            enable_gqa=enable_gqa,
            q_offset=q_offset,
            return_aux=return_aux,
            backend="reference",
        )

    def bind(self, **values: Any) -> Attention:
        """The same kernels with other values of parameters, by name (or `**{"mod.name": value}`)."""
        return Attention(self._compilation, self._bindings.bind(**values))

    def invalidate(self) -> None:
        """Forget everything derived from tensor values: for writes torch cannot see."""
        self._facts.forget()

    def plan(
        self,
        q_len: int,
        kv_len: int | None = None,
        *,
        batch: int = 1,
        heads: int = 1,
        block: tuple[int, int] = (128, 128),
        q_offset: int | Tensor = 0,
        blocks: Any = None,
        exact: bool = False,
    ) -> BlockPlan:
        """Which tiles of `block` = (queries, keys) are empty, partial and full for these lengths.

        `exact` settles by evaluation the tiles that analysis leaves open.
        """
        _refuse_blocks(blocks)
        values = self._values()
        kv_len = q_len if kv_len is None else kv_len
        return plan_blocks(
            self._compilation.program,
            values,
            q_len,
            kv_len,
            batch=batch,
            heads=heads,
            block=block,
            q_offset=q_offset,
            exact=exact,
            known=self._facts.known(self._compilation.program, values),
        )

    def explain(self, q_len: int, kv_len: int | None = None, *, head_dim: int = 128, **where: Any) -> str:
        """What is skipped and why, what it costs, and how the kernel computes it; arguments as for `plan`."""
        return explain(self._compilation, self.plan(q_len, kv_len, **where), head_dim)

    def source(
        self,
        kernel: str = "forward",
        target: str = "triton",
        *,
        dtype: torch.dtype = torch.bfloat16,
        head_dim: int = 128,
        v_head_dim: int | None = None,
    ) -> str:
        """The emitted source of one of `kernels(target)`."""
        self.kernels(target)
        return self._compilation.kernel(kernel, _specialisation(dtype, head_dim, v_head_dim)).text

    def kernels(self, target: str = "triton") -> tuple[str, ...]:
        """The names of the kernels a target has."""
        if target != "triton":
            raise fail(UnsupportedError, "unknown-target", f"there is no target `{target}`", help="use `triton`")
        return KERNELS

    def ir(self, after: str | None = None) -> str:
        """The program as text, after the named pass or at the end."""
        return print_variant(run_passes(self._compilation.source, after))

    def compile_for(
        self, target: str, *, dtype: torch.dtype, head_dim: int, v_head_dim: int | None = None
    ) -> CompileReport:
        """Compile ahead of time, with no GPU at hand, for `cuda:80`, `cuda:90`, `cuda:100` or `hip:gfx942`."""
        spec = _specialisation(dtype, head_dim, v_head_dim)
        return compile_for({name: self._compilation.kernel(name, spec) for name in KERNELS}, target)

    @property
    def fingerprint(self) -> str:
        """A stable hash of the structure; names and values of parameters do not enter it."""
        return self._compilation.fingerprint

    @property
    def name(self) -> str:
        """The name of the variant."""
        return self._compilation.source.name

    @property
    def variant(self) -> Variant:
        """The program, in its source form."""
        return self._compilation.source

    @property
    def text(self) -> str:
        """The program as a user would write it, scalars with their present values as defaults."""
        return print_variant(self._with_values())

    def __repr__(self) -> str:
        return f"<attention {self.name} {self.fingerprint[:12]}>"

    def _values(self, device: torch.device | None = None) -> dict[str, int | float | Tensor]:
        """A value for every parameter, captured tensors as they are now."""
        return self._bindings.resolve(device)

    def _with_values(self) -> Variant:
        source = self._compilation.source
        bound = {name: value.value for name, value in self._bindings.captured.items()}
        params = (_with_default(param, bound.get(param.name)) for param in source.params)
        return replace(source, params=tuple(params))

    def _checked(self, q: Any, k: Any, v: Any, **how: Any) -> Call:
        device = q.device if isinstance(q, Tensor) else None
        return check_call(self._compilation.source, self._values(device), q, k, v, **how)

    def _launch(self, call: Call, fast: bool) -> launch.Rows:
        launch.check_kernel_call(call)
        spec = Specialisation(
            dtype=launch.DTYPES[call.q.dtype],
            head_dim=call.head_dim,
            v_head_dim=max(call.v_head_dim, 1),
            fast=fast,
            offset_per_batch=isinstance(call.q_offset, Tensor),
        )
        return launch.forward(call, self._compilation.kernel("forward", spec))

    def _dense(self, call: Call, enable_gqa: bool) -> Result:
        return attend(
            self._compilation.source,
            call.values,
            call.q,
            call.k,
            call.v,
            scale=call.scale,
            enable_gqa=enable_gqa,
            q_offset=call.q_offset,
        )


def _backend(backend: str, q: Tensor) -> str:
    if backend not in BACKENDS:
        known = ", ".join(f'"{name}"' for name in BACKENDS)
        raise fail(CallError, "unknown-backend", f"there is no backend {backend!r}", None, help=f"use one of {known}")
    if backend == "cpu":
        raise fail(
            UnsupportedError,
            "no-cpu-kernels",
            "there are no native CPU kernels yet",
            help='use `backend="reference"`, or set TRITON_INTERPRET=1 and use `backend="triton"`',
        )
    if backend == "auto":
        return "triton" if q.device.type == "cuda" or is_interpreting() else "reference"
    return backend


def _with_default(param: Param, value: int | float | Tensor | None) -> Param:
    if isinstance(param, ScalarParam) and isinstance(value, int | float):
        return replace(param, default=value)
    return param


def _wanted(return_aux: bool | Iterable[str]) -> tuple[str, ...] | None:
    if return_aux is False or return_aux is None:
        return None
    names = AUX if return_aux is True else tuple(return_aux)
    unknown = sorted(set(names) - set(AUX))
    if unknown:
        listed = ", ".join(f"`{name}`" for name in unknown)
        known = ", ".join(f"`{name}`" for name in AUX)
        raise fail(CallError, "unknown-aux", f"there is no row output {listed}", None, help=f"known are {known}")
    return names


def _returned(out: Tensor, lse: Tensor | None, max_score: Tensor, wanted: tuple[str, ...] | None) -> Any:
    if wanted is None:
        return out
    if "lse" in wanted and lse is None:
        raise fail(CallError, "no-lse", "this normalizer has no log-sum-exp", help="ask for `max_score` alone")
    return out, Aux(lse if "lse" in wanted else None, max_score if "max_score" in wanted else None)


def _refuse_blocks(blocks: Any) -> None:
    if blocks is not None:
        raise fail(
            UnsupportedError,
            "no-block-tables",
            "block tables are not supported yet",
            help="write the blocks as a mask over captured tensors",
        )


def _specialisation(dtype: torch.dtype, head_dim: int, v_head_dim: int | None) -> Specialisation:
    v_head_dim = head_dim if v_head_dim is None else v_head_dim
    if dtype not in launch.DTYPES:
        known = ", ".join(str(known) for known in launch.DTYPES)
        raise fail(UnsupportedError, "kernel-dtype", f"kernels take {known}, got {dtype}")
    if not (1 <= head_dim <= launch.MAX_HEAD_DIM and 1 <= v_head_dim <= launch.MAX_HEAD_DIM):
        message = f"kernels take head dims from 1 to {launch.MAX_HEAD_DIM}, got {head_dim} and {v_head_dim}"
        raise fail(UnsupportedError, "kernel-head-dim", message)
    return Specialisation(launch.DTYPES[dtype], head_dim, v_head_dim)

"""The object users hold: an attention variant with its parameters' values, callable, inspectable, compilable."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attndsl import inspection, programs
from attndsl.calling import call
from attndsl.codegen.plan import Target
from attndsl.compiler import Compilation, with_values
from attndsl.explain import Explanation
from attndsl.frontend.bindings import Bindings
from attndsl.frontend.tracing import trace
from attndsl.inspection import compile_ahead, specialisation
from attndsl.instance import Instance
from attndsl.ir.printer import print_variant
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.routing.join import joins_of
from attndsl.runtime.autograd import cast_by_autocast
from attndsl.runtime.backends import TARGETS, Backend, backend_named, chosen, target_named
from attndsl.runtime.facts import FactBook
from attndsl.runtime.kinds import How, Values
from attndsl.runtime.planner import BlockPlan
from attndsl.runtime.reports import CompileReport
from attndsl.runtime.statistics import Aux
from attndsl.runtime.tuning_report import TuningReport

__all__ = ["Attention", "Aux", "Explanation", "attention"]


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

    def __init__(self, compilation: Compilation, bindings: Bindings, facts: FactBook | None = None) -> None:
        """`facts` are what other attentions of the same compilation have learnt."""
        self._compilation = compilation
        self._bindings = bindings
        self._facts = FactBook() if facts is None else facts
        self._fixed = Instance.of(compilation, self._facts, bindings.resolve()) if bindings.are_fixed else None

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
        is the position of the first query; positions are otherwise top-left aligned. `blocks`: a `BlockTable`, a torch
        `BlockMask` or a router, which intersects with the mask. `return_aux`: True or a list of `"lse"`, `"max_score"`,
        `"entropy"` and `ad.aux.mass(...)`; then the result is `(out, Aux)`. `backend`: "triton" (GPU tensors, or any
        under TRITON_INTERPRET=1), "cpu" (compiled C++), "reference" (dense), or "auto": triton for GPU
        tensors and under TRITON_INTERPRET=1, cpu for CPU tensors, the reference for
        others. `check=True` also evaluates the reference and raises when the two differ, or where finite scores have
        weights that are not.
        """
        if torch.compiler.is_compiling():
            from attndsl import graphs  # brings torch's compiler

            run = partial(graphs.call, self, self._compilation, self._bindings, q, k, v)
            run = partial(run, blocks=blocks, return_aux=return_aux, backend=backend, check=check)
            return run(scale=scale, enable_gqa=enable_gqa, q_offset=q_offset)
        # The reference says what a program means, autocasting or not.
        if torch._C._is_any_autocast_enabled() and backend != Backend.REFERENCE:
            q, k, v = cast_by_autocast(q, k, v)
        how = How(scale, enable_gqa, q_offset, blocks, return_aux, backend, check)
        return call(self._instance(_device_of(q)), q, k, v, how)

    def reference(
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
    ) -> Any:
        """The dense meaning, in the dtype of the inputs (float64 for an oracle), differentiable by autograd."""
        return self(
            q,
            k,
            v,
            scale=scale,
            enable_gqa=enable_gqa,
            q_offset=q_offset,
            blocks=blocks,
            return_aux=return_aux,
            backend="reference",
        )

    def tune(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        q_offset: int | Tensor = 0,
        blocks: Any = None,
        backward: bool | None = None,
        backend: str = "auto",
        candidates: Sequence[Any] | None = None,
        budget: float = 120.0,
    ) -> TuningReport:
        """Measure the tiles of every kernel on these tensors, and use the fastest from now on, in later processes too.

        Arguments as for a call. `backward`: whether gradients are tuned too, by default where some tensor requires one.
        `candidates`: tiles to try, `(queries, keys)` or `(queries, keys, warps, stages)`; by default those around the
        best so far, for as long as it gets better and `budget` seconds are not over. Results of every tile are held
        against the reference in some rows. What is chosen is kept on disk for this variant, element type, head dims,
        sizes of this order, device and versions.
        """
        asked = backend_named(backend)
        if all(isinstance(tensor, Tensor) for tensor in (q, k, v)):
            q, k, v = cast_by_autocast(q, k, v)
        where = {"scale": scale, "enable_gqa": enable_gqa, "q_offset": q_offset}
        instance = self._instance(_device_of(q))
        made = instance.checked(q, k, v, **where)
        if blocks is not None:
            instance = instance.routed(blocks, made, enable_gqa=enable_gqa)
            made = instance.checked(q, k, v, **where)
        from attndsl.tuner import tune  # which most processes never ask for

        report = tune(instance, made, TARGETS.get(chosen(asked, made)), backward, candidates, budget)
        self.invalidate()  # tables of tiles that were tried, and what was planned with others
        return report

    def bind(self, **values: Any) -> Attention:
        """The same kernels with other values of parameters, by name (or `**{"mod.name": value}`)."""
        return Attention(self._compilation, self._bindings.bind(**values), self._facts)

    def invalidate(self) -> None:
        """Forget everything derived from tensor values: for writes torch cannot see."""
        self._facts.forget()
        joins_of(self._compilation).forget()
        programs.forget()

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

        `exact` settles by evaluation the tiles that analysis leaves open. Where a grid keeps tokens in tiles, rows and
        columns are tokens as kernels keep them.
        """
        how: dict[str, Any] = {"batch": batch, "heads": heads, "block": block, "q_offset": q_offset}
        return inspection.plan(self._instance(), q_len, kv_len, blocks=blocks, exact=exact, **how)

    def explain(
        self,
        q_len: int,
        kv_len: int | None = None,
        *,
        head_dim: int = 128,
        v_head_dim: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        blocks: Any = None,
        **where: Any,
    ) -> Explanation:
        """What is skipped and why, what is proven, what a call costs and how that could be less; prints as text.

        Other arguments as for `plan`.
        """
        shape: dict[str, Any] = {"head_dim": head_dim, "v_head_dim": v_head_dim, "dtype": dtype}
        return inspection.explain(self._instance(), q_len, kv_len, blocks=blocks, **shape, **where)

    def source(
        self,
        kernel: str = "forward",
        target: str = "triton",
        *,
        dtype: torch.dtype = torch.bfloat16,
        head_dim: int = 128,
        v_head_dim: int | None = None,
    ) -> str:
        """The emitted source of one of `kernels(target)`, as it is for tensors of this dtype and these head dims.

        The target is a language, `"triton"` or `"cpp"`, or the backend whose language it is, as `"cpu"`.
        Kernels of the backward compute gradients of captured tensors that require grad, or have no value yet.
        """
        how = target_named(target), dtype, head_dim, v_head_dim
        spec = specialisation(self._compilation, self._bindings.known(), *how)
        return self._compilation.kernel(kernel, spec).text

    def kernels(self, target: str = "triton") -> tuple[str, ...]:
        """The names of the kernels a target has."""
        return self._compilation.derivation.kernels_of(target_named(target))

    def ir(self, after: str | None = None) -> str:
        """The program as text, after the named pass or at the end."""
        return print_variant(run_passes(self._compilation.source, after))

    def compile_for(
        self, target: str, *, dtype: torch.dtype, head_dim: int, v_head_dim: int | None = None
    ) -> CompileReport:
        """Compile ahead of time for `cuda:80`, `cuda:90`, `cuda:100`, `hip:gfx942`, no GPU at hand, or this `cpu`."""
        shape: dict[str, Any] = {"dtype": dtype, "head_dim": head_dim, "v_head_dim": v_head_dim}
        return compile_ahead(self._compilation, self._bindings.known(), target, **shape)

    def export(
        self,
        path: str | PathLike[str],
        *,
        dtype: torch.dtype = torch.bfloat16,
        head_dim: int = 128,
        v_head_dim: int | None = None,
    ) -> Path:
        """Write one file that needs torch and triton alone, for tensors of this dtype and these head dims.

        It has the kernels and what launches them, their gradients, a dense reference, and a test when it is run.
        Parameters are its keyword arguments, scalars with their present values as defaults. What cannot be exported is
        refused with every reason.
        """
        # A compiler of another kind of text, which most processes never ask for.
        from attndsl import exporting

        spec = specialisation(self._compilation, {}, Target.TRITON, dtype, head_dim, v_head_dim)
        spec = replace(spec, gradients=frozenset())
        return exporting.write(path, exporting.exported(self._compilation, self._with_values(), spec))

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Attention:
        """The same kernels over copies of the captured tensors."""
        return Attention(self._compilation, copy.deepcopy(self._bindings, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as text and values: the program that text parses to is the same one."""
        return _from_text, (print_variant(self._compilation.source), self._bindings)

    def _instance(self, device: torch.device | None = None) -> Instance:
        """The program over a value for every parameter, captured tensors as they are now."""
        if self._fixed is not None:
            return self._fixed
        return Instance.of(self._compilation, self._facts, self._bindings.resolve(device))

    def _values(self, device: torch.device | None = None) -> Values:
        return self._instance(device).values

    def _with_values(self) -> Variant:
        bound = {name: value.value for name, value in self._bindings.captured.items()}
        return with_values(self._compilation.source, bound)


def _device_of(q: Any) -> torch.device | None:
    return q.device if isinstance(q, Tensor) else None  # what is no tensor is refused by the checks


def _from_text(text: str, bindings: Bindings) -> Attention:
    """What a pickle holds, as an attention."""
    from attndsl.frontend.parse import parse  # brings the parser, which Python variants do without

    (variant,) = parse(text, "<pickle>")
    return Attention(Compilation(variant), bindings)

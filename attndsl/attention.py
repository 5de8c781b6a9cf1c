"""The object users hold: an attention variant with its parameters' values, callable, inspectable, compilable."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attndsl import programs
from attndsl.codegen.plan import Specialisation, Target
from attndsl.compiler import Compilation
from attndsl.execution import Prepared, prepare
from attndsl.explain import Explanation, Shape, explain
from attndsl.frontend.bindings import Bindings
from attndsl.frontend.tracing import trace
from attndsl.ir.printer import print_variant
from attndsl.ir.variant import Param, ScalarParam, Variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import Result, attend, weigh
from attndsl.routing.given import table_of_call, table_of_plan
from attndsl.routing.join import joins_of
from attndsl.routing.table import BlockTable
from attndsl.runtime.agreement import check_agreement, check_weights
from attndsl.runtime.aot import check_target, compile_for
from attndsl.runtime.arguments import Call, check_call, check_plan
from attndsl.runtime.autograd import cast_by_autocast
from attndsl.runtime.backends import DTYPES, TARGETS, Backend, backend_named, check_kernel_shape, chosen, target_named
from attndsl.runtime.facts import FactBook
from attndsl.runtime.kinds import How, Values, kind_of, taken_apart
from attndsl.runtime.launch import Rows
from attndsl.runtime.planner import BlockPlan, plan_blocks
from attndsl.runtime.reports import CompileReport
from attndsl.runtime.statistics import Aux, Sums, wanted_statistics, with_statistics
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
        self._fixed = bindings.resolve() if bindings.are_fixed else None
        self._parts = None if self._fixed is None else taken_apart(self._fixed)

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
        values = self._values(q.device if isinstance(q, Tensor) else None)
        how = How(scale, enable_gqa, q_offset, blocks, return_aux, backend, check)
        kind, prepared = self._prepared(q, k, v, values, how)
        if prepared is not None:
            call = Call(q, k, v, prepared.scale, q_offset, values)
            if prepared.stands(call):
                return prepared.result(call)
        return self._attend(q, k, v, values, how, kind)

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
        call = self._checked(q, k, v, scale=scale, enable_gqa=enable_gqa, q_offset=q_offset)
        if blocks is not None:
            routed = self._routed(table_of_call(blocks, call, enable_gqa), call.values, q_offset)
            how: dict[str, Any] = {"backward": backward, "candidates": candidates, "budget": budget}
            return routed.tune(q, k, v, scale=scale, enable_gqa=enable_gqa, q_offset=q_offset, backend=backend, **how)
        from attndsl.tuner import tune  # which most processes never ask for

        facts = self._facts.of(self._compilation.source, self._compilation.program, call)
        target = TARGETS.get(chosen(asked, call))
        report = tune(self._compilation, self._facts, facts, call, target, backward, candidates, budget)
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
        kv_len = q_len if kv_len is None else kv_len
        check_plan(q_len, kv_len, batch=batch, heads=heads, block=block, q_offset=q_offset)
        values = self._values()
        if blocks is not None:
            routed = self._routed(table_of_plan(blocks, batch, heads, q_len, kv_len), values, q_offset)
            return routed.plan(q_len, kv_len, batch=batch, heads=heads, block=block, q_offset=q_offset, exact=exact)
        self._facts.check_mask(self._compilation.source, values, (batch, heads, q_len, kv_len), q_offset)
        plan = plan_blocks(
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
        order = self._compilation.source.order
        return plan if order is None else replace(plan, reasons=(f"tokens are kept in {order}", *plan.reasons))

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
        kv_len = q_len if kv_len is None else kv_len
        batch, heads, q_offset = where.get("batch", 1), where.get("heads", 1), where.get("q_offset", 0)
        if blocks is not None:
            routed = self._routed(table_of_plan(blocks, batch, heads, q_len, kv_len), self._values(), q_offset)
            return routed.explain(q_len, kv_len, head_dim=head_dim, v_head_dim=v_head_dim, dtype=dtype, **where)
        v_head_dim = head_dim if v_head_dim is None else v_head_dim
        check_kernel_shape(dtype, head_dim, v_head_dim)
        plan = self.plan(q_len, kv_len, **where)
        sizes = (batch, heads, q_len, kv_len)
        grants = self._facts.grants(self._compilation.program, self._values(), sizes, q_offset)
        return explain(self._compilation, plan, Shape(batch, heads, head_dim, v_head_dim, dtype), grants)

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
        spec = self._specialisation(target_named(target), dtype, head_dim, v_head_dim)
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
        check_target(target)
        language = Target.CPP if target == "cpu" else Target.TRITON
        spec = self._specialisation(language, dtype, head_dim, v_head_dim)
        emitted = {name: self._compilation.kernel(name, spec) for name in self.kernels(language.value)}
        return compile_for({name: kernel for name, kernel in emitted.items() if kernel.plan.yields}, target)

    def _specialisation(
        self, target: Target, dtype: torch.dtype, head_dim: int, v_head_dim: int | None
    ) -> Specialisation:
        """What kernels are for tensors of this dtype; whatever may be learnt is."""
        v_head_dim = head_dim if v_head_dim is None else v_head_dim
        check_kernel_shape(dtype, head_dim, v_head_dim, target)
        return Specialisation(DTYPES[target][dtype], head_dim, v_head_dim, gradients=self._learnt(), target=target)

    def _learnt(self) -> frozenset[str]:
        """The captured float tensors that require grad, or have no value yet."""
        values = self._bindings.resolve()
        found = ((param, values.get(param.name)) for param in self._compilation.source.tensors if param.dtype.is_float)
        return frozenset(param.name for param, value in found if not isinstance(value, Tensor) or value.requires_grad)

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

        spec = replace(self._specialisation(Target.TRITON, dtype, head_dim, v_head_dim), gradients=frozenset())
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

    def _values(self, device: torch.device | None = None) -> Values:
        """A value for every parameter, captured tensors as they are now."""
        return self._bindings.resolve(device) if self._fixed is None else self._fixed

    def _with_values(self) -> Variant:
        source = self._compilation.source
        bound = {name: value.value for name, value in self._bindings.captured.items()}
        params = (_with_default(param, bound.get(param.name)) for param in source.params)
        return replace(source, params=tuple(params))

    def _routed(self, table: BlockTable, values: Mapping[str, Any], q_offset: int | Tensor) -> Attention:
        """The attention whose mask also asks a block table."""
        joined = joins_of(self._compilation).of(table, q_offset)
        return Attention(joined.compilation, joined.bindings(values, table, q_offset), joined.facts)

    def _prepared(self, q: Any, k: Any, v: Any, values: Values, how: How) -> tuple[Hashable, Prepared | None]:
        """The kind of a call, `None` where it has none, and what was prepared for its kind."""
        if how.blocks is not None or how.check:
            return None, None
        tensors, numbers = taken_apart(values) if self._parts is None else self._parts
        try:
            kind = kind_of(q, k, v, how.q_offset, tensors), numbers, how.key
            return kind, self._facts.prepared(kind)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return None, None  # what has no kind is refused by the checks, which say why

    def _attend(self, q: Any, k: Any, v: Any, values: Values, how: How, kind: Hashable) -> Any:
        """A call that nothing was prepared for: checked, and prepared for those that are like it."""
        source, wanted, asked = self._compilation.source, wanted_statistics(how.return_aux), backend_named(how.backend)
        where = {"scale": how.scale, "enable_gqa": how.enable_gqa, "q_offset": how.q_offset}
        call = check_call(source, values, q, k, v, **where)
        if how.blocks is not None:
            routed = self._routed(table_of_call(how.blocks, call, how.enable_gqa), values, how.q_offset)
            return routed(q, k, v, **how._replace(blocks=None)._asdict())
        sums = Sums() if wanted is None else wanted.sums(call)
        target = TARGETS.get(chosen(asked, call))
        facts = self._facts.of(source, self._compilation.program, call)
        if how.check:
            self._check_weights(call, how.enable_gqa)
        if target is None:
            return with_statistics(self._dense(call, how.enable_gqa, sums), wanted)
        more = replace(call, values={**values, **sums.values})
        prepared = prepare(self._compilation, self._facts, more, facts, target, sums.sums, wanted)
        if kind is not None and prepared.is_lasting:
            self._facts.keep(kind, prepared)
        if not how.check:
            return prepared.result(more)
        rows = prepared.rows(more)
        self._check(rows, self._dense(call, how.enable_gqa, sums), q.dtype)
        return with_statistics(rows, wanted)

    def _checked(self, q: Any, k: Any, v: Any, **how: Any) -> Call:
        device = q.device if isinstance(q, Tensor) else None
        return check_call(self._compilation.source, self._values(device), q, k, v, **how)

    @staticmethod
    def _check(found: Rows, expected: Result, dtype: torch.dtype) -> None:
        """Raise when what a kernel left is not what the reference says."""
        for what in ("out", "lse", "max_score"):
            there, wanted = getattr(found, what), getattr(expected, what)
            if wanted is not None:
                check_agreement(what, there, wanted, dtype)

    def _check_weights(self, call: Call, enable_gqa: bool) -> None:
        """Raise when finite scores have weights that are not."""
        source = self._compilation.source
        with torch.no_grad():
            weighed = weigh(
                source,
                call.values,
                call.q,
                call.k,
                scale=call.scale,
                enable_gqa=enable_gqa,
                q_offset=call.q_offset,
            )
        check_weights(source, weighed.scores, weighed.weights, call.q_offset)

    def _dense(self, call: Call, enable_gqa: bool, sums: Sums) -> Result:
        return attend(
            self._compilation.source,
            {**call.values, **sums.values},
            call.q,
            call.k,
            call.v,
            scale=call.scale,
            enable_gqa=enable_gqa,
            q_offset=call.q_offset,
            sums=sums.sums,
        )


def _from_text(text: str, bindings: Bindings) -> Attention:
    """What a pickle holds, as an attention."""
    from attndsl.frontend.parse import parse  # brings the parser, which Python variants do without

    (variant,) = parse(text, "<pickle>")
    return Attention(Compilation(variant), bindings)


def _with_default(param: Param, value: int | float | Tensor | None) -> Param:
    if isinstance(param, ScalarParam) and isinstance(value, int | float):
        return replace(param, default=value)
    return param

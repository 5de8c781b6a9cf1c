"""A backend in dense torch: every piece a kernel would leave, from the same derivations, pair by pair.

In: a variant. Out: a `DenseEngine`, in float64 where q is. It keeps the tasks it was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attndsl.analysis.backward import Backward, differentiate
from attndsl.analysis.calculus import cotangents
from attndsl.analysis.exponential import exponential
from attndsl.analysis.statistics import Kind, Statistic
from attndsl.analysis.streaming import Refusal, Streaming, stream
from attndsl.analysis.structure import Structure, structure_of
from attndsl.dense import Env, environment, evaluate, evaluate_all
from attndsl.ir import build
from attndsl.ir.nodes import Expr, Load
from attndsl.ir.types import Reduction
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.runtime.arguments import Call
from attndsl.runtime.engine import Chunk, Pieces, Task
from attndsl.runtime.launch import Rows

SEED = build.row_value("seed")


@dataclass(eq=False)
class DenseEngine:
    """`block` is the side of the square tiles of diagonals, `chunk` the keys of a chunk of pairs."""

    variant: Variant
    block: int = 8
    chunk: int = 16
    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.program = run_passes(self.variant)
        streaming = stream(self.program)
        assert isinstance(streaming, Streaming), streaming
        self.streaming = streaming
        self.derivative: Backward | Refusal = differentiate(self.program, streaming)

    def forward(self, call: Call) -> Rows:
        env, live, _ = self._pairs(call)
        rows: dict[str, Tensor] = {}
        for statistic in self.streaming.statistics:
            rows[statistic.name] = _statistic(statistic, _with_rows(env, rows), live)
        most = _statistic(Statistic("most", Kind.MAX, build.SCORE), env, live)
        if self.streaming.lse is not None:
            rows["lse"] = self._lse(_with_rows(env, rows), live, most)
        weights = torch.where(live, _value(self.streaming.weight, _with_rows(env, rows), live), 0.0)
        out = weights @ torch.where(live.any(-2)[..., None], _repeated(call.v, call), 0.0).to(env.dtype)
        kept = {name: rows[name] for name in self.streaming.kept}
        return Rows(out.to(call.q.dtype), rows.get("lse"), most, kept=kept)

    def sums(self, call: Call, rows: Mapping[str, Tensor], dout: Tensor) -> Mapping[str, Tensor]:
        env, live, _ = self._pairs(call)
        env = _with_dout(_with_rows(env, rows), call, torch.where(live.any(-1)[..., None], dout, 0.0))
        assert isinstance(self.derivative, Backward)
        found = ((formula.name, _value(formula.value, env, live)) for formula in self.derivative.sums)
        return {name: torch.where(live, value, 0.0).sum(-1) for name, value in found}

    def backward(self, call: Call, task: Task) -> Pieces:
        self.tasks.append(task)
        form, wanted = self.derivative, task.wanted
        assert isinstance(form, Backward)
        env, live, products = self._pairs(call)
        dout = torch.where(live.any(-1)[..., None], task.dout, 0.0).to(env.dtype)
        env = _with_dout(_with_rows(env, task.rows), call, dout)
        leaves = (build.SCORE, *wanted.loads)
        flows = cotangents(self.program.score, SEED, leaves)
        seed = torch.where(live, _value(form.dscore, env, live), 0.0)
        scored = replace(env, leaves={**env.leaves, build.SCORE: products, SEED: seed})
        found = {leaf: torch.where(live, _value(flows[leaf], scored, live), 0.0) for leaf in leaves}
        for load, value in form.dloads:
            if load in wanted.loads:
                found[load] = found[load] + torch.where(live, _value(value, env, live), 0.0)
        weights = torch.where(live, _value(form.weight, env, live), 0.0)
        dproducts = found.pop(build.SCORE) * call.scale
        of = {kind: {load: found[load] for load in wanted.loads if structure_of(load) is kind} for kind in Structure}
        return Pieces(
            dq=dproducts @ _repeated(call.k, call).to(env.dtype) if wanted.q else None,
            dk=_grouped(dproducts.transpose(-1, -2) @ call.q.to(env.dtype), call) if wanted.k else None,
            dv=_grouped(weights.transpose(-1, -2) @ dout, call) if wanted.v else None,
            rows={load: pairs.sum(-1) for load, pairs in of[Structure.ROW].items()},
            columns={load: pairs.sum(-2) for load, pairs in of[Structure.COLUMN].items()},
            diagonals={load: self._diagonals(pairs) for load, pairs in of[Structure.DIAGONAL].items()},
            chunks=self._chunks(of[Structure.PAIRS]),  # type: ignore[arg-type]
        )

    def _pairs(self, call: Call) -> tuple[Env, Tensor, Tensor]:
        """Final scores, which pairs are live, and the scaled products."""
        dtype = torch.float64 if call.q.dtype is torch.float64 else torch.float32
        sizes = {"batch": call.batch, "heads": call.heads, "q_len": call.q_len, "kv_len": call.kv_len}
        env = environment(self.program, call.values, **sizes, q_offset=call.q_offset, dtype=dtype)
        mask = evaluate(self.program.mask, env).expand(*sizes.values())
        products = call.q.to(dtype) @ _repeated(call.k, call).to(dtype).transpose(-1, -2) * call.scale
        scores = evaluate(self.program.score, replace(env, leaves={**env.leaves, build.SCORE: products}))
        live = mask & (scores != -torch.inf)
        scores = torch.where(live, scores, 0.0)
        return replace(env, leaves={**env.leaves, build.SCORE: scores}), live, products

    def _lse(self, env: Env, live: Tensor, most: Tensor) -> Tensor:
        """Of a row without a key: that of its sinks."""
        kin = exponential(self.program.normalizer)
        assert kin is not None
        assert self.streaming.lse is not None
        sinks = [_value(sink, env, live[..., :1]) for sink in kin.sinks or ()]
        nothing = torch.logsumexp(torch.cat((torch.full_like(most, -torch.inf)[..., None], *sinks), -1), -1)
        return torch.where(live.any(-1), _value(self.streaming.lse, env, most[..., None])[..., 0], nothing)

    def _diagonals(self, pairs: Tensor) -> Tensor:
        q_len, kv_len = pairs.shape[-2:]
        found = [pairs.diagonal(-distance, -2, -1).sum(-1) for distance in range(1 - kv_len, q_len)]
        return torch.stack(found, -1)

    def _chunks(self, pairs: dict[Load, Tensor]) -> Iterator[Chunk]:
        length = next((found.shape[-1] for found in pairs.values()), 0)
        for start in range(0, length, self.chunk):
            keys = range(start, min(start + self.chunk, length))
            yield Chunk(keys, {load: found[..., keys.start : keys.stop] for load, found in pairs.items()})


def _value(root: Expr, env: Env, like: Tensor) -> Tensor:
    return evaluate_all((root,), env)[0].expand(like.shape)


def _statistic(statistic: Statistic, env: Env, live: Tensor) -> Tensor:
    match statistic.kind:
        case Kind.MAX:
            node: Expr = build.row(Reduction.MAX, statistic.integrand)
        case Kind.SUM:
            node = build.row(Reduction.SUM, statistic.integrand)
        case Kind.SOLVE:
            assert statistic.solve is not None
            node = statistic.solve
    return evaluate(node, replace(env, live=live)).expand(*live.shape[:-1], 1)[..., 0]


def _with_rows(env: Env, rows: Mapping[str, Tensor]) -> Env:
    leaves: dict[Expr, Tensor] = {build.row_value(name): value[..., None] for name, value in rows.items()}
    return replace(env, leaves={**env.leaves, **leaves})


def _with_dout(env: Env, call: Call, dout: Tensor) -> Env:
    dweight = dout.to(env.dtype) @ _repeated(call.v, call).to(env.dtype).transpose(-1, -2)
    return replace(env, leaves={**env.leaves, build.DWEIGHT: dweight})


def _repeated(tensor: Tensor, call: Call) -> Tensor:
    return tensor.repeat_interleave(call.heads // max(call.kv_heads, 1), 1)


def _grouped(gradient: Tensor, call: Call) -> Tensor:
    return gradient.unflatten(1, (call.kv_heads, -1)).sum(2)

"""What a variant costs on given lengths: what is skipped and why, what is proven, and what would make it cheaper.

In: a compilation and a `BlockPlan`, with what the call is beside them. Out: an `Explanation`; printed, it is text for a
terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attndsl.advice import advice_for
from attndsl.analysis.proofs import Proof
from attndsl.codegen.derived import gradient_notes, streaming_notes
from attndsl.codegen.describe import describe
from attndsl.codegen.plan import KernelPlan, Specialisation
from attndsl.codegen.proofs import claim_text, fact_text, proofs_of
from attndsl.compiler import Compilation
from attndsl.diagnostics import UnsupportedError
from attndsl.ir.order import GridOrder
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.runtime.grants import Grants, relied_on
from attndsl.runtime.launch import DTYPES
from attndsl.runtime.planner import BlockPlan, plan_blocks
from attndsl.runtime.workload import Workload, workload_of

INDENT = 12


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a call beside its lengths, and the element type of q, k and v."""

    batch: int
    heads: int
    head_dim: int
    v_head_dim: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Finding:
    """A proof with its facts as text, and whether each holds in the call."""

    proof: Proof
    facts: tuple[tuple[str, bool], ...]

    @property
    def holds(self) -> bool:
        """Whether what is claimed is so in the call."""
        return all(holds for _, holds in self.facts)


@dataclass(frozen=True, slots=True)
class Permutation:
    """Tokens kept in tiles, and the plan of the same call in row-major order."""

    order: GridOrder
    row_major: BlockPlan


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call costs and why; `str` of it is the same for people.

    `proofs` are those of the fast kernel, which runs if all they take holds (`unmet` is empty). `nbytes`: of q, k, v,
    the output, captured tensors and the table of tiles; of the copies, each read and written once, where a
    `permutation` keeps tokens in tiles. `kernel`: its decisions as text, or why there is none. `streaming` and
    `gradients`: how the normalizer streams over the keys, how it is differentiated, how the gradient of each captured
    tensor is gathered.
    """

    name: str
    plan: BlockPlan
    shape: Shape
    workload: Workload
    nbytes: Mapping[str, int]
    proofs: tuple[Finding, ...]
    unmet: tuple[str, ...]
    advice: tuple[str, ...]
    kernel: str
    streaming: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    permutation: Permutation | None = None

    @property
    def strategy(self) -> str:
        """ "closed_form", "table" or "dense"."""
        return self.plan.strategy

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why that strategy, in the words of the program."""
        return self.plan.reasons

    @property
    def tiles(self) -> dict[str, int]:
        """How many tiles of the plan are full, partial and empty."""
        return self.plan.counts

    @property
    def useful_flops(self) -> tuple[int, int]:
        """Of the products with keys and values at live pairs, at least and at most."""
        least, most = (count * self._flops for count in self.workload.useful)
        return least, most

    @property
    def visited_flops(self) -> int:
        """Of the tiles that are computed."""
        return self.workload.visited * self._flops

    @property
    def dense_flops(self) -> int:
        """Of all pairs."""
        return self.workload.dense * self._flops

    @property
    def flop_bound(self) -> tuple[float, float]:
        """How many times faster than dense at best, were only live pairs computed: at least and at most."""
        least, most = self.useful_flops
        return _ratio(self.dense_flops, most), _ratio(self.dense_flops, least)

    @property
    def tile_bound(self) -> float:
        """How many times faster than dense at best, with the tiles that are computed."""
        return _ratio(self.dense_flops, self.visited_flops)

    @property
    def _flops(self) -> int:
        """Operations a pair: a multiplication and an addition for each element of a key and of a value."""
        return 2 * (self.shape.head_dim + self.shape.v_head_dim)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def explain(compilation: Compilation, plan: BlockPlan, shape: Shape, grants: Grants) -> Explanation:
    """Everything there is to say of a call."""
    workload = workload_of(plan, shape.batch, shape.heads)
    spec = Specialisation(DTYPES[shape.dtype], shape.head_dim, shape.v_head_dim)
    unmet = tuple(fact_text(fact) for fact in relied_on(compilation.program) if not grants.holds(fact))
    proofs: tuple[Finding, ...] = ()
    try:
        fast = compilation.kernel("forward", spec)
        kernel = compilation.kernel("forward", replace(spec, fast=not unmet))
    except UnsupportedError as error:
        text = str(error)
    else:
        text, proofs = describe(kernel.plan), _findings(fast.plan, grants)
    return Explanation(
        name=compilation.source.name,
        plan=plan,
        shape=shape,
        workload=workload,
        nbytes=_bytes(plan, shape, copies=compilation.source.order is not None),
        proofs=proofs,
        unmet=unmet,
        advice=advice_for(plan, workload, is_permuted=compilation.source.order is not None),
        kernel=text.rstrip("\n"),
        streaming=streaming_notes(compilation.derivation),
        gradients=gradient_notes(compilation.derivation),
        permutation=_permutation(compilation.source, plan),
    )


def _permutation(source: Variant, plan: BlockPlan) -> Permutation | None:
    if source.order is None:
        return None
    tiling = plan.tiling
    row_major = plan_blocks(
        run_passes(replace(source, order=None)),
        plan.values,
        tiling.q_len,
        tiling.kv_len,
        batch=tiling.batch,
        heads=tiling.heads,
        block=tiling.block,
        exact=plan.tiles.exact,
    )
    return Permutation(source.order, row_major)


def _findings(plan: KernelPlan, grants: Grants) -> tuple[Finding, ...]:
    return tuple(
        Finding(proof, tuple((fact_text(fact), grants.holds(fact)) for fact in proof.facts))
        for proof in proofs_of(plan)
    )


def _bytes(plan: BlockPlan, shape: Shape, *, copies: bool) -> dict[str, int]:
    """As many key heads as query heads are assumed."""
    pairs = shape.batch * shape.heads * shape.dtype.itemsize
    captured = (value.nbytes for value in plan.values.values() if isinstance(value, Tensor))
    found = {
        "q": pairs * plan.tiling.q_len * shape.head_dim,
        "k": pairs * plan.tiling.kv_len * shape.head_dim,
        "v": pairs * plan.tiling.kv_len * shape.v_head_dim,
        "out": pairs * plan.tiling.q_len * shape.v_head_dim,
        "captured": sum(captured),
        "table": plan.nbytes,
    }
    if copies:
        found["copies"] = 2 * sum(found[name] for name in ("q", "k", "v", "out"))
    return found


def _lines(found: Explanation) -> Iterator[str]:
    tiling, shape = found.plan.tiling, found.shape
    dims = f"{shape.head_dim}" if shape.head_dim == shape.v_head_dim else f"{shape.head_dim} and {shape.v_head_dim}"
    size = f"{tiling.q_len} x {tiling.kv_len}, batch {shape.batch}, heads {shape.heads}"
    yield f"{found.name}: {size}, head dim {dims}, {DTYPES[shape.dtype]}"
    yield ""
    yield from _section("strategy", [found.strategy, *(f"  {reason}" for reason in found.reasons)])
    yield from _section("tiles", _tiles(found))
    if found.permutation is not None:
        yield from _section("order", _order(found.permutation, found.nbytes["copies"]))
    yield from _section("work", _work(found))
    yield from _section("bytes", [", ".join(f"{name} {_size(count)}" for name, count in found.nbytes.items())])
    if found.proofs:
        yield from _section("proofs", _proofs(found))
        missing = ", ".join(f"`{fact}`" for fact in found.unmet)
        runs = (
            f"the general kernel, for want of {missing}" if found.unmet else "the fast kernel: all of these facts hold"
        )
        yield from _section("runs", [runs])
    yield from _section("streams", found.streaming)
    yield from _section("gradients", found.gradients)
    yield from _section("advice", found.advice or ["nothing to gain that is known of"])
    yield ""
    yield from found.kernel.splitlines()


def _section(name: str, lines: Iterable[str]) -> Iterator[str]:
    for at, line in enumerate(lines):
        yield f"{'' if at else name:<{INDENT}}{line}"


def _tiles(found: Explanation) -> Iterator[str]:
    tiling, counts = found.plan.tiling, found.tiles
    total = sum(counts.values())
    yield f"{_census(found.plan)} of {total} skipped, {tiling.block[0]} queries x {tiling.block[1]} keys"
    if tiling.batch * tiling.heads != found.shape.batch * found.shape.heads:
        yield "alike for all of the batches and heads that the mask does not read"


def _census(plan: BlockPlan) -> str:
    return f"{', '.join(f'{count} {name}' for name, count in plan.counts.items())}; {plan.sparsity:.1%}"


def _order(permutation: Permutation, copies: int) -> Iterator[str]:
    yield f"{permutation.order}: q, k, v and out are copied once each, {_size(copies)} read and written"
    yield f"in row-major order: {_census(permutation.row_major)} skipped"


def _work(found: Explanation) -> Iterator[str]:
    least, most = found.useful_flops
    useful = _flops(least) if found.workload.is_exact else f"{_flops(least)} to {_flops(most)}"
    yield f"{useful} useful, {_flops(found.visited_flops)} computed, {_flops(found.dense_flops)} dense"
    if found.visited_flops == 0:
        return
    low, high = (f"{share:.1%}" for share in found.workload.density)
    share = low if found.workload.is_exact else f"{low} to {high}"
    yield f"{share} of the computed pairs are live"
    slow, fast = (f"{bound:.3g}" for bound in found.flop_bound)
    flops = slow if slow == fast else f"{slow} to {fast}"
    yield f"times faster than dense at best: {flops} by FLOPs, {found.tile_bound:.3g} by tiles"


def _proofs(found: Explanation) -> Iterator[str]:
    for finding in found.proofs:
        yield f"{claim_text(finding.proof)}: {finding.proof.effect}"
        yield f"    because {finding.proof.why}"
        yield from (f"    {'holds' if holds else 'FAILS'}  {text}" for text, holds in finding.facts)


def _ratio(dense: int, part: int) -> float:
    return dense / part if part else float("inf") if dense else 1.0


def _flops(count: int) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}FLOP"
    return f"{count} FLOP"


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"

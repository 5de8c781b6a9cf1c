"""Every decision about a kernel, made once, flat and frozen: templates arrange what stands here, printers print it.

In: a variant after its passes and a `Specialisation`. Out: a `KernelPlan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from attndsl.analysis.bounds import Strategy, choose_strategy
from attndsl.analysis.infinite import may_be_infinite
from attndsl.analysis.natural import natural_divisions
from attndsl.analysis.proofs import Claim, Proof, row_proofs
from attndsl.analysis.streaming import Refusal, Streaming, stream
from attndsl.codegen.names import kernel_names
from attndsl.codegen.placement import Placement, origin_of, place
from attndsl.codegen.walk import KeyWalk, plan_walk
from attndsl.diagnostics import UnsupportedError
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Load, Scalar
from attndsl.ir.ops import Op
from attndsl.ir.rewrite import postorder
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, Variant


class Target(Enum):
    """The language a kernel is written in; the value is its name for users."""

    TRITON = "triton"
    CPP = "cpp"


@dataclass(frozen=True, slots=True)
class Specialisation:
    """What a kernel is compiled for besides the variant.

    `dtype` is the element type of q, k and v: "bf16", "fp16", "fp32" or, on a CPU, "fp64". `fast` kernels rely on facts
    the launcher checks on the host: every `Condition`, and those proofs about rows are taken on (`analysis.proofs`).
    The other kernel relies on none of them. `strategy` is the walk over the keys, by default the one the mask allows.
    `storages` are the torch dtypes of the variant's captured tensors, where the text of a kernel depends on them.
    """

    dtype: str = "bf16"
    head_dim: int = 128
    v_head_dim: int = 128
    fast: bool = True
    offset_per_batch: bool = False
    strategy: Strategy | None = None
    storages: tuple[str, ...] = ()
    target: Target = Target.TRITON


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """A forward kernel.

    `symbols` are the kernel's identifiers of the parameters, by name. `rows` is what is proven about the live keys of
    a row. `cheap_division` are the `//` and `%` whose operands are never negative; `branch_loads` the captured reads
    whose index may be out of bounds even on a live pair, because they stand in a branch.
    """

    variant: Variant
    spec: Specialisation
    params: tuple[Param, ...]
    symbols: Mapping[str, str]
    walk: KeyWalk
    streaming: Streaming
    placement: Placement
    sink: Placement
    mask: Expr
    score: Expr
    rows: tuple[Proof, ...]
    cheap_division: frozenset[Expr]
    branch_loads: frozenset[Expr]
    mask_origin: str | None
    score_origin: str | None

    @property
    def index(self) -> DType:
        """The width integers are computed in."""
        return DType.I32 if self.spec.fast else DType.I64

    @property
    def scales_late(self) -> bool:
        """Whether the scale joins the exponent: without score mods, and with a sign that keeps the maximum's place."""
        return self.score is build.SCORE and self.spec.fast

    @property
    def hides_keys(self) -> bool:
        """Whether a score may mask a pair that its mask keeps: then even a full tile may hold a key nobody sees."""
        return may_be_infinite(self.score)

    @property
    def seen_are_bounded(self) -> bool:
        """Whether bounds alone tell the keys of a tile that some of its queries see."""
        return self.walk.seen_are_bounded and not self.hides_keys

    @property
    def guards_rows(self) -> bool:
        """Whether a row may have no live key."""
        return all(proof.claim is not Claim.LIVE_ROW for proof in self.rows)

    @property
    def guards_maximum(self) -> bool:
        """Whether a row may have no live key in the tiles it has met so far."""
        return all(proof.claim is not Claim.LIVE_START for proof in self.rows)

    @property
    def never(self) -> bool:
        """Whether no pair is ever live."""
        return self.mask is build.FALSE


@dataclass(frozen=True, slots=True)
class Emitted:
    """A plan and the text printed from it."""

    plan: KernelPlan
    text: str


def plan_forward(variant: Variant, spec: Specialisation) -> KernelPlan:
    """The plan of the forward kernel; refused with all reasons when the variant is outside what kernels do."""
    streaming = stream(variant)
    if isinstance(streaming, Refusal):
        raise UnsupportedError(streaming.reasons)
    sink = () if streaming.sink is None else (streaming.sink,)
    roots = (variant.mask, variant.score, *sink)
    params = used_params(variant, roots)
    symbols = kernel_names(param.name for param in params)
    return KernelPlan(
        variant=variant,
        spec=spec,
        params=params,
        symbols=symbols,
        walk=plan_walk(variant.mask, choose_strategy(variant.mask) if spec.strategy is None else spec.strategy),
        streaming=streaming,
        placement=place(variant, variant.mask, variant.score, symbols),
        sink=place(variant, build.TRUE, build.TRUE if streaming.sink is None else streaming.sink, symbols),
        mask=variant.mask,
        score=variant.score,
        rows=row_proofs(variant.mask, variant.score) if spec.fast else (),
        cheap_division=natural_divisions(roots) if spec.fast else frozenset(),
        branch_loads=_branch_loads(variant.score),
        mask_origin=origin_of(variant, variant.mask),
        score_origin=origin_of(variant, variant.score),
    )


def used_params(variant: Variant, roots: Iterable[Expr]) -> tuple[Param, ...]:
    """The parameters a kernel reads, in the order of declaration."""
    names = set()
    for node in postorder(*roots):
        match node:
            case Scalar(name=name) | Load(tensor=name):
                names.add(name)
    return tuple(param for param in variant.params if param.name in names)


def padded(head_dim: int) -> int:
    """The power of two a head dimension is computed in, at least what a matrix product takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def _branch_loads(root: Expr) -> frozenset[Expr]:
    """The loads that may stand in a branch not taken: even on a live pair their index may be out of bounds."""
    found: set[Expr] = set()
    for node in postorder(root):
        match node:
            case Apply(op=Op.WHERE, args=(_, yes, no)):
                branches: tuple[Expr, ...] = (yes, no)
            case Apply(op=Op.AND | Op.OR, args=(_, right)):
                branches = (right,)
            case _:
                continue
        found.update(load for load in postorder(*branches) if isinstance(load, Load))
    return frozenset(found)

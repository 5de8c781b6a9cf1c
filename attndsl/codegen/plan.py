"""Every decision about a kernel, made once, flat and frozen: templates arrange what stands here, printers print it.

In: what a kernel computes (`codegen.kernels`). Out: a `KernelPlan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from attndsl.analysis.bounds import Strategy
from attndsl.analysis.infinite import may_be_infinite
from attndsl.analysis.proofs import Claim, Proof
from attndsl.analysis.statistics import Kind, Statistic
from attndsl.analysis.streaming import Streaming
from attndsl.analysis.structure import Structure
from attndsl.codegen.drawn import Drawn
from attndsl.codegen.names import row_pointer
from attndsl.codegen.placement import Placement, Side
from attndsl.codegen.walk import KeyWalk
from attndsl.ir import build
from attndsl.ir.nodes import Apply, Expr, Load, RowValue, Scalar, children
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
    The other kernel relies on none of them. `strategy` is the walk, by default the one the mask allows. `gradients` are
    the captured tensors whose gradients a backward kernel computes. `storages` are the torch dtypes of the variant's
    captured tensors, where the text of a kernel depends on them; `block` the queries and keys of a tile, where the text
    does and they are not the default. `paged`: keys and values lie in pages of a pool. `split`: several programs share
    the keys of a query tile, and leave an output and statistics each.
    """

    dtype: str = "bf16"
    head_dim: int = 128
    v_head_dim: int = 128
    fast: bool = True
    offset_per_batch: bool = False
    strategy: Strategy | None = None
    gradients: frozenset[str] = frozenset()
    storages: tuple[str, ...] = ()
    block: tuple[int, int] | None = None
    target: Target = Target.TRITON
    paged: bool = False
    split: bool = False


class Gather(Enum):
    """What becomes of the values a kernel sums: they are added up along the walk, or along the diagonals of square
    tiles, or written down pair by pair for a stretch of keys."""

    WALK = "walk"
    DIAGONAL = "diagonal"
    PAIRS = "pairs"


class Operand(Enum):
    """What the values of a tile's pairs are multiplied with; the value is its name in a kernel."""

    VALUE = "v"
    KEY = "k"
    QUERY = "q"
    GRADIENT = "do"


@dataclass(frozen=True, slots=True)
class Product:
    """An accumulator of a program: the sum over the walk of `value` times the rows of an operand.

    `rescale` multiplies what there is when maxima grow.
    """

    name: str
    value: Expr
    operand: Operand
    rescale: Expr | None = None


OUTPUTS = {"acc": "Out", "dq": "DQ", "dk": "DK", "dv": "DV"}
"""The tensor an accumulator ends up in."""


@dataclass(frozen=True)
class KernelPlan:
    """A kernel that keeps one tile and walks those it meets.

    Expressions are over the scaled product; `final` is the final score as they read it. `statistics` and `products`
    are what it computes, `kept` the row values it reads, `at_end` what a forward computes of a row after its walk;
    of a kernel that solves rows `bracket` is the total and the bounds of what it looks for.
    `symbols` are the identifiers of the parameters, by name, `names` those of values. `rows` is what is proven about
    the live keys of a row. `cheap_division` are the `//` and `%` whose operands are never negative; `branch_loads` the
    captured reads whose index may be out of bounds even on a live pair, because they stand in a branch.
    `placement` is that of mask and score, `peaks` of what maxima are taken of, `rest` of everything after them, `last`
    of what is computed after the walk. `structures` says of each sum of gradients what it is taken over.
    """

    kernel: str
    side: Side
    variant: Variant
    spec: Specialisation
    streaming: Streaming
    walk: KeyWalk
    mask: Expr
    score: Expr
    final: Expr
    statistics: tuple[Statistic, ...]
    products: tuple[Product, ...]
    kept: tuple[str, ...]
    at_end: tuple[Expr, ...]
    bracket: tuple[Expr, ...]
    params: tuple[Param, ...]
    symbols: Mapping[str, str]
    names: Mapping[Expr, str]
    placement: Placement
    peaks: Placement
    rest: Placement
    last: Placement
    rows: tuple[Proof, ...]
    cheap_division: frozenset[Expr]
    branch_loads: frozenset[Expr]
    gather: Gather
    structures: Mapping[str, Structure]
    mask_origin: str | None
    score_origin: str | None

    @property
    def maxima(self) -> tuple[Statistic, ...]:
        return tuple(statistic for statistic in self.statistics if statistic.kind is Kind.MAX)

    @property
    def sums(self) -> tuple[Statistic, ...]:
        return tuple(statistic for statistic in self.statistics if statistic.kind is Kind.SUM)

    @property
    def solve(self) -> Statistic | None:
        """The root a kernel looks for, if it does."""
        return next((statistic for statistic in self.statistics if statistic.kind is Kind.SOLVE), None)

    @property
    def index(self) -> DType:
        """The width integers are computed in."""
        return DType.I32 if self.spec.fast else DType.I64

    @property
    def pair_values(self) -> tuple[Expr, ...]:
        """What is computed of every pair, in the order it is used."""
        products = (part.value for part in self.products)
        sums = (part.integrand for part in self.statistics if part.kind is not Kind.MAX)
        return tuple(dict.fromkeys([*products, *sums]))

    @cached_property
    def reads_gradient(self) -> bool:
        """Whether the gradient of the output takes part."""
        return any(node is build.DWEIGHT for node in postorder(*self.pair_values))

    @property
    def reads_values(self) -> bool:
        """Whether a walk over keys reads their values."""
        return self.reads_gradient or any(product.operand is Operand.VALUE for product in self.products)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The pointers to tensors of four dimensions: what is read, what is written."""
        reads_gradient = self.reads_gradient or any(part.operand is Operand.GRADIENT for part in self.products)
        read = ("Q", "K", *(("V",) if self.reads_values else ()), *(("DOut",) if reads_gradient else ()))
        written = dict.fromkeys(OUTPUTS[part.name] for part in self.products if part.name in OUTPUTS)
        return (*read, *written)

    @property
    def stored(self) -> tuple[str, ...]:
        """The row values a kernel writes; one that keeps keys writes a value for each of them."""
        ends = self.at_end != ()
        spent = {part.name for part in self.sums if ends and part.name not in self.streaming.kept}
        names = tuple(part.name for part in self.statistics if part.name not in spent)
        return ("lse", *names) if ends and self.streaming.lse is not None else names

    @property
    def yields(self) -> bool:
        """Whether a kernel computes anything: one of gradients may be left with none."""
        return bool(self.statistics or self.products)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Further integers a kernel takes."""
        match self.gather:
            case Gather.WALK:
                return ("splits",) if self.spec.split else ()
            case Gather.DIAGONAL:
                return ("diagonals",)
            case Gather.PAIRS:
                return ("chunk_lo", "chunk_hi")

    @property
    def reads_table(self) -> bool:
        """Whether the host says which tiles are visited."""
        return self.walk.strategy is Strategy.TABLE or self.gather is Gather.DIAGONAL

    @property
    def row_pointers(self) -> tuple[str, ...]:
        """The pointers to what is kept of each row: those read, then those written."""
        return tuple(map(row_pointer, (*self.kept, *self.stored)))

    @cached_property
    def scales_late(self) -> bool:
        """Whether the scale joins the exponent: the score only stands there, with no score mod before it, and has a
        sign that keeps the maximum's place."""
        peaks_are_plain = all(statistic.integrand is build.SCORE for statistic in self.maxima)
        is_plain = self.score is build.SCORE and self.gather is Gather.WALK
        return is_plain and self.spec.fast and peaks_are_plain and not _has_bare_score(self)

    @property
    def scales_exponents(self) -> bool:
        """Whether there is an exponent the scale joins."""
        values = postorder(*self.pair_values)
        return self.scales_late and any(self.base_of_exponential(value) is not None for value in values)

    def base_of_exponential(self, node: Expr) -> RowValue | None:
        """R of `exp(score - R)`, which is 0 at a score of -inf if R is finite; `None` of any other value."""
        match node:
            case Apply(op=Op.EXP, args=(Apply(op=Op.SUB, args=(left, RowValue() as row)),)) if left is self.final:
                return row
            case _:
                return None

    @property
    def takes_turns(self) -> bool:
        """Whether partial tiles before the full ones and after them share a loop: gradients need the registers."""
        return self.kernel.startswith("backward") and self.walk.has_left

    @property
    def has_thresholds(self) -> bool:
        """Whether weights are cut off at thresholds that are found row by row."""
        return any(part.kind is Kind.SOLVE for part in self.streaming.statistics)

    @property
    def mirrors(self) -> bool:
        """Whether products are those of the forward to the last bit, though a program keeps keys: thresholds that
        were found among scores are compared with them again."""
        return self.has_thresholds and self.side is Side.KEYS

    @property
    def hides_keys(self) -> bool:
        """Whether a score may mask a pair that its mask keeps: then even a full tile may hold a key nobody sees."""
        return may_be_infinite(self.score)

    @property
    def seen_are_bounded(self) -> bool:
        """Whether bounds alone tell what of a tile of the walk takes part."""
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
    """A plan and the text printed from it, which may be yet to be written."""

    plan: KernelPlan
    source: Drawn | str

    @property
    def text(self) -> str:
        """The text of the kernel."""
        return self.source if isinstance(self.source, str) else self.source.text


def is_maximum(statistic: Statistic) -> bool:
    """Whether a statistic is the largest score of the row."""
    return statistic.kind is Kind.MAX and statistic.integrand is build.SCORE


def _has_bare_score(plan: KernelPlan) -> bool:
    """Whether the score stands outside of exponentials."""
    seen, stack = set[Expr](), list(plan.pair_values)
    while stack:
        node = stack.pop()
        if node in seen or plan.base_of_exponential(node) is not None:
            continue
        if node is build.SCORE:
            return True
        seen.add(node)
        stack.extend(children(node))
    return False


def used_params(variant: Variant, roots: Iterable[Expr]) -> tuple[Param, ...]:
    """The parameters a kernel reads, in the order of declaration."""
    names = set()
    for node in postorder(*roots):
        match node:
            case Scalar(name=name) | Load(tensor=name):
                names.add(name)
    return tuple(param for param in variant.params if param.name in names)


def branch_loads(*roots: Expr) -> frozenset[Expr]:
    """The loads that may stand in a branch not taken: even on a live pair their index may be out of bounds."""
    found: set[Expr] = set()
    for node in postorder(*roots):
        match node:
            case Apply(op=Op.WHERE, args=(_, yes, no)):
                branches: tuple[Expr, ...] = (yes, no)
            case Apply(op=Op.AND | Op.OR, args=(_, right)):
                branches = (right,)
            case _:
                continue
        found.update(load for load in postorder(*branches) if isinstance(load, Load))
    return frozenset(found)

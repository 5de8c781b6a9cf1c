"""Hypothesis strategies every random suite shares: masks, whole programs, and the calls to try them on.

`cases()` draws any program, `mask_cases()` a mask alone, `affine_masks()` a conjunction of affine bounds. Each gives a
`Case`; its repr is text of the language that can be pasted into a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from expressions import SIZES, Draw, Scope, Shape, condition, integer, real, score
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter
from torch import Tensor

from attndsl.frontend import normalizers
from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.variant import Variant

LENGTHS = (33, 1, 15, 16, 17, 31, 127, 128, 129, 200, 257, 390)
"""On both sides of the edges of tiles of 16, 128 and 256; suites take those up to their own limit."""

HEAD_DIMS = (16, 1, 17, 32, 64, 80)
HEADS = ((1, 1, 1), (1, 2, 1), (1, 2, 2), (2, 1, 1), (2, 2, 1), (1, 3, 1), (2, 4, 2))
"""Batch, query heads, key heads."""


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """A program, the values of its parameters, and the sizes of a call."""

    variant: Variant
    values: dict[str, int | float | Tensor]
    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    v_head_dim: int
    q_offset: int | Tensor

    @property
    def grid(self) -> dict[str, int | Tensor]:
        """The keyword arguments `live_pairs` takes."""
        return {
            "batch": self.batch,
            "heads": self.q_heads,
            "q_len": self.q_len,
            "kv_len": self.kv_len,
            "q_offset": self.q_offset,
        }

    def inputs(
        self, seed: int = 0, dtype: torch.dtype = torch.float32, requires_grad: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v; the same numbers in every dtype, up to its rounding."""
        generator = torch.Generator().manual_seed(seed)
        shapes = (
            (self.batch, self.q_heads, self.q_len, self.head_dim),
            (self.batch, self.kv_heads, self.kv_len, self.head_dim),
            (self.batch, self.kv_heads, self.kv_len, self.v_head_dim),
        )
        q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_(requires_grad) for shape in shapes)
        return q, k, v

    def __repr__(self) -> str:
        from attndsl.ir.printer import print_variant

        sizes = {**self.grid, "kv_heads": self.kv_heads, "head_dim": self.head_dim, "v_head_dim": self.v_head_dim}
        tensors = {name: value for name, value in self.values.items() if isinstance(value, Tensor)}
        notes = [" ".join(f"{name}={value}" for name, value in sizes.items())]
        for name, value in tensors.items():
            notes.append(f"{name}: {value.dtype} {tuple(value.shape)}")
            if value.numel() <= 160:
                notes.append(f"{name} = {value.tolist()}")
        comments = "\n".join(f"# {note}" for note in notes)
        return f"\n{comments}\n{print_variant(self.variant)}\n"

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        """Hypothesis would print the fields of a dataclass."""
        printer.text(repr(self))


@st.composite
def shapes(draw: Draw, max_programs: int = 8, tensor_offsets: bool = False, max_length: int = 129) -> Shape:
    """The sizes of a call with at most `max_programs` (batch, query head) pairs; half of them square."""

    def pick(options: tuple) -> int:
        return options[draw(st.integers(0, len(options) - 1))]

    lengths = tuple(length for length in LENGTHS if length <= max_length)
    batch, q_heads, kv_heads = pick(tuple(heads for heads in HEADS if heads[0] * heads[1] <= max_programs))
    q_len = pick(lengths)
    kv_len = q_len if draw(st.booleans()) else pick(lengths)
    head_dim = pick(HEAD_DIMS)
    v_head_dim = head_dim if draw(st.booleans()) else pick(HEAD_DIMS)
    q_offset: int | tuple[int, ...] = pick((0, 0, 0, 0, 1, 16, 37))
    if tensor_offsets and draw(st.integers(0, 3)) == 0:
        q_offset = tuple(pick((0, 5, 40)) for _ in range(batch))
    return Shape(batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_head_dim, q_offset)


@st.composite
def cases(
    draw: Draw,
    max_programs: int = 8,
    max_length: int = 129,
    tensor_offsets: bool = False,
    scores: bool = True,
    sinks: bool = True,
    weights: bool = False,
    row: Callable[[Scope], tuple[Expr, Expr]] | None = None,
) -> Case:
    """Any program: a mask, a score mod over all float operators, softmax with or without a sink, affine weight mods.

    `row` draws another normalizer and weight mod.
    """
    scope = Scope(draw, draw(shapes(max_programs, tensor_offsets, max_length)))
    mask, causal = _mask(scope)
    final = score(scope, causal) if scores else build.SCORE
    normalizer = _normalizer(scope) if sinks else normalizers.softmax(scope.builder)
    weight = _weight(scope) if weights else build.WEIGHT
    if row is not None:
        normalizer, weight = row(scope)
    return _case(scope, final, mask, normalizer, weight)


def mask_cases(max_programs: int = 8, max_length: int = 129, tensor_offsets: bool = False) -> st.SearchStrategy[Case]:
    """A mask and nothing else."""
    return cases(max_programs, max_length, tensor_offsets, scores=False, sinks=False)


@st.composite
def affine_masks(draw: Draw, max_programs: int = 8, max_length: int = 129, tensor_offsets: bool = False) -> Case:
    """A conjunction of affine bounds in any writing: `a * q_idx + b * kv_idx + ... <= c`, gates among them."""
    scope = Scope(draw, draw(shapes(max_programs, tensor_offsets, max_length)))
    anchor = scope.between(0, scope.shape.q_len - 1), scope.between(0, scope.shape.kv_len - 1)
    terms = [_affine(scope, anchor) for _ in range(scope.pick((1, 2, 2, 3)))]
    return _case(scope, build.SCORE, _join(scope, "and", terms), normalizers.softmax(scope.builder), build.WEIGHT)


@st.composite
def affine_unions(draw: Draw, max_programs: int = 8, max_length: int = 129, tensor_offsets: bool = False) -> Case:
    """A disjunction of conjunctions of affine bounds, as many as a kernel walks."""
    scope = Scope(draw, draw(shapes(max_programs, tensor_offsets, max_length)))
    branches = []
    for _ in range(scope.pick((2, 2, 3, 4))):
        anchor = scope.between(0, scope.shape.q_len - 1), scope.between(0, scope.shape.kv_len - 1)
        branches.append(_join(scope, "and", [_affine(scope, anchor) for _ in range(scope.pick((2, 1, 3)))]))
    return _case(scope, build.SCORE, _join(scope, "or", branches), normalizers.softmax(scope.builder), build.WEIGHT)


def _case(scope: Scope, final: Expr, mask: Expr, normalizer: Expr, weight: Expr) -> Case:
    scope.builder.reporter.check()
    shape = scope.shape
    variant = Variant("random", tuple(scope.params), final, mask, normalizer, weight, scope.builder.origins)
    sizes = (shape.batch, shape.q_heads, shape.kv_heads, shape.q_len, shape.kv_len, shape.head_dim, shape.v_head_dim)
    offset = shape.q_offset if isinstance(shape.q_offset, int) else torch.tensor(shape.q_offset)
    return Case(variant, scope.values, *sizes, offset)


def _normalizer(scope: Scope) -> Expr:
    kind = scope.between(0, 5)
    if kind < 3:
        return normalizers.softmax(scope.builder)
    if kind == 3:
        return normalizers.softmax(scope.builder, scope.number(scope.pick((0.5, -3.0, 2.0))))
    coords, sizes = (
        ([build.H], [scope.shape.q_heads]),
        ([build.B, build.H], [scope.shape.batch, scope.shape.q_heads]),
    )[kind - 4]
    return normalizers.softmax(scope.builder, scope.load(scope.reals(*sizes), *coords))


def _weight(scope: Scope) -> Expr:
    """A weight mod affine in the weight."""
    factor = real(scope, 1, None)[0]
    result = scope.op("*", build.WEIGHT, factor)
    return scope.op("+", result, real(scope, 1, None)[0]) if scope.between(0, 2) == 0 else result


def _join(scope: Scope, symbol: str, terms: list[Expr]) -> Expr:
    return reduce(lambda left, right: scope.op(symbol, left, right), terms)


def _mask(scope: Scope) -> tuple[Expr, bool]:
    """A mask, and whether every live pair has `kv_idx <= q_idx`."""
    kind = scope.between(0, 11)
    if kind == 0 and scope.between(0, 2) == 0:
        return build.TRUE, False
    if kind <= 4:
        return _atom(scope), False
    if kind <= 6:
        causal = scope.op("<=", build.K, build.Q)
        if scope.between(0, 5) == 0:
            flags = scope.load(scope.bools(scope.shape.q_end), scope.op("-", build.Q, build.K))
            return scope.op("and", causal, flags), True
        return scope.op("and", causal, _atom(scope)), True
    if kind in (7, 8):
        return scope.op("and", _atom(scope), _atom(scope)), False
    if kind == 9:
        return scope.op("or", _atom(scope), _atom(scope)), False
    if kind == 10:
        return scope.op("and", scope.op("or", _atom(scope), _atom(scope)), scope.no(_atom(scope))), False
    left, right = _atom(scope), _atom(scope)
    choices = (
        scope.op("^", left, right),
        scope.no(left),
        scope.op("==", left, right),
        scope.call("where", condition(scope), left, right),
    )
    return scope.pick(choices), False


def _atom(scope: Scope) -> Expr:
    return scope.pick(_ATOMS)(scope)


def _causal(scope: Scope) -> Expr:
    shift = scope.pick((0, 0, 1, -1, 7, scope.shape.kv_len - scope.shape.q_len))
    return scope.op("<=", build.K, scope.op("+", build.Q, shift) if shift != 0 else build.Q)


def _window(scope: Scope) -> Expr:
    distance = scope.op("-", build.Q, build.K)
    width: Expr = scope.number(scope.pick(SIZES))
    if scope.between(0, 3) == 0:
        width = scope.load(scope.integers(1, 70, scope.shape.q_heads), build.H)
    near = scope.op("<", distance, width)
    if scope.between(0, 2) == 0:
        return scope.op("<=", scope.call("abs", distance), width)
    return scope.op("and", near, scope.op("<=", build.K, build.Q))


def _prefix(scope: Scope) -> Expr:
    if scope.between(0, 1) == 0:
        lengths = scope.load(scope.integers(0, scope.shape.kv_len + 1, scope.shape.batch), build.B)
        return scope.op("<", build.K, lengths)
    return scope.op("<", build.K, scope.number(scope.pick(SIZES)))


def _documents(scope: Scope) -> Expr:
    """Runs of equal ids, sorted or not, alike for the batch or not."""
    size = max(scope.shape.q_end, scope.shape.kv_len)
    rows = scope.shape.batch if scope.between(0, 2) == 0 else 1
    run = scope.pick((20, 5, 16, 50))
    ids = (torch.arange(size).repeat(rows, 1) + 3 * torch.arange(rows)[:, None]) // run
    if scope.between(0, 4) == 0:
        ids = ids % 3
    ids = ids.to(scope.pick((torch.int64, torch.int32)))
    if rows == 1:
        left = scope.load(ids[0], build.Q)
        return scope.op("==", left, scope.again(scope.params[-1].name, build.K))
    left = scope.load(ids, build.B, build.Q)
    return scope.op("==", left, scope.again(scope.params[-1].name, build.B, build.K))


def _positions(scope: Scope) -> Expr:
    """Ordered numbers of keys, rising or falling, with repeats, against numbers of queries in any order."""
    shape, step = scope.shape, scope.pick((3, 1, 10))
    rows = shape.batch if scope.between(0, 2) == 0 else 1
    falls = scope.between(0, 2) == 0
    numbers = torch.arange(shape.kv_len).repeat(rows, 1) // step + scope.between(-5, 5)
    keys = (numbers if not falls else numbers.flip(-1)).to(scope.pick((torch.int64, torch.int32)))
    queries = scope.integers(-5, shape.kv_len // step + 5, shape.q_end)
    if scope.between(0, 1) == 0:
        queries = queries.sort().values
    left = scope.load(queries, build.Q)
    right = scope.load(keys[0], build.K) if rows == 1 else scope.load(keys, build.B, build.K)
    return scope.op(scope.pick(("==", "<=", "<", ">=", ">")), left, right)


def _times(scope: Scope) -> Expr:
    """Times of tokens, which go on by multiples of 1/64: how far apart two are, or before which one is."""
    size = max(scope.shape.q_end, scope.shape.kv_len)
    steps = scope.integers(0, scope.pick((16, 2, 64)), size)
    times = (steps.cumsum(0, dtype=torch.int64) / 64).to(scope.pick((torch.float32, torch.float64)))
    query = scope.load(times, build.Q)
    key = scope.again(scope.params[-1].name, build.K)
    if scope.between(0, 2) == 0:
        return scope.op(scope.pick(("<=", ">")), key, query)
    return scope.op("<", scope.op("-", query, key), scope.number(scope.pick((4.0, 0.5, 16.0))))


def _learnt_gate(scope: Scope) -> Expr:
    """Floats against a threshold."""
    coords, sizes = scope.random_coords()
    gate = scope.load(scope.reals(*sizes), *coords)
    if scope.between(0, 2) > 0:
        return scope.op(scope.pick((">", "<=")), gate, scope.number(scope.pick((0.5, -1.0, 1.5))))
    return scope.op(">=", gate, scope.load(scope.reals(scope.shape.q_heads), build.H))


def _chunks(scope: Scope) -> Expr:
    size = scope.number(scope.pick((16, 7, 33, 64)))
    symbol = scope.pick(("==", ">="))
    return scope.op(symbol, scope.op("//", build.Q, size), scope.op("//", build.K, size))


def _stride(scope: Scope) -> Expr:
    step = scope.pick((2, 3, 16))
    position = scope.pick((scope.op("-", build.Q, build.K), build.K))
    return scope.op("==", scope.op("%", position, step), scope.between(0, step - 1))


def _gate(scope: Scope) -> Expr:
    """What does not look at the key: a stretch of queries, some heads."""
    kind = scope.between(0, 2)
    if kind == 0:
        return scope.op(scope.pick((">=", "<")), build.Q, scope.number(scope.pick(SIZES)))
    if kind == 1:
        return scope.op("==", scope.op("%", build.H, 2), 0)
    return scope.op("<", scope.op("-", scope.op("*", build.H, 20), build.K), build.Q)


def _captured(scope: Scope) -> Expr:
    coords, sizes = scope.random_coords()
    if scope.between(0, 2) > 0:
        return scope.load(scope.bools(*sizes), *coords)
    return scope.op(">", scope.load(scope.integers(-40, 90, *sizes), *coords), scope.op("-", build.K, build.Q))


def _bits(scope: Scope) -> Expr:
    differing = scope.op("^", build.Q, build.K)
    choices: tuple[Callable[[], Expr], ...] = (
        lambda: scope.op("<=", scope.call("bit_length", differing), scope.between(2, 6)),
        lambda: scope.op("==", scope.op(">>", build.Q, 5), scope.op(">>", build.K, 5)),
        lambda: scope.op("==", scope.op("&", differing, 32), 0),
        lambda: scope.op("<", scope.op("-", build.Q, build.K), scope.op("<<", 8, build.H)),
    )
    return scope.pick(choices)()


def _neighbourhood(scope: Scope) -> Expr:
    """Near in both directions of a canvas stored row by row."""
    width, reach = scope.pick((8, 5, 16)), scope.between(1, 3)
    terms = []
    for symbol in ("//", "%"):
        distance = scope.op("-", scope.op(symbol, build.Q, width), scope.op(symbol, build.K, width))
        terms.append(scope.op("<=", scope.call("abs", distance), reach))
    return _join(scope, "and", terms)


def _wedge(scope: Scope) -> Expr:
    bound = scope.call(scope.pick(("min", "max")), build.Q, scope.number(scope.pick(SIZES)))
    return scope.op(scope.pick(("<=", ">")), build.K, bound)


def _generic(scope: Scope) -> Expr:
    symbol = scope.pick(("<=", "<", ">", ">=", "!=", "=="))
    left, right = integer(scope, 2)[0], integer(scope, 1)[0]
    if symbol in ("==", "!="):
        left = scope.op("%", left, 3)
        right = scope.op("%", right, 3)
    return scope.op(symbol, left, right)


_ATOMS = (
    _causal,
    _window,
    _documents,
    _prefix,
    _chunks,
    _window,
    _documents,
    _wedge,
    _gate,
    _bits,
    _neighbourhood,
    _stride,
    _captured,
    _generic,
    _generic,
    _positions,
    _times,
    _learnt_gate,
)


def _affine(scope: Scope, anchor: tuple[int, int]) -> Expr:
    """One affine comparison, its terms spread over both sides, that mostly holds at the anchor pair."""
    key = scope.pick((1, 1, -1, 1, -1, 2, -3, 0))
    query = -key if scope.between(0, 1) == 0 else scope.pick((1, -1, 0, 2, -2))
    terms = [(key, build.K, anchor[1]), (query, build.Q, anchor[0])]
    for coordinate, value in ((build.H, 0), (build.B, 0), (build.Q_LEN, scope.shape.q_len)):
        terms.append((scope.pick((0, 0, 0, 1, -5)), coordinate, value))
    # An equality bounds the key only where it can be solved for it.
    symbol = scope.pick(("<=", ">=", "<", ">", "<=", ">=", "==") if abs(key) == 1 else ("<=", "<", ">=", ">"))
    slack = {"<": 1, "<=": 1, ">": -1, ">=": -1, "==": 0}[symbol] * scope.between(-2, 90)
    constant = sum(factor * value for factor, _, value in terms) + slack

    sides: tuple[list[Expr], list[Expr]] = ([], [])
    for factor, coordinate, _ in terms:
        side = scope.between(0, 1)
        factor = -factor if side else factor
        if factor != 0:
            sides[side].append(coordinate if factor == 1 else scope.op("*", factor, coordinate))
    sides[1].append(scope.number(constant))
    left, right = (_join(scope, "+", list(side)) if side else scope.builder.literal(0) for side in sides)
    return scope.op(symbol, left, right)

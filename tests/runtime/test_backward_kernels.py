"""Gradients of emitted kernels, by name of what is difficult, against float64 autograd of the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import gradients
import pytest
import torch
from gradients import backward, check_gradient_walks, check_gradients, check_same_gradients, learnt, leaves
from launches import INTERPRETING, TILE, Program, Value, check, inputs, on_kernels, program, with_tiles
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attndsl.reference import live_pairs
from attndsl.runtime import autograd, launch
from attndsl.runtime.tiles import TileShape

pytestmark = on_kernels

NAN, INF = math.nan, math.inf


def normal(*sizes: int, seed: int = 1) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Subject:
    """A program, the values of its parameters, and the sizes of a call; `offset` is that of its queries."""

    text: str
    values: dict[str, Value] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    offset: int | Tensor = 0

    @property
    def program(self) -> Program:
        return program(self.text, **self.values)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return inputs(**{"q_len": 35, "head_dim": 16, **self.sizes})


SORTED = (torch.arange(40) // 9).expand(2, 40).contiguous()
SHUFFLED = SORTED[:, torch.randperm(40, generator=torch.Generator().manual_seed(3))]
TABLE = torch.tensor([0, 2, 2, 1, 3, 5, 1, 4]).repeat(5)
WINDOW = "kv_idx <= q_idx and q_idx - kv_idx < width"
DOCUMENTS = "attention a(doc: int tensor[B, N]) { mask kv_idx <= q_idx and doc[b, q_idx] == doc[b, kv_idx] }"
CAUSAL = "mask kv_idx <= q_idx"
GROUPED = {"batch": 2, "heads": 4, "kv_heads": 2, "q_len": 20}

SUBJECTS = {
    # Masks.
    "everything": Subject("", {}, GROUPED),
    "causal": Subject(CAUSAL, {}, GROUPED | {"kv_len": 35}),
    "window with an offset": Subject(f"attention a(width: int) {{ mask {WINDOW} }}", {"width": 11}, {"kv_len": 50}, 13),
    "window with an offset for each batch": Subject(
        f"attention a(width: int) {{ mask {WINDOW} }}", {"width": 11}, {"batch": 2, "q_len": 20}, torch.tensor([0, 9])
    ),
    "window of rows without a key": Subject(
        f"attention a(width: int) {{ mask {WINDOW} and q_idx != 5 }}", {"width": 7}, {"q_len": 40, "kv_len": 20}
    ),
    "documents": Subject(DOCUMENTS, {"doc": SORTED}, {"batch": 2, "q_len": 40}),
    "documents unsorted": Subject(DOCUMENTS, {"doc": SHUFFLED}, {"batch": 2, "q_len": 40}),
    "prefix": Subject("attention a(n: int tensor[B]) { mask kv_idx < n[b] }", {"n": torch.tensor([20, 3])}, GROUPED),
    "first keys and a window": Subject(
        "attention a(first: int, width: int) { mask kv_idx <= q_idx and (kv_idx < first or q_idx - kv_idx < width) }",
        {"first": 4, "width": 9},
        {"heads": 2, "kv_heads": 1, "q_len": 50},
    ),
    "strided": Subject("mask (q_idx - kv_idx) % 3 == 1", {}, {"kv_len": 40}),
    "by head": Subject("mask h % 2 == 0 or kv_idx <= q_idx", {}, GROUPED),
    "nothing": Subject("mask false"),
    # Sizes.
    "one group for all": Subject(CAUSAL, {}, {"heads": 3, "kv_heads": 1, "q_len": 17, "kv_len": 33}),
    "head dim 17": Subject(CAUSAL, {}, {"head_dim": 17, "v_head_dim": 24, "q_len": 18}),
    "head dim 24": Subject(CAUSAL, {}, {"head_dim": 24, "v_head_dim": 80, "q_len": 18}),
    "head dim 80": Subject(CAUSAL, {}, {"head_dim": 80, "v_head_dim": 17, "q_len": 18}),
    "one query": Subject("", {}, {"q_len": 1, "kv_len": 33}),
    "one key": Subject("", {}, {"q_len": 33, "kv_len": 1}),
    # Scores.
    "soft cap": Subject("attention a(cap: float) { score cap * tanh(score / cap) }", {"cap": 1.5}, GROUPED),
    "learned slopes": Subject(
        "attention a(t: tensor[H]) { mask kv_idx <= q_idx score score - t[h] * float(q_idx - kv_idx) }",
        {"t": normal(4)},
        GROUPED,
    ),
    "relative bias": Subject(
        "attention a(t: tensor[H, D], m: int) { score score + t[h, clamp(kv_idx - q_idx, -m, m) + m] }",
        {"t": normal(4, 11), "m": 5},
        GROUPED,
    ),
    "distances under a mask": Subject(
        "attention a(t: tensor[D]) { mask kv_idx <= q_idx score score + t[q_idx - kv_idx] }", {"t": normal(40)}
    ),
    "every pair": Subject(
        "attention a(t: tensor[B, H, N, M]) { mask kv_idx <= q_idx + 5 score score + t[b, h, q_idx, kv_idx] }",
        {"t": normal(2, 4, 20, 20)},
        GROUPED,
    ),
    "queries and keys of one tensor": Subject(
        "attention a(t: tensor[N]) { score score + t[q_idx] * 0.5 + t[kv_idx] }", {"t": normal(40)}, GROUPED
    ),
    "pairs looked up": Subject(
        "attention a(t: tensor[S, S], seg: int tensor[N]) { score score + t[seg[q_idx], seg[kv_idx]] }",
        {"t": normal(6, 6), "seg": TABLE},
        GROUPED,
    ),
    "rows looked up": Subject(
        "attention a(t: tensor[S, H], seg: int tensor[N]) { score score * t[seg[q_idx], h] }",
        {"t": normal(6, 4), "seg": TABLE},
        GROUPED,
    ),
    "numbers": Subject("attention a(t: tensor[], u: tensor[]) { score score * t + u }", {"t": normal(), "u": normal()}),
    "a score of its own": Subject(
        "attention a(t: tensor[H], u: tensor[N]) { mask kv_idx <= q_idx score t[h] * u[kv_idx] }",
        {"t": normal(2), "u": normal(40)},
        {"heads": 2},
    ),
    "a score of one number": Subject("attention a(t: tensor[]) { score t }", {"t": normal()}),
    "read where a branch is taken": Subject(
        "attention a(t: tensor[N]) { score where(kv_idx < 5, score + t[kv_idx], score * t[0]) }", {"t": normal(5)}
    ),
    "a branch of heads and rows": Subject(
        "attention a(t: tensor[H]) { score exp2(min(-t[h], 1.5)) if float(q_idx) * 0.25 != 0.5 else score }",
        {"t": normal(2)},
        {"heads": 2, "q_len": 18},
    ),
    "every kind at once": Subject(
        "attention a(t: tensor[H], u: tensor[N], w: tensor[D], x: tensor[S, S], seg: int tensor[N]) {"
        "  mask kv_idx <= q_idx"
        "  score (score + t[h]) * u[kv_idx] + w[q_idx - kv_idx] + x[seg[q_idx], seg[kv_idx]] }",
        {"t": normal(4), "u": normal(40), "w": normal(40), "x": normal(6, 6), "seg": TABLE},
        GROUPED,
    ),
    "hidden by a score": Subject(
        "attention a(t: tensor[N]) { score where(t[kv_idx] > 1.0 or q_idx == 3, -inf, score + t[kv_idx]) }",
        {"t": normal(40)},
    ),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_gradients(name: str) -> None:
    subject = SUBJECTS[name]
    check_gradients(subject.program, *subject.tensors, q_offset=subject.offset)


WALKED = (
    "causal",
    pytest.param("window with an offset", marks=pytest.mark.as_users),
    "window of rows without a key",
    pytest.param("documents", marks=pytest.mark.as_users),
    "documents unsorted",
    "first keys and a window",
    "strided",
    pytest.param("every kind at once", marks=pytest.mark.as_users),
)


@pytest.mark.parametrize("name", WALKED)
def test_every_walk_gives_the_same(name: str) -> None:
    """To the last bit."""
    subject = SUBJECTS[name]
    check_gradient_walks(subject.program, subject.program.call(*subject.tensors, q_offset=subject.offset))


def test_walks_of_other_bits_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = gradients.backward

    def rounded_otherwise(*args, strategy=None, **how):
        found = plain(*args, strategy=strategy, **how)
        if strategy is not None:
            found["k"] = torch.nextafter(found["k"], torch.tensor(INF))
        return found

    subject = program(CAUSAL)
    monkeypatch.setattr(gradients, "backward", rounded_otherwise)
    with pytest.raises(AssertionError, match="gradient of k has other bits"):
        check_gradient_walks(subject, subject.call(*inputs(q_len=17)))


@with_tiles
@pytest.mark.parametrize("name", ["window with an offset", "every kind at once"])
@pytest.mark.parametrize("tile", [TileShape(16, 32, 4, 1), TileShape(32, 16, 4, 1)], ids=str)
def test_tiles_that_are_not_square(name: str, tile: TileShape) -> None:
    subject = SUBJECTS[name]
    check_gradients(subject.program, *subject.tensors, tile=tile, q_offset=subject.offset)


@pytest.mark.parametrize("q_len, kv_len", [(15, 17), (16, 16), (17, 31), (33, 15)])
def test_lengths_on_both_sides_of_a_tile(q_len: int, kv_len: int) -> None:
    text = f"attention a(width: int, t: tensor[H]) {{ mask {WINDOW} score score - t[h] * float(q_idx - kv_idx) }}"
    check_gradients(program(text, width=9, t=normal(1)), *inputs(q_len=q_len, kv_len=kv_len))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision(dtype: torch.dtype) -> None:
    subject = SUBJECTS["every kind at once"]
    q, k, v = inputs(heads=4, kv_heads=2, q_len=20, head_dim=32, dtype=dtype)
    check_gradients(subject.program, q, k, v)


def test_gradients_of_tensors_of_any_layout() -> None:
    """Transposed in memory, with room between elements, the same number many times over."""
    subject = SUBJECTS["causal"]
    q, k, v = subject.tensors
    plain = check_gradients(subject.program, q, k, v)
    room = torch.full([2 * size + 1 for size in k.shape], NAN)
    view = room[tuple(slice(1, None, 2) for _ in k.shape)].copy_(k)
    again = backward(subject.program, subject.program.call(q.mT.contiguous().mT, view, v), fast=False)
    assert all(torch.equal(again[name], plain[name]) for name in "qkv")
    spread = v[:, :, :1, :1].expand(v.shape)
    check_gradients(subject.program, q, k, spread)


# What the gradients of the outputs may be.


def test_expanded_gradients_of_the_output() -> None:
    """`out.sum()` gives one number many times over, in no memory of its own."""
    subject = SUBJECTS["every kind at once"]
    call = subject.program.call(*subject.tensors)
    ones = torch.ones(*call.q.shape[:3], call.v_head_dim)
    whole, expanded = (
        backward(subject.program, call, fast=False, gradients=(dout, None))
        for dout in (ones, torch.ones(()).expand(ones.shape))
    )
    assert all(torch.equal(gradient, whole[name]) for name, gradient in expanded.items())


def test_nothing_is_computed_for_who_needs_nothing() -> None:
    subject = SUBJECTS["every kind at once"]
    call = learnt(subject.program.call(*subject.tensors))
    for tensor in leaves(call).values():
        tensor.requires_grad_(False)
    call.values["t"].requires_grad_()
    kernels, ran = subject.program.kernels(call, fast=False, tile=TILE), []
    plain = kernels.compilation.kernel
    kernels.compilation.kernel = lambda name, spec: ran.append(name) or plain(name, spec)
    rows = autograd.attend(kernels, call)
    rows.out.sum().backward()
    assert set(ran) == {"forward", "backward_dq"}, "the slopes of heads are sums over rows"
    assert call.values["t"].grad is not None
    assert call.q.grad is None


# What must not show.


def holding_nothing(subject: Subject) -> tuple[Tensor, Tensor]:
    """The rows without a key and the keys without a row of a program, `[B, H, N]`, by its reference."""
    call = subject.program.call(*subject.tensors, q_offset=subject.offset)
    grid = {"batch": call.batch, "heads": call.heads, "q_len": call.q_len, "kv_len": call.kv_len}
    live = live_pairs(subject.program.variant, subject.values, **grid, q_offset=subject.offset)
    live = live.expand(call.batch, call.heads, call.q_len, call.kv_len)
    return ~live.any(-1), ~live.unflatten(1, (call.kv_heads, -1)).any(2).any(-2)


SPARSE = {
    "a stretch": Subject(
        "attention a(t: tensor[N]) {"
        "  mask 19 <= kv_idx and kv_idx < 45 and kv_idx % 5 != 2 and q_idx % 4 != 1 score score + t[kv_idx] }",
        {"t": normal(70)},
        {"heads": 2, "q_len": 40, "kv_len": 70},
    ),
    "a window": Subject(
        f"attention a(width: int, t: tensor[D]) {{ mask {WINDOW} and q_idx > 20 score score + t[q_idx - kv_idx] }}",
        {"width": 9, "t": normal(70)},
        {"heads": 2, "kv_heads": 1, "q_len": 60, "kv_len": 40},
    ),
    "documents": Subject(
        "attention a(doc: int tensor[N], t: tensor[S, S]) {"
        "  mask doc[q_idx] == doc[kv_idx] + 1 score score + t[doc[q_idx], doc[kv_idx]] }",
        {"doc": torch.arange(50) // 9, "t": normal(6, 6)},
        {"q_len": 50},
    ),
    "relu": Subject(
        "attention a(t: tensor[N]) {"
        "  mask kv_idx < q_idx - 20 score score + t[kv_idx] normalizer max(score, 0.0) / row_sum(max(score, 0.0)) }",
        {"t": normal(70)},
        {"q_len": 50},
    ),
    "sparsemax": Subject(
        "attention a() { mask kv_idx < q_idx - 20 let m = row_max(score)"
        "  def gap(t) = max(score - t, 0.0)"
        "  normalizer gap(row_solve(t: gap(t), total = 1.0, lower = m - 1.0, upper = m)) }",
        {},
        {"q_len": 40},
    ),
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "general"])
@pytest.mark.parametrize("name", SPARSE)
def test_poison_in_what_nobody_sees(name: str, fast: bool) -> None:
    """In keys and values no row sees, in queries and gradients of rows that see none: not a bit changes."""
    subject = SPARSE[name]
    rows, keys = holding_nothing(subject)
    assert rows.any()
    assert keys.any()
    clean = subject.program.call(*subject.tensors)
    for bad in (NAN, INF):
        q, k, v = subject.tensors
        q[rows], k[keys], v[keys] = bad, bad, bad
        found = check_same_gradients(subject.program, clean, subject.program.call(q, k, v), fast=fast)
        assert not found["q"][rows].any()
        assert not found["k"][keys].any()
        assert not found["v"][keys].any()


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "general"])
def test_poison_beyond_the_lengths(fast: bool) -> None:
    text = "attention a(t: tensor[H], u: tensor[N]) { mask kv_idx <= q_idx score score * t[h] + u[kv_idx] }"
    q, k, v = inputs(heads=2, q_len=21, kv_len=37, head_dim=17, v_head_dim=20)

    def inside(tensor: Tensor) -> Tensor:
        """A view of a larger room of NaN."""
        room = torch.full([size + 40 for size in tensor.shape], NAN)
        return room[tuple(slice(20, 20 + size) for size in tensor.shape)].copy_(tensor)

    values = {"t": normal(2), "u": normal(37)}
    plain, roomy = program(text, **values), program(text, **{name: inside(value) for name, value in values.items()})
    found = backward(roomy, roomy.call(inside(q), inside(k), inside(v)), fast=fast)
    expected = backward(plain, plain.call(q, k, v), fast=fast)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


GUARDED = {
    "a logarithm": "mask kv_idx <= q_idx and kv_idx > 3 score score + log(t[kv_idx])",
    "a pair": "mask kv_idx <= q_idx and kv_idx > 3 score score + 1.0 / t[kv_idx] + log(t[q_idx + 40])",
    "by distance": "mask kv_idx <= q_idx and q_idx - kv_idx > 3 score score * log(t[q_idx - kv_idx])",
    "in a branch": "mask kv_idx <= q_idx score where(kv_idx > 3, score / t[kv_idx], score)",
}


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, INF], ids=str)
def test_poison_captures_of_pairs_that_are_not_live(name: str, bad: float) -> None:
    """`1/t` and `log(t)` of elements no live pair reads: neither output nor gradient knows what they are."""
    text = f"attention a(t: tensor[N]) {{ {GUARDED[name]} }}"
    tensors, good = inputs(heads=2, q_len=35), torch.rand(90, generator=torch.Generator().manual_seed(0)) + 0.5
    dirty = good.clone()
    dirty[:4] = bad
    dirty[80:] = bad
    subjects = program(text, t=good), program(text, t=dirty)
    clean, found = (check_gradients(subject, *tensors) for subject in subjects)
    assert all(torch.equal(gradient, clean[key]) for key, gradient in found.items())
    assert not found["`t`"][:4].any()
    outs = [check(subject, *tensors).out for subject in subjects]
    assert torch.equal(*outs)


@pytest.mark.parametrize("score", ["1.0 / score", "log(score)", "sqrt(score)"])
def test_scores_outside_their_domain_where_a_branch_is_not_taken(score: str) -> None:
    text = f"attention a(t: tensor[H]) {{ score where(score > 0.05, {score}, score * t[h]) }}"
    check_gradients(program(text, t=normal(2)), *inputs(heads=2, q_len=20))


# Rows that see nothing.


@pytest.mark.parametrize("name", ["nothing", "window of rows without a key", "hidden by a score"])
def test_dead_rows_have_zeros_exactly(name: str) -> None:
    subject = SUBJECTS[name]
    call = subject.program.call(*subject.tensors)
    rows = subject.program.run(call, fast=False)
    dead = rows.max_score == -INF
    assert dead.any()
    assert not rows.out[dead].any()
    found = backward(subject.program, call, fast=False)
    assert not found["q"][dead].any()
    only_dead = torch.where(dead[..., None], 1.0, torch.zeros_like(rows.out)), dead.float()
    nothing = backward(subject.program, call, fast=False, gradients=only_dead)
    assert all(not gradient.any() for gradient in nothing.values())


def test_sinks_of_dead_rows_have_the_gradient_of_lse() -> None:
    text = "attention a(sink: tensor[B, H, N]) { mask kv_idx < q_idx - 3 normalizer softmax(sink = sink[b, h, q_idx]) }"
    subject = program(text, sink=normal(2, 2, 20))
    tensors = inputs(batch=2, heads=2, q_len=20)
    check_gradients(subject, *tensors)
    dlse, dout = normal(2, 2, 20, seed=4), torch.zeros(2, 2, 20, 16)
    dout[:, :, :4] = NAN
    found = backward(subject, subject.call(*tensors), fast=False, gradients=(dout, dlse))
    assert torch.equal(found["`sink`"][:, :, :4], dlse[:, :, :4])
    assert not found["q"][:, :, :4].any()


# Whole and parts.


def test_a_window_and_its_complement_merge_to_the_whole() -> None:
    """By their lse, gradients of tensors and captures included."""
    score = "score score - t[h] * float(q_idx - kv_idx)"
    parts = "kv_idx <= q_idx", "kv_idx <= q_idx and q_idx - kv_idx < 9", "q_idx - kv_idx >= 9"
    tensors, t = inputs(heads=2, kv_heads=1, q_len=40), normal(2) * 0.1
    texts = [f"attention a(t: tensor[H]) {{ mask {part} {score} }}" for part in parts]

    def attended(text: str) -> tuple[launch.Rows, dict[str, Tensor]]:
        subject = program(text, t=t)
        call = learnt(subject.call(*tensors))
        return autograd.attend(subject.kernels(call, fast=False, tile=TILE), call), leaves(call)

    (whole, wanted), (first, of_first), (second, of_second) = map(attended, texts)
    lse = torch.logaddexp(first.lse, second.lse)
    shares = [torch.exp(part.lse - lse)[..., None] for part in (first, second)]
    merged = shares[0] * first.out + shares[1] * second.out
    torch.testing.assert_close(merged, whole.out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, whole.lse, atol=1e-5, rtol=1e-5)
    flows = normal(*whole.out.shape), normal(*lse.shape)
    expected = torch.autograd.grad((whole.out, whole.lse), list(wanted.values()), flows)
    found = torch.autograd.grad((merged, lse), [*of_first.values(), *of_second.values()], flows)
    for one, other, both in zip(found[:4], found[4:], expected, strict=True):
        torch.testing.assert_close(one + other, both, atol=2e-5, rtol=2e-5)


# The same every time, and no more memory than it takes.


@pytest.mark.as_users
def test_the_same_bits_every_time() -> None:
    """Of outputs and gradients, twenty times over; an interpreter has no threads to be late."""
    subject = SUBJECTS["every kind at once"]
    call = subject.program.call(*inputs(heads=2, kv_heads=1, q_len=17))
    rows, first = subject.program.run(call, fast=False), backward(subject.program, call, fast=False)
    for _ in range(2 if INTERPRETING else 19):
        again = subject.program.run(call, fast=False)
        assert torch.equal(again.out, rows.out)
        assert torch.equal(again.lse, rows.lse)
        found = backward(subject.program, call, fast=False)
        assert all(torch.equal(gradient, first[name]) for name, gradient in found.items())


class Allocations(TorchDispatchMode):
    """The elements of the largest storage any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given, made = (
            [part for part in tree_leaves(tree) if isinstance(part, Tensor)] for tree in ((args, kwargs), found)
        )
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        new = [tensor for tensor in made if tensor.untyped_storage().data_ptr() not in known]
        sizes = [tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in new]
        self.largest = max([self.largest, *sizes])
        return found


@with_tiles
@pytest.mark.parametrize("name", ["causal", "learned slopes", "relative bias", "distances under a mask"])
def test_a_backward_is_linear_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of it has an element for every pair: what is made beside gradients is a few tiles wide."""
    length, heads = 1024, 2
    values = {"t": normal(length)} if name == "distances under a mask" else {"t": normal(heads, 11), "m": 5}
    values["t"] = normal(heads) if name == "learned slopes" else values["t"]
    built = program(SUBJECTS[name].text, **values)
    call = learnt(built.call(*inputs(heads=heads, q_len=length)))
    monkeypatch.setattr(launch, "run", lambda call, launch: None)
    rows = autograd.attend(built.kernels(call, fast=False), call)
    with Allocations() as seen:
        rows.out.sum().backward()
    assert seen.largest >= call.q.numel(), "the gradient of q is among them"
    assert seen.largest <= 2 * heads * length * TILE.block_m * 2

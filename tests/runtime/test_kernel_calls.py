"""Kernels over every kind of call: dtypes, layouts in memory, lengths, head dims, offsets, tile shapes, poison."""

from __future__ import annotations

import math

import pytest
import torch
from compare import assert_rows_close
from launches import INTERPRETING, TILE, TOLERANCE, Program, check, inputs, on_kernels, program
from torch import Tensor

import attndsl
import attndsl.calling
import attndsl.reference
from attndsl.runtime.tiles import TileShape

pytestmark = on_kernels

CAUSAL = "mask kv_idx <= q_idx"
WINDOW = "attention window(width: int) { mask kv_idx <= q_idx and q_idx - kv_idx < width }"
NAN = math.nan


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("text", [CAUSAL, "score 8.0 * tanh(score / 8.0)"], ids=["causal", "soft_cap"])
def test_half_precision(dtype: torch.dtype, text: str) -> None:
    q, k, v = inputs(heads=4, kv_heads=2, q_len=49, head_dim=32, dtype=dtype)
    subject = program(text)
    rows = check(subject, q, k, v)
    assert rows.out.dtype is dtype
    # Scores and sums are float32 whatever the inputs: only P, rounded for the product, and the output lose bits.
    exact = subject.expected(subject.call(q, k, v))
    assert_rows_close(rows.lse[..., None], exact.lse[..., None], 2e-6)
    assert_rows_close(rows.max_score[..., None], exact.max_score[..., None], 2e-6)


def _transposed(tensor: Tensor) -> Tensor:
    """(B, H, N, D) stored as (B, N, H, D)."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _shifted(tensor: Tensor) -> Tensor:
    """A view that starts inside a larger storage and skips elements along every axis."""
    room = torch.full([2 * size + 1 for size in tensor.shape], NAN)
    view = room[tuple(slice(1, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def _head_dim_outermost(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)


@pytest.mark.parametrize("layout", [_transposed, _shifted, _head_dim_outermost])
def test_layouts(layout) -> None:
    q, k, v = inputs(batch=2, heads=4, kv_heads=2, q_len=21, kv_len=35, head_dim=24, v_head_dim=20)
    views = [layout(tensor) for tensor in (q, k, v)]
    assert not any(view.is_contiguous() for view in views)
    rows = check(program(CAUSAL), *views)
    plain = check(program(CAUSAL), q, k, v)
    assert torch.equal(rows.out, plain.out)


def test_expanded_inputs() -> None:
    q, k, v = inputs(heads=3, kv_heads=1, q_len=20, head_dim=16)
    q, k = q[:, :1].expand(2, 3, 20, 16), k.expand(2, 3, 20, 16)
    v = v[:, :, :1].expand(2, 3, 20, 16)
    check(program(CAUSAL), q, k, v)


def test_captures_of_any_layout() -> None:
    text = "attention test(bias: tensor[B, H, N, M]) { score score + bias[b, h, q_idx, kv_idx] mask kv_idx <= q_idx }"
    q, k, v = inputs(batch=2, heads=2, q_len=20)
    bias = torch.randn(2, 2, 20, 20)
    for view in (bias, _shifted(bias), bias[:1, :1].expand(2, 2, 20, 20), bias.mT):
        check(program(text, bias=view), q, k, v)


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 0},
        {"q_len": 0, "kv_len": 5},
        {"q_len": 5, "kv_len": 0},
        {"q_len": 0, "kv_len": 0},
        {"heads": 0},
        {"q_len": 1, "kv_len": 1},
        {"v_head_dim": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("sink", [False, True], ids=["plain", "sink"])
def test_empty_sizes(sizes: dict[str, int], sink: bool) -> None:
    q, k, v = inputs(**sizes)
    if sizes.get("v_head_dim") == 0:
        subject = attndsl.parse("attention test() { mask kv_idx <= q_idx }").test()
        assert subject(q, k, v).shape == (*q.shape[:3], 0)
        return
    check(program("normalizer softmax(sink = 0.5)" if sink else CAUSAL), q, k, v)


@pytest.mark.parametrize("head_dim", [1, 2, 15, 16, 17, 24, 33, 64, 80, 96, 100, 127, 128, 192, 255, 256])
def test_head_dims(head_dim: int) -> None:
    check(program(CAUSAL), *inputs(q_len=18, head_dim=head_dim), fast=True)


@pytest.mark.parametrize("head_dim, v_head_dim", [(1, 256), (192, 128), (64, 72), (80, 96), (17, 1), (256, 16)])
def test_head_dims_that_differ(head_dim: int, v_head_dim: int) -> None:
    check(program(CAUSAL), *inputs(q_len=18, head_dim=head_dim, v_head_dim=v_head_dim), fast=True)


def test_ends_that_are_shifts() -> None:
    """An end a half or a quarter of the way is a shift where it is printed, and one is added to it."""
    check(program("mask kv_idx >= q_idx // 4 and kv_idx <= q_idx // 2"), *inputs(heads=2, q_len=200))


@pytest.mark.parametrize("q_len", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("kv_len", [1, 15, 16, 17, 48])
def test_lengths_on_both_sides_of_a_tile(q_len: int, kv_len: int) -> None:
    """The last query sees a key where its window, which starts 8 before it, reaches back to one."""
    check(program(WINDOW, width=9), *inputs(q_len=q_len, kv_len=kv_len), fast=q_len - 9 < kv_len)


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_grouped_queries_see_their_own_key_head(heads: int, kv_heads: int) -> None:
    q, k, v = inputs(batch=2, heads=heads, kv_heads=kv_heads, q_len=17)
    rows = check(program("mask h % 2 == 0 or kv_idx <= q_idx"), q, k, v)
    assert len({float(value) for value in rows.lse[:, :, 0].flatten()}) == 2 * heads


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0])
def test_any_scale(scale: float) -> None:
    for text in (CAUSAL, "score score + 1.0 mask kv_idx <= q_idx", "mask kv_idx % 3 == 0"):
        check(program(text), *inputs(q_len=35), scale=scale)


@pytest.mark.parametrize("offset", [0, 1, 16, 23, 40, 1000])
def test_offsets(offset: int) -> None:
    check(program(WINDOW, width=20), *inputs(q_len=20, kv_len=50), q_offset=offset, fast=offset < 50)


@pytest.mark.parametrize("offset", [-1, -16, -100])
def test_negative_offsets_take_the_general_kernel(offset: int) -> None:
    check(program(WINDOW, width=20), *inputs(q_len=40, kv_len=50), q_offset=offset, fast=False)
    check(program("mask q_idx // 3 <= kv_idx % 5"), *inputs(q_len=40, kv_len=50), q_offset=offset, fast=False)


@pytest.mark.parametrize("offsets, fast", [([0, 17, 3], True), ([-5, 0, 30], False)], ids=["positive", "negative"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_offset_for_each_batch(offsets: list[int], fast: bool, dtype: torch.dtype) -> None:
    q_offset = torch.tensor(offsets, dtype=dtype)
    for text in (CAUSAL, "mask (q_idx - kv_idx) % 4 == 1"):
        check(program(text), *inputs(batch=3, heads=2, q_len=20, kv_len=50), q_offset=q_offset, fast=fast)


def test_offsets_with_a_stride() -> None:
    q_offset = torch.tensor([0, 99, 17, 99, 3, 99])[::2]
    check(program(CAUSAL), *inputs(batch=3, q_len=20, kv_len=50), q_offset=q_offset)


def test_offsets_beyond_32_bits() -> None:
    offset = 2**40
    check(program(f"mask kv_idx <= q_idx - {offset}"), *inputs(q_len=20), q_offset=offset, fast=False)
    each = torch.tensor([2**40, 2**40 + 3])
    check(program(f"mask kv_idx <= q_idx - {offset}"), *inputs(batch=2, q_len=20), q_offset=each, fast=False)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "general"])
def test_poison_in_what_nobody_sees(fast: bool) -> None:
    """Keys and values no query sees, whole tiles of them and single ones, and queries that see nothing."""
    mask = "start <= kv_idx and kv_idx < end and kv_idx % 5 != 2 and q_idx % 4 != 1"
    text = f"attention t(start: int, end: int) {{ mask {mask} }}"
    q, k, v = inputs(heads=2, q_len=40, kv_len=70)
    subject = program(text, start=19, end=45)
    dead = torch.tensor([not (19 <= key < 45) or key % 5 == 2 for key in range(70)])
    clean = subject.run(subject.call(q, k, v), fast=fast)
    for bad in (NAN, math.inf, -math.inf):
        poisoned = [tensor.clone() for tensor in (q, k, v)]
        poisoned[0][:, :, 1::4] = bad
        poisoned[1][:, :, dead] = bad
        poisoned[2][:, :, dead] = bad
        rows = subject.run(subject.call(*poisoned), fast=fast)
        for name in ("out", "lse", "max_score"):
            assert torch.equal(getattr(rows, name), getattr(clean, name)), name
    assert bool((clean.out[:, :, 1::4] == 0).all())
    assert bool((clean.lse[:, :, 1::4] == -math.inf).all())


@pytest.mark.parametrize("text", ["", CAUSAL, "score score * 2.0", "mask kv_idx % 2 == 0"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "general"])
def test_poison_beyond_the_lengths(text: str, fast: bool) -> None:
    q, k, v = inputs(q_len=21, kv_len=37, head_dim=17, v_head_dim=20)
    rooms = [torch.full((1, 1, size[2] + 40, size[3] + 40), NAN) for size in (q.shape, k.shape, v.shape)]
    views = [room[:, :, 20 : 20 + t.shape[2], 20 : 20 + t.shape[3]] for room, t in zip(rooms, (q, k, v), strict=True)]
    for view, tensor in zip(views, (q, k, v), strict=True):
        view.copy_(tensor)
    subject = program(text)
    rows, plain = (subject.run(subject.call(*tensors), fast=fast) for tensors in (views, (q, k, v)))
    assert torch.equal(rows.out, plain.out)
    assert torch.equal(rows.lse, plain.lse)


def test_poison_at_a_key_some_rows_see_stays_in_their_tile() -> None:
    q, k, v = inputs(q_len=48)
    k[:, :, 20] = NAN
    rows = program(CAUSAL).run(program(CAUSAL).call(q, k, v), fast=True)
    assert bool(rows.out[:, :, 20:].isnan().all())
    assert not bool(rows.out[:, :, :16].isnan().any())


def test_infinite_and_missing_numbers_come_out_as_they_go_in() -> None:
    q, k, v = inputs(q_len=20)
    for bad in (NAN, math.inf):
        for place in range(3):
            tensors = [tensor.clone() for tensor in (q, k, v)]
            tensors[place][:, :, 7, 3] = bad
            call = program("").call(*tensors)
            found, expected = program("").run(call, fast=True).out, program("").expected(call).out
            assert torch.equal(found.isnan(), expected.isnan())
            numbers = (torch.where(out.isnan(), 0.0, out) for out in (found, expected))
            assert_rows_close(*numbers, TOLERANCE[torch.float32])


def test_the_same_bits_every_time() -> None:
    subject = program(WINDOW, width=30)
    call = subject.call(*inputs(heads=2, q_len=60, head_dim=24))
    first = subject.run(call, fast=True)
    for _ in range(2):
        again = subject.run(call, fast=True)
        assert torch.equal(first.out, again.out)
        assert torch.equal(first.lse, again.lse)


@pytest.mark.skipif(not INTERPRETING, reason="the tile of native kernels is their own")
@pytest.mark.parametrize("tile", [TileShape(16, 32, 4, 1), TileShape(64, 16, 4, 1), TileShape(32, 128, 4, 1)], ids=str)
def test_any_tile_shape(tile: TileShape) -> None:
    call = inputs(q_len=70, kv_len=90)
    for text in (CAUSAL, "mask q_idx % 7 <= kv_idx % 5", "mask kv_idx >= q_idx // 2 and kv_idx <= q_idx + 8"):
        rows = check(program(text), *call, tile=tile)
        assert_rows_close(rows.out, check(program(text), *call, tile=TILE).out, TOLERANCE[torch.float32])


def test_no_kernel_calls_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path of a user's call, with every way to the reference closed."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a kernel's path called the reference")

    q, k, v = inputs(heads=2, q_len=40)
    attention = attndsl.parse(WINDOW).window(width=11)
    expected = Program(attention.variant, {"width": 11}).expected(
        Program(attention.variant, {"width": 11}).call(q, k, v)
    )
    monkeypatch.setattr(attndsl.calling, "attend", refuse)
    for name in ("attend", "evaluate", "evaluate_all", "live_pairs"):
        monkeypatch.setattr(attndsl.reference, name, refuse)
    with pytest.raises(AssertionError, match="called the reference"):
        attention(q, k, v, backend="reference")
    out, aux = attention(q, k, v, return_aux=True)
    assert_rows_close(out, expected.out, TOLERANCE[torch.float32])
    assert_rows_close(aux.lse[..., None], expected.lse[..., None], TOLERANCE[torch.float32])

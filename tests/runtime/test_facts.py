"""What the host knows of a call: right while tensors stand, learnt again when they do not."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention
from attndsl.diagnostics import CallError
from attndsl.frontend.parse import parse
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.runtime import facts as module
from attndsl.runtime.arguments import check_call
from attndsl.runtime.facts import REMEMBERED, FactBook

GATHER = "attention a(order: int tensor[N], table: tensor[M]) {\n    score  score + table[order[kv_idx]]\n}"
GUARDED = """
attention a(order: int tensor[N], gate: tensor[N], table: tensor[M]) {
    mask   gate[kv_idx] > 0.0
    score  score + table[order[kv_idx]]
}
"""
RELATIVE = """
attention a(table: tensor[M]) {
    mask   kv_idx <= q_idx
    score  score + table[q_idx - kv_idx]
}
"""
CAUSAL = "attention a(window: int) {\n    mask  kv_idx <= q_idx and q_idx - kv_idx < window\n}"
PACKED = "attention a(n: int) {\n    mask  q_idx // n == kv_idx // n\n}"


def one(source: str) -> Variant:
    (variant,) = parse(source)
    return variant


class Calls:
    """Calls of one variant, through one book; q and k are views of one element, whatever their sizes."""

    def __init__(self, source: str) -> None:
        self.variant = one(source)
        self.program = run_passes(self.variant)
        self.book = FactBook()

    def fast(self, q_len: int = 5, kv_len: int = 5, q_offset: int | Tensor = 0, batch: int = 1, **values: Any) -> bool:
        q, k = (torch.zeros(1).expand(batch, 2, length, 8) for length in (q_len, kv_len))
        call = check_call(self.variant, values, q, k, k, q_offset=q_offset)
        return self.book.of(self.variant, self.program, call).fast


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the tensors whose values were read, in order."""
    found: list[int] = []
    original = module.summarize

    def counted(tensor: Tensor) -> Any:
        found.append(tensor.numel())
        return original(tensor)

    monkeypatch.setattr(module, "summarize", counted)
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many obligations were settled pair by pair, for each time it was done."""
    found: list[int] = []
    original = module.settle

    def counted(source: Variant, undecided: Any, *args: Any, **how: Any) -> Any:
        found.append(len(undecided))
        return original(source, undecided, *args, **how)

    monkeypatch.setattr(module, "settle", counted)
    return found


# Bounds on the host.


def test_a_table_long_enough_for_live_pairs_is_proven(settled: list[int]) -> None:
    """Distances below 0 are at dead pairs alone: nothing is evaluated, and dead reads keep the kernel general."""
    assert Calls(RELATIVE).fast(table=torch.zeros(5)) is False
    assert settled == []


def test_a_table_too_short_for_a_live_pair_is_refused() -> None:
    with pytest.raises(CallError, match="it is 4 at b = 0, h = 0, q_idx = 4, kv_idx = 0"):
        Calls(RELATIVE).fast(table=torch.zeros(4))


def test_an_index_out_of_bounds_at_dead_pairs_alone_is_fine(settled: list[int]) -> None:
    order, gate = torch.tensor([0, 1, 99, -5, 2]), torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0])
    assert Calls(GUARDED).fast(order=order, gate=gate, table=torch.zeros(3)) is False
    assert settled == [1]


def test_an_index_out_of_bounds_at_a_live_pair_is_refused_with_the_pair() -> None:
    order, gate = torch.tensor([0, 1, 99, -5, 2]), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    with pytest.raises(CallError) as caught:
        Calls(GUARDED).fast(order=order, gate=gate, table=torch.zeros(3))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "index-negative"
    assert diagnostic.notes == ("it is -5 at b = 0, h = 0, q_idx = 0, kv_idx = 3",)


def test_indices_in_bounds_by_their_values_are_proven(settled: list[int]) -> None:
    assert Calls(GATHER).fast(order=torch.tensor([2, 1, 0, 0, 2]), table=torch.zeros(3)) is True
    assert settled == []


def test_the_shortest_table_that_does_and_the_longest_that_does_not() -> None:
    calls = Calls(GATHER)
    order = torch.tensor([0, 0, 7, 0, 0])
    assert calls.fast(order=order, table=torch.zeros(8)) is True
    assert calls.fast(order=order, table=torch.zeros(800)) is True
    with pytest.raises(CallError, match="it is 7 at"):
        calls.fast(order=order, table=torch.zeros(7))


# Arithmetic.


def test_division_by_a_scalar_of_zero_is_refused() -> None:
    calls = Calls(PACKED)
    assert calls.fast(n=4) is True
    assert calls.fast(n=-4) is False  # floor division for any sign
    with pytest.raises(CallError, match="division-by-zero"):
        calls.fast(n=0)
    assert calls.fast(n=4) is True


def test_integers_beyond_32_bits_take_the_general_kernel_and_beyond_64_none() -> None:
    calls = Calls("attention a(n: int) {\n    mask  q_idx * n < kv_idx\n}")
    assert calls.fast(n=2**28) is True
    assert calls.fast(n=2**31) is False
    assert calls.fast(n=2**60) is False
    with pytest.raises(CallError, match="integer-overflow"):
        calls.fast(n=2**62)


def test_scalars_of_any_size() -> None:
    calls = Calls(CAUSAL)
    assert calls.fast(window=2**30) is True
    assert calls.fast(window=2**40) is False
    assert calls.fast(window=2**63 - 1) is False
    assert calls.fast(window=-(2**63)) is False
    for window in (2**63, -(2**63) - 1):
        with pytest.raises(CallError, match="integer-overflow"):
            calls.fast(window=window)


def test_offsets_of_any_size() -> None:
    calls = Calls(CAUSAL)
    assert calls.fast(window=4, q_offset=100, kv_len=105) is True
    assert calls.fast(window=4, q_offset=100, kv_len=102) is True
    assert calls.fast(window=4, q_offset=100, kv_len=101) is False  # query 104 sees none of them
    assert calls.fast(window=4, q_offset=-3) is False
    assert calls.fast(window=4, q_offset=2**31) is False
    assert calls.fast(window=4, q_offset=2**62) is False
    assert calls.fast(window=4, batch=2, kv_len=12, q_offset=torch.tensor([0, 7])) is True
    assert calls.fast(window=4, batch=2, q_offset=torch.tensor([0, 2**33])) is False


def test_lengths_that_round_up_beyond_32_bits() -> None:
    assert Calls(CAUSAL).fast(q_len=4, kv_len=2**31 - 1, window=4) is False


# What is remembered.


def test_values_are_read_once_for_all_calls(reads: list[int]) -> None:
    calls = Calls(GATHER)
    order, table = torch.zeros(64, dtype=torch.int64), torch.zeros(3)
    for q_len in (5, 6, 7, 5, 6, 7):
        calls.fast(q_len=q_len, order=order, table=table)
    assert reads == [64]


def test_values_written_in_place_are_read_again(reads: list[int]) -> None:
    calls = Calls(GATHER)
    order, table = torch.zeros(5, dtype=torch.int64), torch.zeros(3)
    assert calls.fast(order=order, table=table) is True
    order[3] = 3
    with pytest.raises(CallError, match="it is 3 at"):
        calls.fast(order=order, table=table)
    order[3] = 2
    assert calls.fast(order=order, table=table) is True
    assert reads == [5, 5, 5]


def test_writes_through_views_and_swaps_of_data_are_seen() -> None:
    calls = Calls(GATHER)
    storage, table = torch.zeros(10, dtype=torch.int64), torch.zeros(3)
    order = storage[:5]
    assert calls.fast(order=order, table=table) is True
    storage[4] = 9
    with pytest.raises(CallError, match="it is 9 at"):
        calls.fast(order=order, table=table)
    storage.zero_()
    assert calls.fast(order=order, table=table) is True
    order.data = torch.full((5,), 8)
    with pytest.raises(CallError, match="it is 8 at"):
        calls.fast(order=order, table=table)


def test_inference_tensors_are_read_at_each_call(reads: list[int]) -> None:
    with torch.inference_mode():
        order = torch.zeros(5, dtype=torch.int64)
    calls, table = Calls(GATHER), torch.zeros(3)
    assert calls.fast(order=order, table=table) is True
    with torch.inference_mode():
        order[0] = 7
    with pytest.raises(CallError, match="it is 7 at"):
        calls.fast(order=order, table=table)
    assert reads == [5, 5]


def test_a_tensor_at_the_place_of_a_freed_one_is_another() -> None:
    calls, table = Calls(GATHER), torch.zeros(3)
    places = set()
    for step in range(20):
        order = torch.full((5,), step % 2 * 5)
        places.add(id(order))
        if step % 2:
            with pytest.raises(CallError, match="it is 5 at"):
                calls.fast(order=order, table=table)
        else:
            assert calls.fast(order=order, table=table) is True
        del order
        gc.collect()
    assert len(places) < 20  # identities do come back


def test_updates_of_float_tensors_cost_nothing(reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A learnt bias changes with every step; what is known of the call does not depend on it."""
    learnt: list[Any] = []
    original = module.check_call
    monkeypatch.setattr(module, "check_call", lambda *args: learnt.append(args) or original(*args))
    calls, table = Calls(RELATIVE), torch.zeros(5)
    for _ in range(3):
        assert calls.fast(table=table) is False
        table += 1.0
        table = table.clone()
    assert len(learnt) == 1
    with pytest.raises(CallError):
        calls.fast(table=torch.zeros(4))


def test_updates_of_a_float_tensor_that_guards_an_index_are_seen(settled: list[int]) -> None:
    calls = Calls(GUARDED)
    values = {"order": torch.tensor([0, 1, 99, 1, 2]), "gate": torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])}
    for _ in range(2):
        assert calls.fast(**values, table=torch.zeros(3)) is False
    values["gate"][2] = 1.0
    with pytest.raises(CallError, match="it is 99 at"):
        calls.fast(**values, table=torch.zeros(3))


def test_offsets_on_the_host_are_read_again_when_written() -> None:
    calls, offset = Calls(CAUSAL), torch.tensor([0])
    assert calls.fast(window=4, q_offset=offset) is True
    offset.fill_(2**40)
    assert calls.fast(window=4, q_offset=offset) is False


def test_only_so_many_calls_are_remembered() -> None:
    calls = Calls(CAUSAL)
    for window in range(1, REMEMBERED + 50):
        calls.fast(window=window)
    assert len(calls.book._facts) == REMEMBERED


def test_forgetting(reads: list[int]) -> None:
    calls = Calls(GATHER)
    order, table = torch.zeros(5, dtype=torch.int64), torch.zeros(3)
    for _ in range(2):
        calls.fast(order=order, table=table)
        calls.book.forget()
    assert reads == [5, 5]


class OnGpu(torch.Tensor):
    is_cuda = True


def test_values_cannot_be_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, table = Calls(GATHER), torch.zeros(3)
    order = torch.zeros(5, dtype=torch.int64).as_subclass(OnGpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(CallError) as caught:
        calls.fast(order=order, table=table)
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["graph-capture"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    calls.fast(order=order, table=table)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert calls.fast(order=order, table=table) is True  # known from the call before


def test_offsets_cannot_be_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, offset = Calls(CAUSAL), torch.tensor([3]).as_subclass(OnGpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(CallError, match="CUDA graph"):
        calls.fast(window=4, q_offset=offset)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    calls.fast(window=4, q_offset=offset)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    calls.fast(window=4, q_offset=offset)
    offset.add_(1)
    with pytest.raises(CallError, match="CUDA graph"):
        calls.fast(window=4, q_offset=offset)


def test_tables_cannot_be_made_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, q = Calls(CAUSAL), torch.zeros(1, 2, 5, 8)
    call = check_call(calls.variant, {"window": 4}, q.as_subclass(OnGpu), q, q)
    facts = calls.book.of(calls.variant, calls.program, call)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(CallError, match="CUDA graph"):
        calls.book.table(calls.program, call, facts, (16, 16))


# Masks that depend on the batch or the head.


@pytest.mark.parametrize(
    "text, size",
    [
        ("attention a(t: bool tensor[B, N]) {\n    mask  t[b, kv_idx]\n}", (1, 5)),
        ("attention a(t: bool tensor[H]) {\n    mask  t[h]\n}", (3,)),
        ("attention a(t: bool tensor[B, H]) {\n    mask  t[b, h]\n}", (2, 3)),
    ],
)
def test_tensors_that_do_not_cover_batch_and_heads_are_refused(text: str, size: tuple[int, ...]) -> None:
    q = torch.zeros(2, 4, 5, 8)
    (declared,) = ad.parse(text)
    attention: Attention = declared(t=torch.ones(size, dtype=torch.bool))
    with pytest.raises(CallError, match="index-out-of-bounds") as caught:
        attention(q, q, q)
    assert "an element for every" in str(caught.value)
    with pytest.raises(CallError, match="index-out-of-bounds"):
        attention.plan(5, batch=2, heads=4)
    larger = torch.ones([max(3, extent) + 3 for extent in size], dtype=torch.bool)
    assert attention.bind(t=larger)(q, q, q).shape == q.shape


def test_a_bound_computed_in_floats_from_a_length_does_not_stop_a_call() -> None:
    attention = ad.parse("attention a() { mask int(float(q_len) * 0.5) >= kv_idx }").a()
    tensors = [torch.randn(1, 1, 9, 4) for _ in range(3)]
    assert torch.equal(attention(*tensors, backend="reference"), attention.reference(*tensors))

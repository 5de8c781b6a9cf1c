"""Native kernels as a process uses them: threads, forks, memory of any layout, any numbers, values as they are."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from compare import assert_rows_close
from launches import INTERPRETING
from torch import Tensor

import attndsl as ad
from attndsl.attention import Attention

pytestmark = [
    pytest.mark.as_users,
    pytest.mark.skipif(INTERPRETING, reason="native kernels run in the other tier"),
]

CAUSAL = "attention causal {\n    mask  kv_idx <= q_idx\n}"
ALIBI = """
attention alibi(slopes: tensor[H], window: int = 64) {
    mask   kv_idx <= q_idx and q_idx - kv_idx < window
    score  score - slopes[h] * float(q_idx - kv_idx)
}
"""
DOCUMENTS = "attention documents(doc: int tensor[N]) {\n    mask  doc[q_idx] == doc[kv_idx]\n}"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def text(source: str, **values: object) -> Attention:
    """The one attention of a text, with values."""
    (declared,) = ad.parse(source)
    bound: Attention = declared.bind(**values)
    return bound


def qkv(*sizes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of batch 1, 2 heads, 150 queries and keys, 32 columns, or of other sizes in that order."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*sizes, *(1, 2, 150, 32)[len(sizes) :])
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


def check(attention: Attention, *tensors: Tensor) -> Tensor:
    """A native call held against the reference in float64."""
    found: Tensor = attention(*tensors, backend="cpu")
    assert_rows_close(found, attention.reference(*(tensor.double() for tensor in tensors)), TOLERANCE[tensors[0].dtype])
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads is the test's to change."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Threads and processes.


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_at_any_number_of_threads(dtype: torch.dtype) -> None:
    attention, tensors = text(ALIBI, slopes=torch.ones(6)), qkv(2, 6, 333, dtype=dtype)
    results = []
    for count in (1, 2, 3, 7, 64):
        torch.set_num_threads(count)
        results.extend(attention(*tensors, backend="cpu", return_aux=True) for _ in range(3))
    first, aux = results[0]
    for out, other in results[1:]:
        assert torch.equal(out, first)
        assert torch.equal(other.lse, aux.lse)
        assert torch.equal(other.max_score, aux.max_score)


@pytest.mark.usefixtures("threads")
def test_gradients_have_the_same_bits_at_any_number_of_threads() -> None:
    """What belongs to keys is summed by several tasks, which any thread may take."""
    attention = text(ALIBI, slopes=torch.linspace(0.1, 0.5, 4).requires_grad_())
    q, k, v = (tensor.requires_grad_() for tensor in qkv(2, 4, 400))
    wanted = (q, k, v, attention._values()["slopes"])
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        out = attention(q, k[:, :2], v[:, :2], enable_gqa=True)
        found.append(torch.autograd.grad(out.square().sum(), wanted))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.usefixtures("threads")
def test_two_hundred_threads_at_once() -> None:
    torch.set_num_threads(2)
    attention = text(ALIBI, slopes=torch.ones(2))
    calls = [qkv(1, 2, 100 + 10 * place, seed=place) for place in range(4)]
    expected = [attention(*tensors, backend="cpu") for tensors in calls]
    wrong: list[object] = []
    barrier = threading.Barrier(200)

    def run(place: int) -> None:
        barrier.wait()
        for turn in range(5):
            which = (place + turn) % len(calls)
            try:
                if not torch.equal(attention(*calls[which], backend="cpu"), expected[which]):
                    wrong.append(which)
            except BaseException as error:
                wrong.append(error)

    running = [threading.Thread(target=run, args=(place,)) for place in range(200)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in running)
    assert wrong == []


def test_threads_that_build_the_same_kernel_at_once() -> None:
    source = "attention fresh {\n    mask  kv_idx <= q_idx + 3\n    score  score * 0.731\n}"
    attention, tensors = text(source), qkv()
    found: list[Tensor] = []
    running = [threading.Thread(target=lambda: found.append(attention(*tensors, backend="cpu"))) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(out, found[0]) for out in found)


def own_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.usefixtures("threads")
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux lists them")
def test_calls_from_many_threads_share_their_helpers() -> None:
    torch.set_num_threads(3)
    attention, tensors = text(CAUSAL), qkv(2, 6, 200)
    attention(*tensors, backend="cpu")
    before = own_threads()
    running = [threading.Thread(target=lambda: attention(*tensors, backend="cpu")) for _ in range(20)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    # A thread that has been joined is in the list for a moment more.
    deadline = time.monotonic() + 30
    while own_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert own_threads() <= before


@pytest.mark.usefixtures("threads")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_after_use_computes() -> None:
    torch.set_num_threads(2)
    attention, tensors = text(CAUSAL), qkv(2, 6, 200)
    expected = attention(*tensors, backend="cpu")
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        # Torch's own threads do not survive a fork, so nothing here is torch's to compute; kernels hire new helpers.
        try:
            bits = {attention(*tensors, backend="cpu").numpy().tobytes() for _ in range(3)}
            sender.send((bits == {expected.numpy().tobytes()}, own_threads()))
        finally:
            os._exit(0)
    try:
        assert receiver.poll(60), "the child does not answer"
        assert receiver.recv() == (True, 2)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert torch.equal(attention(*tensors, backend="cpu"), expected)


@pytest.mark.usefixtures("threads")
def test_flushing_subnormal_numbers_is_the_same_on_every_thread() -> None:
    """`torch.set_flush_denormal` is about the calling thread; what helps it computes alike."""
    q, k, v = qkv(2, 6, 200)
    attention, tensors = text(CAUSAL), (q, k, v * 1e-40)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    try:
        flushed = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            flushed.append(attention(*tensors, backend="cpu"))
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(out, flushed[0]) for out in flushed)
    kept = check(attention, *(tensor.double() for tensor in tensors))
    assert bool((kept != 0).any())


# Memory.


def test_memory_that_is_not_aligned() -> None:
    """A view of bytes that starts at none of the addresses vectors like."""
    q, k, v = qkv()
    for dtype in DTYPES:
        views = []
        for tensor in (q, k, v):
            size = tensor.numel() * dtype.itemsize
            raw = torch.empty(size + 64, dtype=torch.uint8)
            start = 64 - raw.data_ptr() % 64 + dtype.itemsize
            room = torch.empty(size + 128, dtype=torch.uint8)
            start = 64 - room.data_ptr() % 64 + dtype.itemsize
            assert (room.data_ptr() + start) % dtype.itemsize == 0
            views.append(room[start - room.storage_offset() :][:size].view(dtype).view(tensor.shape).copy_(tensor))
            assert views[-1].data_ptr() % 16 != 0 or dtype.itemsize >= 16
        check(text(CAUSAL), *views)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_of_any_kind(dtype: torch.dtype) -> None:
    """Heads beside columns, every second row, one key for all, columns outermost."""
    base = torch.randn(2, 150, 2, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    transposed = base[..., ::2].transpose(1, 2)
    sparse = torch.randn(2, 2, 300, 32, generator=torch.Generator().manual_seed(1)).to(dtype)[:, :, ::2]
    outermost = torch.randn(32, 2, 2, 150, generator=torch.Generator().manual_seed(2)).to(dtype).permute(1, 2, 3, 0)
    expanded = outermost[:, :1, :1].expand(2, 2, 150, 32)
    for tensors in ((transposed, sparse, outermost), (expanded, transposed, sparse), (sparse, expanded, expanded)):
        check(text(ALIBI, slopes=torch.ones(2)), *tensors)


def test_one_memory_for_everything() -> None:
    q, _, _ = qkv()
    bias = q[0, 0, :, 0]
    source = "attention shared(bias: tensor[N]) {\n    mask  kv_idx <= q_idx\n    score  score + bias[kv_idx]\n}"
    before = q.clone()
    check(text(source, bias=bias), q, q, q)
    assert torch.equal(q, before)


def test_numbers_that_are_negated_on_the_fly() -> None:
    """Imaginary parts of conjugates: torch keeps a bit that says their memory has the other sign."""
    pair = torch.complex(*qkv()[:2]).conj()
    q, v = pair.imag, torch.complex(*qkv(seed=1)[:2]).conj().imag
    assert q.is_neg()
    slopes = torch.complex(torch.ones(2), torch.ones(2)).conj().imag
    check(text(ALIBI, slopes=slopes), q, q, v)


# Numbers.


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_near_the_ends_of_their_range(dtype: torch.dtype) -> None:
    """Subnormal queries, huge values, infinite values where only some rows see them."""
    q, k, v = qkv(dtype=dtype)
    tiny = torch.finfo(dtype).smallest_normal
    check(text(CAUSAL), q * (tiny / 8), k, v)
    check(text(CAUSAL), q, k, v * (tiny / 8))
    v[:, :, 100] = math.inf
    out = text(CAUSAL)(q, k, v, backend="cpu")
    assert bool(out[:, :, :64].isfinite().all())
    assert bool(out[:, :, 128:].isinf().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_a_tile_does_not_see_does_not_show(dtype: torch.dtype, poison: float) -> None:
    """Keys past every query's reach, in a tile of their own and in one that is seen in part."""
    q, k, v = qkv(1, 2, 200, dtype=dtype)
    q = q[:, :, :90]
    clean = text(CAUSAL)(q, k, v, backend="cpu", return_aux=True)
    k[:, :, 90:], v[:, :, 90:] = poison, poison
    found = text(CAUSAL)(q, k, v, backend="cpu", return_aux=True)
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[1].lse, clean[1].lse)
    k[:, :, 64:], v[:, :, 64:] = poison, poison
    partly = text(CAUSAL)(q, k, v, backend="cpu")
    assert torch.equal(partly[:, :, :64], clean[0][:, :, :64])


def test_values_are_those_of_the_call() -> None:
    slopes = torch.zeros(2)
    attention, (q, k, v) = text(ALIBI, slopes=slopes), qkv()
    first = check(attention, q, k, v)
    slopes.fill_(100.0)
    assert_rows_close(check(attention, q, k, v), v, 1e-5)
    slopes.zero_()
    assert torch.equal(attention(q, k, v, backend="cpu"), first)


def test_a_table_follows_its_documents() -> None:
    doc = torch.arange(150) // 40
    attention, tensors = text(DOCUMENTS, doc=doc), qkv()
    check(attention, *tensors)
    doc.copy_(torch.arange(150) % 3)
    check(attention, *tensors)


@pytest.mark.parametrize("q_len", [2, 40], ids=["chunks of keys", "whole rows"])
def test_what_a_sum_is_rescaled_by_may_know_numbers_and_rows(q_len: int) -> None:
    """Chunks of the keys of few queries are merged where neither parameters nor rows are at hand by themselves."""
    source = """
    attention a(n: float, t: tensor[N]) {
        let e = exp((score - row_max(score)) / (abs(n) + 0.5) * t[q_idx])
        normalizer e / row_sum(e)
    }"""
    q, k, v = qkv(1, 2, 4200, 64)
    check(text(source, n=0.7, t=torch.linspace(0.5, 1.5, 64)), q[:, :, :q_len], k, v)


BEYOND = """
import ctypes, mmap, torch, attndsl as ad
def last_of_its_page(*shape):
    pages = mmap.mmap(-1, 16 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 15 * mmap.PAGESIZE), mmap.PAGESIZE, 0)
    count = torch.Size(shape).numel()
    found = torch.frombuffer(pages, dtype=torch.float32, count=count, offset=15 * mmap.PAGESIZE - 4 * count)
    return found.zero_().view(shape)
(attention,) = ad.parse("attention a(t: tensor[N, M], u: tensor[M]) { score score + t[q_idx, kv_idx] * u[kv_idx] }")
for dtype in (torch.bfloat16, torch.float32):
    q, k, v = torch.randn(3, 1, 1, 70, 32).to(dtype).unbind()
    bound = attention.bind(t=last_of_its_page(70, 70), u=last_of_its_page(70))
    out = bound(q.requires_grad_(), k, v, backend="cpu")
    torch.autograd.grad(out.sum(), q)
print("survived")
"""


def test_captures_are_not_read_beyond_their_ends() -> None:
    """The page after each tensor may not be touched; the last key tile has room for more keys than there are."""
    done = subprocess.run([sys.executable, "-c", BEYOND], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "survived", done.stderr


@pytest.mark.parametrize("normalizer", ["softmax()", "max(score, 0.0) / row_sum(max(score, 0.0))"])
def test_gradients_of_values_without_columns(normalizer: str) -> None:
    """Nothing flows but from `lse`, where there is one; one of these has a pass over the rows before its gradients."""
    attention = text(f"attention a(t: tensor[H]) {{ score score * t[h] normalizer {normalizer} }}", t=torch.ones(2))
    q, k, _ = (tensor.requires_grad_() for tensor in qkv())
    v = torch.zeros(1, 2, 150, 0, requires_grad=True)
    found = torch.autograd.grad(attention(q, k, v).sum(), (q, k, v))
    assert [one.shape for one in found] == [q.shape, k.shape, v.shape]
    assert not any(one.any() for one in found)


def test_gradients_of_numbers_that_are_negated_on_the_fly() -> None:
    attention, (q, k, v) = text(CAUSAL), qkv()
    learnt = [tensor.requires_grad_() for tensor in (q, k, v)]
    dout = torch.randn(q.shape)
    lazily = [torch._neg_view(tensor) for tensor in learnt]
    plainly = [-tensor for tensor in learnt]
    found, expected = (
        torch.autograd.grad(attention(*inputs), learnt, gradient)
        for inputs, gradient in ((lazily, torch._neg_view(dout)), (plainly, -dout))
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

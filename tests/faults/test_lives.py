"""Attentions through what processes go through: spawning, forking, interrupts, depth, and thousands of calls."""

from __future__ import annotations

import gc
import linecache
import multiprocessing
import pickle
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from soaking import soak

import attndsl as ad
from attndsl.attention import Attention
from attndsl.diagnostics import DiagnosticError
from attndsl.runtime.native import load

pytestmark = pytest.mark.as_users

PACKAGE = str(Path(ad.__file__ or "").parent)
TEXT = """attention packed(ids: int tensor[B, N], width: int = 20) {
    mask ids[b, q_idx] == ids[b, kv_idx] and q_idx - kv_idx < width
}"""
INTERRUPTS = 12


def packed() -> Attention:
    attention: Attention = ad.parse(TEXT).packed(ids=torch.arange(40).expand(1, 40) // 16)
    return attention


def tensors() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 2, 40, 16, generator=generator) for _ in range(3))


def outcome(pickled: bytes) -> bytes:
    """What another process makes of an attention."""
    return bytes(pickle.loads(pickled)(*tensors(), backend="cpu").numpy().tobytes())


def test_a_spawned_process_computes_the_same() -> None:
    attention = packed()
    expected = attention(*tensors(), backend="cpu").numpy().tobytes()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(outcome, (pickle.dumps(attention),)) == expected


def test_a_fork_before_use_computes_the_same() -> None:
    """Nothing was compiled, planned or loaded when the process forked, and torch had started no thread."""
    code = (
        "import os, sys; sys.path[:0] = ['tests', 'tests/faults']; import torch; torch.set_num_threads(1)\n"
        "from test_lives import packed, tensors\n"
        "attention, given = packed(), tensors()\n"
        "child = os.fork()\n"
        "out = attention(*given, backend='cpu')\n"
        "if child == 0: os._exit(0 if out.isfinite().all() else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


WORK: dict[str, Callable[[Attention], object]] = {
    "reference": lambda attention: attention(*tensors(), backend="reference"),
    "native": lambda attention: attention(*tensors(), backend="cpu"),
    "plan": lambda attention: attention.plan(40, block=(16, 16)).counts,
    "source": lambda attention: attention.source(head_dim=16),
}


@pytest.mark.parametrize("work", WORK)
def test_an_interrupt_at_any_line_leaves_nothing_half_done(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was remembered on the way is whole or not there, and no lock is held: the next call is right."""
    run = WORK[work]
    # The library is built before, so that interrupts meet our lines and not the compiler at work.
    expected = run(packed())
    draw = random.Random(0)
    lines = interrupted(packed(), run, None)
    assert lines > 50
    for _ in range(INTERRUPTS):
        monkeypatch.setattr(load, "_slots", {})
        attention = packed()
        line = draw.randrange(lines)
        interrupted(attention, run, line)
        again = run(attention)
        same = torch.equal(again, expected) if isinstance(again, torch.Tensor) else again == expected
        assert same, f"after an interrupt at line {line} of {lines}"


def _opens_a_block(frame: FrameType) -> bool:
    """Whether this is the line of a `with`, which a block passes again as it ends: Python itself takes no interrupt
    between its last line and its exit, a trace function alone could."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def interrupted(attention: Attention, run: Callable[[Attention], object], line: int | None) -> int:
    """Do some work, interrupted at that line of the package; the lines it ran."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and not _opens_a_block(frame):
            count += 1
            if count - 1 == line:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        run(attention)
    except KeyboardInterrupt:
        assert line is not None
    finally:
        sys.settrace(previous)
    return count


def deep(depth: int) -> Attention:
    """An attention whose program is as deep as a loop in a mod is long."""

    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        for number in range(depth):
            score = score * 0.999 + number * 1e-6
        return score

    return ad.attention(score_mod=mod)


def test_deep_programs_in_python() -> None:
    """They are taken whole, or refused in words."""
    attention = deep(100)
    assert attention(*tensors(), backend="reference").isfinite().all()
    assert attention.source(head_dim=16)
    with pytest.raises(DiagnosticError):
        deep(5000).source(head_dim=16)


def test_a_mod_that_calls_itself_is_the_users_own_recursion() -> None:
    def endless(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return endless(score, b, h, q_idx, kv_idx)

    with pytest.raises(RecursionError):
        ad.attention(score_mod=endless)
    assert packed().plan(40).counts


def test_captured_tensors_that_are_gone() -> None:
    """Facts are of tensors that live: one in the place of another, at the same address, is another."""
    attention = ad.parse(TEXT).packed
    q, k, v = tensors()
    for turn in range(8):
        bound = attention(ids=torch.full((1, 40), turn) // (1 + torch.arange(40) % (turn + 2)))
        assert torch.equal(bound(q, k, v, backend="cpu"), bound(q, k, v, backend="cpu"))
        reference = bound(q, k, v, backend="reference")
        assert (bound(q, k, v, backend="cpu") - reference).abs().max() < 1e-5
        held = weakref.ref(bound)
        del bound
        gc.collect()
        assert held() is None


def test_threads_bind_plan_and_call_one_attention() -> None:
    attention, (q, k, v) = packed(), tensors()
    expected = {width: attention.bind(width=width)(q, k, v, backend="reference") for width in range(1, 9)}
    wrong: list[object] = []

    def run(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(10):
                width = draw.randrange(1, 9)
                bound = attention.bind(width=width)
                if draw.random() < 0.3:
                    bound.plan(40, block=(16, 16))
                if draw.random() < 0.1:
                    attention.invalidate()
                if (bound(q, k, v, backend="cpu") - expected[width]).abs().max() > 1e-5:
                    wrong.append(width)
        except BaseException as error:
            wrong.append(error)

    running = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in running)
    assert wrong == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="weighs a process as Linux does")
def test_a_thousand_calls_weigh_nothing() -> None:
    weights = list(soak(1000, 0, moments=4))
    grown = weights[-1].resident - weights[1].resident
    assert grown < 16 * 2**20, weights
    # What is kept of kinds of calls is still filling up to its bound.
    assert weights[-1].objects - weights[1].objects < 4000, weights

"""Many processes on one cache folder, as a program: `forks.py race`, `evict`, `kill`, `full` or `threads`.

torch and triton are imported once and every process is a fork, so that dozens of them cost seconds. The folder is the
one `ATTNDSL_CACHE_DIR` names. Prints nothing and ends with 0 where nothing went wrong.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch  # noqa: F401
import triton  # noqa: F401

from attndsl.diagnostics import UnsupportedError
from attndsl.runtime import cache, inventory, store
from attndsl.runtime.native import build, compiler, load

MODULE = "import triton\n\n\n@triton.jit\ndef forward(x):\n    return x + {}\n"
NATIVE = 'extern "C" __attribute__((visibility("default"))) int answer() {{ return {}; }}\n'
TRACED = {module.__file__ for module in (store, cache, build, compiler)}
KILLS = 20


def used(number: int) -> None:
    """What every process does: a module and a library, both of them right."""
    assert f"x + {number}" in store.load_module(MODULE.format(number), "forward", False).forward.src
    assert load.load_function(NATIVE.format(number), "answer")(b"", 0, 0) == number


def child(work: Callable[[], object]) -> int:
    """A fork that does some work, and ends with 1 where that raised or warned."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        warnings.simplefilter("error")
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def check(*processes: int) -> None:
    """Every process ended well, and so are the entries they left."""
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * len(processes)
    check_entries()


def check_entries() -> None:
    found = [f"{damage.file.path}: {damage.why}" for damage in inventory.damages(cache.cache_dir())]
    assert found == [], found


def race() -> None:
    """32 processes start on a cold cache at the same moment."""
    reading, writing = os.pipe()

    def started() -> None:
        os.close(writing)
        os.read(reading, 1)
        used(42)

    processes = [child(started) for _ in range(32)]
    os.close(writing)
    check(*processes)
    kinds = [file.kind.name for file in cache.cached_files(cache.cache_dir())]
    assert sorted(kinds) == ["LIBRARY", "MODULE", "RECORD"], kinds


def evict() -> None:
    """Processes that evict what others are about to load, and one that clears the folder all the time."""
    cache.LIMIT, cache.STRIDE = 3 * len(MODULE), 0
    compiler.compiler()
    deadline = time.monotonic() + 2

    def work(seed: int) -> None:
        draw = random.Random(seed)
        # Out of luck five times in a row, a write goes to the temporary folder and says so.
        warnings.simplefilter("ignore", store.CacheWarning)
        while time.monotonic() < deadline:
            store._modules.clear()
            load._slots.clear()
            store.load_module(MODULE.format(draw.randrange(10)), "forward", False)
            if draw.random() < 0.05:
                used(draw.randrange(3))

    def clear() -> None:
        while time.monotonic() < deadline:
            cache.remove(cache.cached_files(cache.cache_dir()))
            shutil.rmtree(cache.cache_dir(), ignore_errors=True)

    check(*(child(lambda seed=seed: work(seed)) for seed in range(6)), child(clear))


def kill() -> None:
    """A process dies at some line of a build or a write; what it leaves is whole, and the next one finds its way."""
    draw = random.Random(0)
    lines = counted_lines()
    # The compiler at work is one line of Python: some processes die at a moment instead, and their compilers with them.
    for number in range(KILLS):
        if number % 3 == 2:
            process = child(lambda number=number: used(number))
            time.sleep(draw.uniform(0, 0.2))
            os.killpg(process, signal.SIGKILL)
        else:
            line = draw.randrange(lines)
            process = child(lambda number=number, line=line: dying(number, line))
        _, status = os.waitpid(process, 0)
        assert status in (0, signal.SIGKILL), status
        check_entries()
        if number % 5 == 0:
            check(child(lambda number=number: used(number)))
    check(*(child(lambda number=number: used(number)) for number in range(0, KILLS, 4)))


def counted_lines() -> int:
    """The lines of the cache that a first use runs."""
    reading, writing = os.pipe()

    def work() -> None:
        count = [0]
        sys.settrace(tracer(lambda: count.__setitem__(0, count[0] + 1)))
        used(KILLS)
        sys.settrace(None)
        os.write(writing, str(count[0]).encode())

    check(child(work))
    lines = int(os.read(reading, 100))
    assert lines > 100, lines
    return lines


def dying(number: int, line: int) -> None:
    """Use the cache, and die at that line of it."""
    left = [line]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.settrace(tracer(count))
    used(number)


def tracer(at_line: Callable[[], object]) -> Any:
    """Calls back at every line of the cache."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            at_line()
        return trace

    return trace


def full() -> None:
    """No file may grow: the process says what is wrong, and one with room finds nothing half written."""
    compiler.compiler()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
        for use in (
            lambda: store.load_module(MODULE.format(1), "forward", False),
            lambda: load.load_function(NATIVE.format(1), "answer"),
        ):
            with pytest.raises(UnsupportedError, match=r"(?s)no-place-for-kernels.*File too large"):
                use()

    check(child(work))
    assert cache.cached_files(cache.cache_dir()) == []
    check(child(lambda: used(1)))


def threads() -> None:
    """Forks while threads hold every lock there is; the children go on."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            store._modules.clear()
            load._slots.clear()
            used(7)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 1
    processes = []
    while time.monotonic() < deadline:
        processes.append(child(lambda: used(7)))
        time.sleep(0.05)
    stop.set()
    for worker in workers:
        worker.join()
    check(*processes)


if __name__ == "__main__":
    {"race": race, "evict": evict, "kill": kill, "full": full, "threads": threads}[sys.argv[1]]()

"""Libraries in this process: their functions, with the threads they run on.

In: C++ text. Out: a `NativeFunction` that takes a packed record. A library is loaded once and never unloaded.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from attndsl.diagnostics import UnsupportedError, fail
from attndsl.runtime.native.build import library, pool_text

NativeFunction = Callable[[bytes, int, int], int]
"""(record, address of `parallel`, threads) to 0, or 1 where memory ran out."""


@dataclass(slots=True)
class _Slot:
    """A function once it is there; `lock` lets one thread build it while others wait for that one alone."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    function: Any = None


_lock = threading.Lock()
_slots: dict[tuple[str, str], _Slot] = {}


def load_function(text: str, name: str) -> NativeFunction:
    """The function of that name of a text; built where no process did."""
    function: NativeFunction = _loaded(text, name)
    return function


def parallel_address() -> int:
    """The address of the function that runs tasks on threads."""
    return ctypes.cast(_loaded(pool_text(), "parallel"), ctypes.c_void_p).value or 0


def _loaded(text: str, name: str) -> Any:
    with _lock:
        slot = _slots.setdefault((text, name), _Slot())
    with slot.lock:
        if slot.function is None:
            slot.function = _function(text, name)
    return slot.function


def _function(text: str, name: str) -> Any:
    function = getattr(_library(text, name), name)
    function.restype = ctypes.c_int
    function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    return function


def _library(text: str, name: str, attempts: int = 5) -> ctypes.CDLL:
    """The library of a text, mapped; built anew where somebody clears the cache at this very moment."""
    path = library(text, name)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        if attempts > 1 and not path.exists():
            return _library(text, name, attempts - 1)
        message = f"a compiled kernel cannot be loaded: {error}"
        help_ = 'set ATTNDSL_CACHE_DIR to a folder whose files may be executed, or use `backend="reference"`'
        raise fail(UnsupportedError, "kernel-not-loadable", message, None, help=help_) from error


def _after_fork() -> None:
    """Threads that hold locks, or were building, are not in this process; the functions there are, are."""
    global _lock, _slots
    _lock = threading.Lock()
    _slots = {key: _Slot(function=slot.function) for key, slot in _slots.items()}


os.register_at_fork(after_in_child=_after_fork)

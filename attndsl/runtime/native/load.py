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

from attndsl.codegen.drawn import Drawn
from attndsl.diagnostics import DiagnosticError, UnsupportedError, fail
from attndsl.runtime.native.build import library, library_aside, origin_of, pool_text

ATTEMPTS = 3
"""How often a library is looked for again that went between the look and the load."""

NativeFunction = Callable[[bytes, int, int], int]
"""(record, address of `parallel`, threads) to 0, or 1 where memory ran out."""


@dataclass(slots=True)
class _Slot:
    """A function once it is there; `lock` lets one thread build it while others wait for that one alone."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    function: Any = None


_lock = threading.Lock()
_slots: dict[tuple[str, str], _Slot] = {}


def load_function(source: Drawn | str, name: str) -> NativeFunction:
    """The function of that name of a text; built where no process did."""
    function: NativeFunction = _loaded(source, name)
    return function


def parallel_address() -> int:
    """The address of the function that runs tasks on threads."""
    return ctypes.cast(_loaded(pool_text(), "parallel"), ctypes.c_void_p).value or 0


def _loaded(source: Drawn | str, name: str) -> Any:
    with _lock:
        slot = _slots.setdefault((origin_of(source), name), _Slot())
    with slot.lock:
        if slot.function is None:
            slot.function = _function(source, name)
    return slot.function


def _function(source: Drawn | str, name: str) -> Any:
    function = getattr(_library(source, name), name)
    function.restype = ctypes.c_int
    function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
    return function


def _library(source: Drawn | str, name: str) -> ctypes.CDLL:
    """The library of a text, mapped, even while somebody clears the cache again and again."""
    for _ in range(ATTEMPTS):
        path = library(source, name)
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            if path.exists():
                raise _not_loadable(error) from error
    try:
        return ctypes.CDLL(str(library_aside(source)))
    except OSError as error:
        raise _not_loadable(error) from error


def _not_loadable(error: OSError) -> DiagnosticError:
    message = f"a compiled kernel cannot be loaded: {error}"
    help_ = 'set ATTNDSL_CACHE_DIR to a folder whose files may be executed, or use `backend="reference"`'
    return fail(UnsupportedError, "kernel-not-loadable", message, None, help=help_)


def _after_fork() -> None:
    """Threads that hold locks, or were building, are not in this process; the functions there are, are."""
    global _lock, _slots
    _lock = threading.Lock()
    _slots = {key: _Slot(function=slot.function) for key, slot in _slots.items()}


os.register_at_fork(after_in_child=_after_fork)

"""Emitted modules on disk: Triton reads kernels from source files.

Content-addressed, written atomically, compared with the text before use, private to the user, and kept within a bound
(`runtime.cache`). `ATTNDSL_CACHE_DIR` moves the folder; one that cannot be written, or that others can write to, is
replaced by a temporary one, with a warning that says so.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import linecache
import os
import shutil
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

from attndsl.diagnostics import UnsupportedError, fail
from attndsl.runtime.cache import DIGITS, cache_dir, is_private, make_room, mark_used, read_entry

ATTEMPTS = 5
"""How often a write is begun again whose folder somebody removed."""


class CacheWarning(UserWarning):
    """The cache folder could not be used as it is; nothing is lost but time."""


_lock = threading.Lock()
_modules: dict[tuple[str, bool], ModuleType] = {}


def module_path(text: str, stem: str) -> Path:
    """The file of a text: its name holds the hash of the text, and one of the versions that read it."""
    digest, versions = (hashlib.sha256(part.encode()).hexdigest() for part in (text, _versions()))
    return cache_dir() / digest[:2] / f"{stem}_{digest[:DIGITS]}_{versions[:8]}.py"


def load_module(text: str, stem: str, interpret: bool) -> ModuleType:
    """The module of a text, imported once a process; `interpret` makes its kernels run on CPU tensors."""
    path = module_path(text, stem)
    key = (str(path), interpret)
    with _lock:
        module = _modules.get(key)
        if module is None:
            module = _execute(stored(path, text.encode()), text, interpret)
            _modules[key] = module
    return module


@cache
def _versions() -> str:
    import torch
    import triton

    from attndsl.version import __version__

    return f"attndsl {__version__}, torch {torch.__version__}, triton {triton.__version__}"


def stored(path: Path, data: bytes) -> Path:
    """A file that holds exactly the data: the cached one, or one written anew where it is missing or differs."""
    try:
        if _is_stored(path, data):
            mark_used(path)
            return path
        _write(path, data)
        _check_private(path.parent)
    except OSError as error:
        return _temporary(path, data, error)
    make_room(len(data))
    return path


def stored_aside(path: Path, data: bytes) -> Path:
    """A file that holds the data in a folder of this process, which goes with it."""
    aside = _temporary_dir() / path.parent.name / path.name
    _write(aside, data)
    return aside


def _is_stored(path: Path, data: bytes) -> bool:
    try:
        found = read_entry(path)
    except FileNotFoundError:
        return False
    if found != data:
        warn(f"the cache entry {path.name} was not what was written; it is regenerated")
        return False
    _check_private(path.parent)
    return is_private(path)


def _check_private(folder: Path) -> None:
    """Whoever can write to a folder can replace what is in it between the look at it and its use."""
    if not is_private(folder):
        raise OSError(errno.EPERM, "another user owns it or may write to it", str(folder))


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, for this user alone."""
    for attempt in range(ATTEMPTS):
        try:
            return _write_once(path, data)
        except (FileNotFoundError, FileExistsError):
            # Somebody clears the cache at this very moment.
            if attempt == ATTEMPTS - 1:
                raise
    return None


def _write_once(path: Path, data: bytes) -> None:
    # Separately, because `mkdir` gives the mode to the innermost folder only.
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _temporary(path: Path, data: bytes, error: OSError) -> Path:
    """The file in the place that is used where the cache folder cannot be."""
    try:
        fallback = stored_aside(path, data)
    except OSError as worse:
        message = f"there is no place for a kernel: neither {cache_dir()} nor {tempfile.gettempdir()} can be written"
        reasons = (f"the cache folder: {error.strerror}", f"the temporary folder: {worse.strerror}")
        help_ = "free some space, or set ATTNDSL_CACHE_DIR to a folder you can write to"
        raise fail(UnsupportedError, "no-place-for-kernels", message, None, *reasons, help=help_) from worse
    warn(
        f"the cache folder {cache_dir()} cannot be used ({error.strerror}); emitted modules go to a temporary folder, "
        f"{_temporary_dir()}, until this process ends. Set ATTNDSL_CACHE_DIR to a folder you can write to keep them."
    )
    return fallback


@cache
def _temporary_dir() -> Path:
    folder = tempfile.mkdtemp(prefix="attndsl-")
    atexit.register(_remove_own, folder, os.getpid())
    return Path(folder)


def _remove_own(folder: str, owner: int) -> None:
    """Remove the temporary folder of this process, not of one that it is a fork of."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def warn(message: str) -> None:
    """Warns about the line that called into this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("attndsl."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, CacheWarning, level)


def _execute(path: Path, text: str, interpret: bool) -> ModuleType:
    """Runs the text that was verified, under the name of the file Triton will read it from."""
    import triton

    module = ModuleType(path.stem)
    module.__file__ = str(path)
    # Triton asks `inspect` for the source; without a time stamp `linecache` never looks at the file again.
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    # The setting is an environment variable too, which child processes inherit: the scope puts both back.
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = interpret
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def _after_fork() -> None:
    """The thread that held the lock is not in this process."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

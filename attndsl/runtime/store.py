"""Emitted modules on disk: Triton reads kernels from source files.

Content-addressed, written atomically, compared with the text before use, private to the user. `ATTNDSL_CACHE_DIR` moves
the folder; a folder that cannot be written is replaced by a temporary one, with a warning that says so.
"""

from __future__ import annotations

import atexit
import contextlib
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

import platformdirs


class CacheWarning(UserWarning):
    """The cache folder could not be used as it is; nothing is lost but time."""


_lock = threading.Lock()
_modules: dict[tuple[str, bool], ModuleType] = {}


def cache_dir() -> Path:
    """The folder emitted modules live in."""
    return Path(os.environ.get("ATTNDSL_CACHE_DIR") or platformdirs.user_cache_dir("attndsl")).expanduser().absolute()


def module_path(text: str, stem: str) -> Path:
    """The file of a text: its name holds the hash of the text and of the versions that read it."""
    digest = hashlib.sha256("\n".join((_versions(), text)).encode()).hexdigest()
    return cache_dir() / digest[:2] / f"{stem}_{digest[:32]}.py"


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
        if path.read_bytes() == data:
            return path
        _warn(f"the cache entry {path.name} was not what was written; it is regenerated")
    except FileNotFoundError:
        pass
    except OSError as error:
        return _temporary(path, data, error)
    try:
        _write(path, data)
    except OSError as error:
        return _temporary(path, data, error)
    return path


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, for this user alone."""
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
    fallback = _temporary_dir() / path.parent.name / path.name
    _warn(
        f"the cache folder {cache_dir()} cannot be used ({error.strerror}); emitted modules go to a temporary folder, "
        f"{_temporary_dir()}, until this process ends. Set ATTNDSL_CACHE_DIR to a folder you can write to keep them."
    )
    _write(fallback, data)
    return fallback


@cache
def _temporary_dir() -> Path:
    folder = tempfile.mkdtemp(prefix="attndsl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _warn(message: str) -> None:
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

"""The cache folder: what is in it, how large it is, and what goes when it outgrows its bound.

In: the folder that `ATTNDSL_CACHE_DIR` names. Out: its files and entries, or fewer of them.

A file's name holds the hash of what it must contain, and only files with such names are ever counted, checked or
removed: a cache folder that is also something else loses nothing. Removing an entry breaks nobody: modules are executed
from memory, loaded libraries stay mapped, and a writer or loader that finds its file gone makes it anew. So neither
eviction nor `clear` takes a lock, and any number of processes and versions share a folder.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import platformdirs

LIMIT = 1 << 30
"""The bytes a cache folder may grow to; then what was used longest ago goes, an eighth at a time."""

STRIDE = LIMIT // 64
"""A process looks through the folder at its first write, and again whenever it has written as much as this."""

ABANDONED = 3600
"""Seconds after which a write that is not finished never will be: its process is gone."""

DIGITS = 32
"""The digits of a hash in a name."""

_lock = threading.Lock()
_unswept = STRIDE


class Kind(Enum):
    """What a file of the cache is, and what its name looks like."""

    MODULE = rf"\w+_(?P<digest>[0-9a-f]{{{DIGITS}}})_[0-9a-f]{{8}}\.py"
    LIBRARY = rf"(?P<digest>[0-9a-f]{{{DIGITS}}})\.so"
    RECORD = rf"\w+_(?P<digest>[0-9a-f]{{{DIGITS}}})\.sha256"
    TILE = rf"\w+_(?P<digest>[0-9a-f]{{{DIGITS}}})\.tile"
    UNFINISHED = rf"\.(\w+_)?(?P<digest>[0-9a-f]{{{DIGITS}}})(_[0-9a-f]{{8}})?\.\w+"


_KINDS = {kind: re.compile(kind.value, re.ASCII) for kind in Kind}


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file of the cache; times are in seconds since the epoch. `digest` is what its name says of its bytes."""

    path: Path
    kind: Kind
    digest: str
    size: int
    made: float
    used: float


def cache_dir() -> Path:
    """The folder emitted modules and libraries live in."""
    return Path(os.environ.get("ATTNDSL_CACHE_DIR") or platformdirs.user_cache_dir("attndsl")).expanduser().absolute()


def cached_files(folder: Path) -> list[CachedFile]:
    """The files of a cache folder that are this package's, by name; what vanishes meanwhile is left out."""
    return sorted(_scanned(folder), key=lambda file: file.path)


def read_entry(path: Path) -> bytes:
    """The bytes of an entry; what is not a file, and would not end or not begin, is no entry."""
    if not path.is_file() and not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return path.read_bytes()


def mark_used(path: Path) -> None:
    """Note that an entry is of use; when it was made stays known, and a folder that is read-only stays as it is."""
    try:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    except OSError:
        return


def make_room(written: int) -> None:
    """Called after a write of so many bytes: remove what was used longest ago where the folder is too large.

    Writes that their processes abandoned go too.
    """
    global _unswept
    with _lock:
        _unswept += written
        if _unswept < STRIDE:
            return
        _unswept = 0
    now, found = time.time(), cached_files(cache_dir())
    abandoned = [file for file in found if file.kind is Kind.UNFINISHED and now - file.used > ABANDONED]
    remove(abandoned)
    kept = [file for file in found if file not in abandoned]
    if sum(file.size for file in kept) > LIMIT:
        remove(_oldest_beyond(kept, LIMIT - LIMIT // 8))


def remove(files: Iterable[CachedFile]) -> list[OSError]:
    """Remove files, and the folders this empties; what could not be removed. Somebody else's removal is as good."""
    failures = []
    for file in files:
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            failures.append(error)
        try:
            file.path.parent.rmdir()
        except OSError:  # other files are in it
            continue
    return failures


def is_private(path: Path) -> bool:
    """Whether nobody but this user and the system's can have written a file or folder."""
    info = path.stat()
    return info.st_uid in (0, os.getuid()) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _scanned(folder: Path) -> Iterator[CachedFile]:
    for inner in _listed(folder):
        if re.fullmatch("[0-9a-f]{2}", inner.name) and inner.is_dir(follow_symlinks=False):
            for entry in _listed(Path(inner.path)):
                file = _cached_file(entry)
                if file is not None and file.digest.startswith(inner.name):
                    yield file


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _cached_file(entry: os.DirEntry[str]) -> CachedFile | None:
    matches = ((kind, pattern.fullmatch(entry.name)) for kind, pattern in _KINDS.items())
    kind, match = next(((kind, match) for kind, match in matches if match is not None), (None, None))
    if kind is None or match is None:
        return None
    try:
        info = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode):
        return None
    used = max(info.st_atime, info.st_mtime)
    return CachedFile(Path(entry.path), kind, match["digest"], info.st_size, info.st_mtime, used)


def _oldest_beyond(files: list[CachedFile], size: int) -> Iterator[CachedFile]:
    """The files that must go, those used longest ago first, for the others to fit into a size."""
    excess = sum(file.size for file in files) - size
    for file in sorted(files, key=lambda file: file.used):
        if excess <= 0:
            return
        excess -= file.size
        yield file

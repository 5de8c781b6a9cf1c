"""C++ text to a shared library on disk: built once, never believed without looking.

In: a text. Out: the path of its library. Two files make an entry of the cache: the library, named by the hash of its
own bytes, and a record of that hash and the text's title, named by the hash of what the library was made from: the
text, the flags, the compiler and the features of the CPU. Both are written whole or not at all (`runtime.store`), so a
build that is killed leaves nothing, two that run at once agree, and a library made for another kind of CPU has another
name.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from attndsl.runtime.cache import DIGITS, cache_dir, is_private, mark_used
from attndsl.runtime.inventory import title
from attndsl.runtime.native.compiler import FLAGS, Compiler, compiler
from attndsl.runtime.store import stored
from attndsl.version import __version__


def library(text: str, stem: str) -> Path:
    """The library of a text; `stem` begins the name of its record, for people."""
    made_by = compiler()
    record = record_path(text, stem, made_by)
    found = _recorded(record)
    if found is not None:
        return found
    data = made_by.library(text)
    digest = hashlib.sha256(data).hexdigest()
    path = stored(library_path(digest), data)
    stored(record, f"{digest}\n{title(text)}\n".encode())
    return path


@cache
def pool_text() -> str:
    """The C++ of the threads all kernels share."""
    return (files("attndsl.codegen") / "templates" / "cpp_pool.cpp").read_text("utf-8")


def record_path(text: str, stem: str, made_by: Compiler) -> Path:
    """Where it is recorded which library a text became."""
    origin = "\n".join((f"attndsl {__version__}", *made_by.command, made_by.identity, *FLAGS, text))
    key = hashlib.sha256(origin.encode()).hexdigest()
    return cache_dir() / key[:2] / f"{stem}_{key[:DIGITS]}.sha256"


def library_path(digest: str) -> Path:
    """Where the library of that hash is."""
    return cache_dir() / digest[:2] / f"{digest[:DIGITS]}.so"


def _recorded(record: Path) -> Path | None:
    """The library a record names, if both are this user's and the bytes are those that were built."""
    try:
        digest = record.read_text("ascii").partition("\n")[0]
        if re.fullmatch("[0-9a-f]{64}", digest) is None:
            return None
        path = library_path(digest)
        is_whole = hashlib.sha256(path.read_bytes()).hexdigest() == digest
        if not is_whole or not all(map(is_private, (record, path, record.parent, path.parent))):
            return None
    except (OSError, UnicodeDecodeError):
        return None
    mark_used(record)
    mark_used(path)
    return path

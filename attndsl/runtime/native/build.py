"""C++ text to a shared library on disk: built once, never believed without looking.

In: a text, or what one is made from, which is written where there is no library of it. Out: the path of its library.
Two files make an entry of the cache: the library, named by the hash of its own bytes, and a record of that hash, named
by the hash of what the library was made from: the text or its origin, the flags, the compiler and the features of the
CPU. The record repeats its own hash, so that one in another's place is noticed, and has the text's title, for people.
Both are written whole or not at all (`runtime.store`), so a build that is killed leaves nothing, two that run at once
agree, and a library made for another kind of CPU has another name.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from attndsl.codegen.drawn import Drawn, digest_of
from attndsl.runtime.cache import DIGITS, cache_dir, is_private, mark_used, read_entry
from attndsl.runtime.inventory import title
from attndsl.runtime.native.compiler import Compiler, compiler
from attndsl.runtime.store import stored, stored_aside
from attndsl.version import __version__


def library(source: Drawn | str, stem: str) -> Path:
    """The library of a text; `stem` begins the name of its record, for people."""
    made_by = compiler()
    key = key_of(source, made_by)
    record = record_path(key, stem)
    found = _recorded(record, key)
    if found is not None:
        return found
    text = text_of(source)
    data = made_by.library(text)
    digest = hashlib.sha256(data).hexdigest()
    path = stored(library_path(digest), data)
    stored(record, f"{key} {digest}\n{title(text)}\n".encode())
    return path


def library_aside(source: Drawn | str) -> Path:
    """The library of a text where no other process finds it, nor removes it."""
    data = compiler().library(text_of(source))
    return stored_aside(library_path(hashlib.sha256(data).hexdigest()), data)


@cache
def pool_text() -> str:
    """The C++ of the threads all kernels share."""
    return (files("attndsl.codegen") / "templates" / "cpp_pool.cpp").read_text("utf-8")


def key_of(source: Drawn | str, made_by: Compiler) -> str:
    """The hash of all that a library is made from."""
    made_from = (f"attndsl {__version__}", *made_by.command, made_by.identity, *made_by.flags, origin_of(source))
    return digest_of("\n".join(made_from))


def origin_of(source: Drawn | str) -> str:
    """The hash of what a text is made from."""
    return digest_of(source) if isinstance(source, str) else source.digest


def text_of(source: Drawn | str) -> str:
    """The text itself."""
    return source if isinstance(source, str) else source.text


def record_path(key: str, stem: str) -> Path:
    """Where it is recorded which library the text of that key became."""
    return cache_dir() / key[:2] / f"{stem}_{key[:DIGITS]}.sha256"


def library_path(digest: str) -> Path:
    """Where the library of that hash is."""
    return cache_dir() / digest[:2] / f"{digest[:DIGITS]}.so"


def _recorded(record: Path, key: str) -> Path | None:
    """The library a record names, if both are this user's, and are what was recorded of this key and built."""
    try:
        named = re.match(f"{key} ([0-9a-f]{{64}})\n", read_entry(record).decode("ascii", "replace"))
        if named is None:
            return None
        path = library_path(named[1])
        is_whole = hashlib.sha256(read_entry(path)).hexdigest() == named[1]
        if not is_whole or not all(map(is_private, (record, path, record.parent, path.parent))):
            return None
    except OSError:
        return None
    mark_used(record)
    mark_used(path)
    return path

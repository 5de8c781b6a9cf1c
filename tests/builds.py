"""How the kernels of a suite are built: most without optimisation, which takes a third of the time, a share as users'.

What a program means, and what its text says, shows without optimisation as well; what an optimiser makes of such
texts shows in the share. All kernels of a program are built alike: which way is told by the program's own text, but for
its name. Texts that differ in what their heads say share a library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest

from attndsl.codegen.drawn import Drawn
from attndsl.runtime.native import build, launch, load
from attndsl.runtime.native.compiler import Compiler, compiler

SHARE = 16
"""One program of so many is built as users build theirs."""

_slots: dict[tuple[str, str], load._Slot] = {}
_kernels: dict[str, launch._Kernel] = {}
_HEAD = re.compile(r"/\*.*?\*/", re.DOTALL)
_PROGRAM = re.compile(r"^attention \w+(.*?^})", re.MULTILINE | re.DOTALL)
_CALLS = ("-Dalways_inline=unused", "-fno-exceptions", "-fno-asynchronous-unwind-tables")
"""Functions are called, not copied to where they are used, and nothing is written for exceptions, which kernels have
none of: together a fifth of a quick build."""


def is_quick(text: str) -> bool:
    """Whether a kernel is built without optimisation; what is no kernel never is."""
    program = _PROGRAM.search(text)
    return program is not None and crc32(program[1].encode()) % SHARE != 0


def quick(made_by: Compiler) -> Compiler:
    """The compiler without optimisation; everything that gives the text its meaning stays."""
    return replace(made_by, flags=(*("-O0" if flag == "-O2" else flag for flag in made_by.flags), *_CALLS))


def library(source: Drawn | str, stem: str) -> Path:
    """What `build.library` is to `load`, with most kernels built quickly, and equal code built once."""
    text = build.text_of(source)
    code = _HEAD.sub("", text, count=1)
    if not is_quick(text):
        return build.library(code, stem)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "compiler", lambda: quick(compiler()))
        return build.library(code, stem)


@contextmanager
def quick_builds() -> Iterator[None]:
    """Kernels loaded meanwhile are built quickly; those built for users, before or after, are others."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(load, "library", library)
        patched.setattr(load, "_slots", _slots)
        patched.setattr(launch, "_kernels", _kernels)
        yield

"""The C++ compiler of this machine: where it is, how it is called, and what it makes for which CPU.

In: nothing but the environment (`PATH`, `CXX`). Out: a `Compiler`, or an error that says what to install.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attndsl.diagnostics import DiagnosticError, UnsupportedError, fail

CANDIDATES = ("c++", "g++", "clang++")
INSTALL = (
    "install one, e.g. `apt install g++`, `dnf install gcc-c++` or `xcode-select --install`, or name it in CXX; "
    'without one, use `backend="reference"`'
)
SHOWN_LINES = 20

FLAGS: tuple[str, ...] = (
    # `if constexpr` and inline variables; without GNU's macros, `linux` and `unix` are names like others.
    "-std=c++17",
    # Kernels say themselves what is inlined and unrolled: -O3 builds for half as long again, and what it makes is as
    # fast forward and 3 % faster backward.
    "-O2",
    # But loops over plain numbers become vectors, whatever their length, as they would with -O3.
    "-ftree-vectorize",
    # The vectors of this very CPU: a kernel is never loaded on another kind, its name holds the features.
    "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native",
    # A product and a sum in one rounding, as on GPUs; not the default of ISO modes.
    "-ffp-contract=fast",
    # Nobody reads errno or floating-point traps: square roots and roundings become instructions, selects branch-free.
    # Not -ffast-math: infinities and NaN mean something here, and sums keep their order.
    "-fno-math-errno",
    "-fno-trapping-math",
    # At dead pairs integers may leave their range, and what is computed there is then thrown away.
    "-fwrapv",
    "-shared",
    "-fPIC",
    # The entry alone is a symbol, and calls inside need no table.
    "-fvisibility=hidden",
    "-pthread",
    # Vectors wider than the oldest CPU's are passed to inlined functions only.
    "-Wno-psabi",
)
"""The one set of flags; with what a compiler and a system add to it, it is part of every name."""

ALL_LOOPS = ("-fvect-cost-model=dynamic",)
"""For GCC, which at -O2 leaves loops of unknown length as they are; clang knows no such flag."""

NO_MATRIX_REGISTERS = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
"""For CPUs that have them under a system that does not grant them."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A compiler: the command, a hash of its version and of the CPU features it compiles for, and its flags."""

    command: tuple[str, ...]
    identity: str
    flags: tuple[str, ...] = FLAGS

    def library(self, text: str) -> bytes:
        """The shared library of a C++ text. Nothing of a build that fails or is interrupted stays."""
        return self._made(text)

    def listing(self, text: str) -> str:
        """The instructions of a C++ text, as the compiler writes them for an assembler."""
        return self._made(text, "-S").decode("utf-8", "replace")

    def _made(self, text: str, *more: str) -> bytes:
        try:
            with tempfile.TemporaryDirectory(prefix="attndsl-build-") as folder:
                source, made = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
                source.write_text(text, "utf-8")
                _run((*self.command, *self.flags, *more, str(source), "-o", str(made)))
                if not made.exists():
                    raise _failed(self.command, "it reported success and wrote no library", "")
                return made.read_bytes()
        except OSError as error:
            message = f"a kernel cannot be built: its temporary folder cannot be used ({error.strerror})"
            help_ = "free some space, or set TMPDIR to a folder you can write to"
            raise fail(UnsupportedError, "no-place-for-kernels", message, None, help=help_) from error


def compiler() -> Compiler:
    """The compiler that `CXX` names, or the first on `PATH`; looked for once, for as long as neither changes."""
    return _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@cache
def _compiler(named: str, path: str) -> Compiler:
    command = tuple(shlex.split(named)) or next(((name,) for name in CANDIDATES if shutil.which(name, path=path)), ())
    if not command:
        listed = ", ".join(f"`{name}`" for name in CANDIDATES)
        message = f"CPU kernels need a C++ compiler, and none of {listed} is on PATH"
        raise fail(UnsupportedError, "no-compiler", message, None, help=INSTALL)
    if shutil.which(command[0], path=path) is None:
        message = f"CPU kernels need a C++ compiler, and CXX names `{command[0]}`, which cannot be run"
        raise fail(UnsupportedError, "no-compiler", message, None, help=INSTALL)
    flags = FLAGS
    macros = _macros(command, flags)
    if b"__clang__" not in macros:
        flags = (*flags, *ALL_LOOPS)
    if b"__AMX_TILE__" in macros and not _grants_matrix_registers():
        flags = (*flags, *NO_MATRIX_REGISTERS)
        macros = _macros(command, flags)
    return Compiler(command, hashlib.sha256(macros).hexdigest(), flags)


def _macros(command: tuple[str, ...], flags: tuple[str, ...]) -> bytes:
    """What a compiler defines beforehand: its version, and every feature of the CPU it compiles for."""
    return _run((*command, *flags, "-E", "-dM", "-x", "c++", os.devnull))


def _grants_matrix_registers() -> bool:
    """Whether the system lets this process use AMX, which Linux asks for first and sandboxes may refuse."""
    arch_prctl, request, tiles = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tiles) == 0)


def _run(command: tuple[str, ...]) -> bytes:
    """What a command prints; an error that shows what it complains of."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise _failed(command, f"it cannot be run: {error.strerror}", "") from error
    if done.returncode == 0:
        return done.stdout
    ending = f"exit status {done.returncode}" if done.returncode > 0 else f"killed by signal {-done.returncode}"
    raise _failed(command, ending, done.stderr.decode("utf-8", "replace"))


def _failed(command: tuple[str, ...], why: str, complaints: str) -> DiagnosticError:
    lines = complaints.strip().splitlines()
    shown = lines[:SHOWN_LINES] + ([f"... {len(lines) - SHOWN_LINES} more lines"] if len(lines) > SHOWN_LINES else [])
    message = f"the C++ compiler `{command[0]}` failed: {why}"
    return fail(UnsupportedError, "compiler-failed", message, None, *shown, help=INSTALL)

"""Building native kernels: one entry for each text, compiler and CPU, whole or not there; errors that help."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from attndsl.diagnostics import UnsupportedError
from attndsl.runtime.native import compiler as compilers
from attndsl.runtime.native import load
from attndsl.runtime.native.build import key_of, library, library_path, record_path
from attndsl.runtime.native.compiler import compiler
from attndsl.runtime.native.load import load_function, parallel_address
from attndsl.runtime.store import CacheWarning

pytestmark = pytest.mark.as_users

ENTRY = 'extern "C" __attribute__((visibility("default"))) int answer() {{ return {}; }}\n'
TEXT = ENTRY.format(42)

BUILD = f"""
import ctypes, warnings
warnings.simplefilter("error")
from attndsl.runtime.native.build import library
path = library({TEXT!r}, "answer")
print(path, ctypes.CDLL(str(path)).answer())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder of one test; nothing of other tests is in memory."""
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(load, "_slots", {})
    compilers._compiler.cache_clear()
    yield tmp_path / "cache"
    compilers._compiler.cache_clear()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def recorded(text: str) -> Path:
    """The record of a text built here."""
    return record_path(key_of(text, compiler()), "answer")


def answer(path: Path) -> int:
    return int(ctypes.CDLL(str(path)).answer())


def script(path: Path, *lines: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


def real_compiler() -> str:
    return " ".join(compiler().command)


def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that leaves a line for every build; the file it writes them to."""
    log = tmp_path / "builds"
    lines = (f'case " $* " in *" -o "*) echo built >> {log};; esac', f'exec {real_compiler()} "$@"')
    monkeypatch.setenv("CXX", str(script(tmp_path / "bin" / "counting", *lines)))
    log.touch()
    return log


def test_a_library_and_a_record_of_it_private_to_the_user(folder: Path) -> None:
    path = library(TEXT, "answer")
    assert answer(path) == 42
    record = recorded(TEXT)
    assert files(folder) == sorted((path, record))
    assert path == library_path(record.read_text().split()[1])
    assert {stat.S_IMODE(place.stat().st_mode) for place in (folder, path.parent, record.parent)} == {0o700}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files(folder)} == {0o600}


def test_a_text_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = counting(tmp_path, monkeypatch)
    assert library(TEXT, "answer") == library(TEXT, "answer")
    assert log.read_text().count("built") == 1
    assert library(ENTRY.format(43), "answer") != library(TEXT, "answer")
    assert log.read_text().count("built") == 2


def test_another_compiler_another_cpu_and_other_flags_make_another_entry() -> None:
    here = compiler()
    others = (
        replace(here, identity="the macros of another CPU"),
        replace(here, command=("other",)),
        replace(here, flags=(*here.flags, "-O0")),
    )
    assert len({key_of(TEXT, made_by) for made_by in (here, *others)}) == 4


def test_a_cache_folder_of_another_cpu_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a machine with other features: its library is there and is not looked at."""
    log = counting(tmp_path, monkeypatch)
    with monkeypatch.context() as elsewhere:
        foreign = replace(compiler(), identity="the macros of another CPU")
        elsewhere.setattr("attndsl.runtime.native.build.compiler", lambda: foreign)
        library(TEXT, "answer")
    library(TEXT, "answer")
    assert log.read_text().count("built") == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "gone", "record", "binary record", "other record"])
def test_what_is_not_what_was_built_is_built_anew(damage: str) -> None:
    path = library(TEXT, "answer")
    record = recorded(TEXT)
    data = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(data[:1000])
        case "changed":
            path.write_bytes(data.replace(b"\x7fELF", b"\x7fELG", 1) if b"\x7fELF" in data else data[::-1])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "other record":
            library(ENTRY.format(43), "answer")
            record.write_bytes(recorded(ENTRY.format(43)).read_bytes())
        case "record":
            record.write_text("0" * 64)
        case _:
            record.write_bytes(b"\xff\xfe")
    if damage == "gone":
        again = library(TEXT, "answer")
    else:
        with pytest.warns(CacheWarning, match="was not what was written"):
            again = library(TEXT, "answer")
    assert again.read_bytes() == data
    assert answer(again) == 42
    assert library(TEXT, "answer") == again


def test_two_processes_build_at_once(folder: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert found == {f"{library(TEXT, 'answer')} 42"}
    assert len(files(folder)) == 2


def test_a_build_that_is_killed_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies while its compiler works."""
    started = tmp_path / "started"
    lines = (
        f'case " $* " in *" -o "*) touch {started}; sleep 60;; esac',
        f'exec {real_compiler()} "$@"',
    )
    slow = script(tmp_path / "bin" / "slow", *lines)
    environment = {**os.environ, "CXX": str(slow), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", BUILD], env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not folder.exists() or files(folder) == []
    assert answer(library(TEXT, "answer")) == 42


def test_a_build_that_is_interrupted_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    compiler()

    def interrupted(*args: object, **how: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            library(TEXT, "answer")
    assert not folder.exists()
    assert list(tmp_path.glob("attndsl-build-*")) == []


def test_a_folder_that_cannot_be_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("file").write_text("")
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(CacheWarning, match="cannot be used") as caught:
        path = library(TEXT, "answer")
    assert caught[0].filename == __file__
    assert answer(path) == 42
    assert "attndsl-" in str(path)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError) as caught:
        library(TEXT, "answer")
    (found,) = caught.value.diagnostics
    assert found.code == "no-compiler"
    assert "`c++`, `g++`, `clang++`" in found.message
    assert "apt install g++" in (found.help or "")
    assert 'backend="reference"' in (found.help or "")


def test_a_compiler_that_is_installed_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = script(tmp_path / "late" / "g++", f'exec {real_compiler()} "$@"')
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(UnsupportedError, match="no-compiler"):
            compiler()
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    assert compiler().command == ("g++",) or compiler().command == ("c++",)


def test_cxx_that_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O0")
    with pytest.raises(UnsupportedError, match="CXX names `no-such-compiler`"):
        compiler()


def test_a_compiler_that_fails_is_quoted() -> None:
    with pytest.raises(UnsupportedError) as caught:
        library("int answer( {\n", "answer")
    (found,) = caught.value.diagnostics
    assert found.code == "compiler-failed"
    assert "exit status 1" in found.message
    assert any("error" in note for note in found.notes)
    assert 'backend="reference"' in (found.help or "")


def test_a_compiler_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the kernel when memory runs out."""
    lines = ('case " $* " in *" -o "*) kill -9 $$;; esac', f'exec {real_compiler()} "$@"')
    monkeypatch.setenv("CXX", str(script(tmp_path / "killed", *lines)))
    with pytest.raises(UnsupportedError, match="killed by signal 9"):
        library(TEXT, "answer")


def test_a_compiler_that_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "idle", "exit 0")))
    with pytest.raises(UnsupportedError, match="wrote no library"):
        library(TEXT, "answer")


def test_a_compiler_that_cannot_be_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(UnsupportedError, match="compiler-failed"):
        library(TEXT, "answer")


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> None:
        raise OSError("failed to map segment from shared object")

    library(TEXT, "answer")
    monkeypatch.setattr(ctypes, "CDLL", refused)
    with pytest.raises(UnsupportedError, match="kernel-not-loadable") as caught:
        load_function(TEXT, "answer")
    assert "ATTNDSL_CACHE_DIR" in str(caught.value)


def test_matrix_registers_that_are_not_granted_are_not_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_grants_matrix_registers", lambda: False)
    monkeypatch.setattr(
        compilers, "_macros", lambda command, flags: b"#define __AMX_TILE__ 1" + " ".join(flags).encode()
    )
    refused = compiler()
    compilers._compiler.cache_clear()
    monkeypatch.setattr(compilers, "_grants_matrix_registers", lambda: True)
    granted = compiler()
    assert refused.flags == (*granted.flags, "-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
    assert refused.identity != granted.identity


@pytest.mark.parametrize("macros, more", [(b"", ("-fvect-cost-model=dynamic",)), (b"#define __clang__ 1\n", ())])
def test_only_gcc_is_given_flags_that_only_gcc_knows(
    macros: bytes, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "_macros", lambda command, flags: macros)
    assert compiler().flags == (*compilers.FLAGS, *more)


def test_a_process_loads_a_function_once(folder: Path) -> None:
    first = load_function(TEXT, "answer")
    for path in files(folder):
        path.unlink()
    assert load_function(TEXT, "answer") is first
    assert files(folder) == []
    assert parallel_address() == parallel_address() != 0

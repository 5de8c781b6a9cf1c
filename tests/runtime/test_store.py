"""The store of emitted modules: written once, read by every process, never believed without looking."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attndsl.runtime import store
from attndsl.runtime.store import CacheWarning, load_module, module_path

TEXT = '"""A module."""\n\nimport triton\n\n\n@triton.jit\ndef forward(x):\n    return x + 1\n'

LOAD = f"""
import sys, warnings
warnings.simplefilter("error")
from attndsl.runtime.store import load_module
module = load_module({TEXT!r}, "forward", False)
print(module.__file__, module.forward.src.count("x + 1"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of one test; nothing of other tests is in memory."""
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_modules", {})
    return tmp_path / "cache"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def elsewhere(code: str = LOAD, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_module_is_one_private_file_named_by_its_content(folder: Path) -> None:
    module = load_module(TEXT, "forward", False)
    (path,) = files(folder)
    assert path == module_path(TEXT, "forward") == Path(module.__file__ or "")
    assert path.read_text() == TEXT
    assert [stat.S_IMODE(place.stat().st_mode) for place in (folder, path.parent, path)] == [0o700, 0o700, 0o600]
    assert module_path(TEXT + "#", "forward") != path


def test_a_process_loads_a_module_once(folder: Path) -> None:
    module = load_module(TEXT, "forward", False)
    for path in files(folder):
        path.unlink()
    assert load_module(TEXT, "forward", False) is module
    assert not files(folder)


@pytest.mark.parametrize("interpret", [False, True])
def test_loading_leaves_the_environment_alone(interpret: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    load_module(TEXT, "forward", interpret)
    assert "TRITON_INTERPRET" not in os.environ


def test_a_second_process_reads_the_file_of_the_first(folder: Path) -> None:
    path = Path(load_module(TEXT, "forward", False).__file__ or "")
    os.utime(path, (1, 1))
    assert elsewhere() == f"{path} 1"
    assert path.stat().st_mtime == 1
    assert files(folder) == [path]


def test_versions_are_part_of_the_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = module_path(TEXT, "forward")
    monkeypatch.setattr(store, "_versions", lambda: "attndsl 9, torch 9, triton 9")
    assert module_path(TEXT, "forward") != path


@pytest.mark.parametrize(
    "corrupt",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"\x00\xff" * 100, id="garbage"),
        pytest.param(lambda data: data.replace(b"x + 1", b"x + 2"), id="changed"),
        pytest.param(lambda data: b"raise SystemExit('executed')\n", id="swapped"),
    ],
)
def test_a_corrupt_entry_is_found_and_written_anew(folder: Path, corrupt: Callable[[bytes], bytes]) -> None:
    path = module_path(TEXT, "forward")
    path.parent.mkdir(parents=True)
    path.write_bytes(corrupt(TEXT.encode()))
    with pytest.warns(CacheWarning, match=f"{path.name} was not what was written") as caught:
        module = load_module(TEXT, "forward", False)
    assert "x + 1" in module.forward.src
    assert path.read_text() == TEXT
    assert caught[0].filename == __file__  # the warning points at the caller, not into the package


def test_what_triton_compiles_is_what_was_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes between the look and the use is not read again."""
    original = store._execute

    def swapped(path: Path, text: str, interpret: bool) -> Any:
        path.write_text(TEXT.replace("x + 1", "x + 2"))
        return original(path, text, interpret)

    monkeypatch.setattr(store, "_execute", swapped)
    assert "x + 1" in load_module(TEXT, "forward", False).forward.src


def failing(number: int) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_written_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    original = store._write

    def write(path: Path, data: bytes) -> None:
        if path.is_relative_to(folder):
            raise OSError(number, os.strerror(number), str(path))
        original(path, data)

    monkeypatch.setattr(store, "_write", write)
    with pytest.warns(CacheWarning) as caught:
        module = load_module(TEXT, "forward", False)
    message = str(caught[0].message)
    assert str(folder) in message
    assert os.strerror(number) in message
    assert "ATTNDSL_CACHE_DIR" in message
    assert "x + 1" in module.forward.src
    assert not Path(module.__file__ or "").is_relative_to(folder)
    assert not folder.exists()


def test_a_disk_that_fills_up_while_writing_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "00" / "module.py"
    monkeypatch.setattr(os, "replace", failing(errno.ENOSPC))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        store._write(path, TEXT.encode())
    assert not files(folder)


def test_a_cache_folder_that_is_a_file(folder: Path) -> None:
    folder.write_text("not a folder")
    with pytest.warns(CacheWarning, match="cannot be used"):
        assert "x + 1" in load_module(TEXT, "forward", False).forward.src
    assert folder.read_text() == "not a folder"


def test_the_temporary_folder_goes_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    printed = elsewhere(
        LOAD.replace('"error"', '"ignore"'), ATTNDSL_CACHE_DIR=str(tmp_path / "file"), TMPDIR=str(tmp_path)
    )
    assert printed.startswith(f"{tmp_path}/attndsl-")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("attndsl")] == []


def test_processes_at_once_agree(folder: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    done = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], done
    (path,) = files(folder)
    assert {out.strip() for out, _ in done} == {f"{path} 1"}


def test_a_process_killed_while_writing_leaves_no_half_module(folder: Path) -> None:
    """The writer dies between the data and the rename: what is left is not under the name that is read."""
    code = LOAD.replace(
        "import sys, warnings", "import os, sys, warnings\nos.replace = lambda *_: os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -9
    assert len(files(folder)) == 1
    assert not module_path(TEXT, "forward").exists()
    assert elsewhere() == f"{module_path(TEXT, 'forward')} 1"


def test_relative_and_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", "here")
    assert store.cache_dir() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", "~/cache")
    assert store.cache_dir() == tmp_path / "home" / "cache"

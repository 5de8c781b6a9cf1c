"""The cache among many processes: races on a cold folder, eviction under use, death at any moment, no space, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from attndsl.runtime import cache, store
from attndsl.runtime.native import load
from attndsl.runtime.native.build import library
from attndsl.runtime.store import CacheWarning, load_module, module_path

FORKS = Path(__file__).with_name("forks.py")
ROOT = FORKS.parent.parent.parent
TEXT = "import triton\n\n\n@triton.jit\ndef forward(x):\n    return x + {}\n"
NATIVE = 'extern "C" __attribute__((visibility("default"))) int answer() {{ return {}; }}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of one test; nothing of other tests is in memory."""
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_modules", {})
    monkeypatch.setattr(load, "_slots", {})
    return tmp_path / "cache"


@pytest.mark.parametrize("fault", ["race", "evict", "kill", "full", "threads"])
def test_processes(fault: str, tmp_path: Path) -> None:
    """Each fault is a function of `forks.py`, described there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(FORKS), fault]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_entries_that_changed_places(folder: Path) -> None:
    """Each holds what is right for the other."""
    modules = [module_path(TEXT.format(number), "forward") for number in range(2)]
    libraries = [library(NATIVE.format(number), "answer") for number in range(2)]
    records = sorted(folder.rglob("*.sha256"))
    for number in range(2):
        load_module(TEXT.format(number), "forward", False)
    for one, other in (modules, libraries, records):
        swapped = other.read_bytes(), one.read_bytes()
        one.write_bytes(swapped[0])
        other.write_bytes(swapped[1])
    store._modules.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        for number in range(2):
            assert f"x + {number}" in load_module(TEXT.format(number), "forward", False).forward.src
            assert load.load_function(NATIVE.format(number), "answer")(b"", 0, 0) == number


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling link", "link to itself", "link elsewhere"])
def test_what_is_no_file_in_an_entrys_place(kind: str, folder: Path, tmp_path: Path) -> None:
    """It is neither waited for nor followed by a write."""
    path = module_path(TEXT.format(0), "forward")
    path.parent.mkdir(parents=True, mode=0o700)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to(tmp_path / "nowhere")
        case "link to itself":
            path.symlink_to(path)
        case _:
            path.symlink_to(elsewhere)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        assert "x + 0" in load_module(TEXT.format(0), "forward", False).forward.src
    assert elsewhere.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("place", ["/proc/attndsl", "/dev/null/cache"])
def test_folders_the_system_refuses(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", place)
    with pytest.warns(CacheWarning, match="cannot be used"):
        module = load_module(TEXT.format(0), "forward", False)
    assert "x + 0" in module.forward.src


def test_a_folder_that_is_only_read_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that are there are used, though nobody can note that they were."""
    load_module(TEXT.format(0), "forward", False)
    store._modules.clear()

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("utime", "replace", "mkdir"):
        monkeypatch.setattr(os, name, refused)
    assert Path(load_module(TEXT.format(0), "forward", False).__file__ or "").is_relative_to(folder)
    assert len(cache.cached_files(folder)) == 1

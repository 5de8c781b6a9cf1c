"""The bound on the cache folder: what goes when it is outgrown, what never does, and who notices."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attndsl.diagnostics import UnsupportedError
from attndsl.runtime import cache, store
from attndsl.runtime.cache import Kind, cached_files, is_private, remove
from attndsl.runtime.inventory import damages, inventory, title
from attndsl.runtime.native import load
from attndsl.runtime.native.build import library
from attndsl.runtime.native.load import load_function
from attndsl.runtime.store import CacheWarning, load_module, module_path

TEXT = '"""A module."""\n\nimport triton\n\n\n@triton.jit\ndef forward(x):\n    return x + {}\n'
NATIVE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'
HOUR = 3600


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of one test; nothing of other tests is in memory."""
    monkeypatch.setenv("ATTNDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_modules", {})
    monkeypatch.setattr(load, "_slots", {})
    monkeypatch.setattr(cache, "_unswept", 0)
    return tmp_path / "cache"


def bounded(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """A bound that so many modules fit into, looked after at every write."""
    monkeypatch.setattr(cache, "LIMIT", files * len(TEXT))
    monkeypatch.setattr(cache, "STRIDE", 0)


def written(number: int, age: float = 0) -> Path:
    """A module's file, used so long ago."""
    path = Path(load_module(TEXT.format(number), "forward", False).__file__ or "")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_what_was_used_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [written(number, age=(10 - number) * HOUR) for number in range(8)]
    store._modules.clear()
    load_module(TEXT.format(0), "forward", False)
    bounded(monkeypatch, 8)
    newest = written(8)
    assert [path.exists() for path in (*paths, newest)] == [True, False, False, *[True] * 6]


def test_use_is_noted_and_when_it_was_made_stays(folder: Path) -> None:
    path = written(0, age=5 * HOUR)
    store._modules.clear()
    load_module(TEXT.format(0), "forward", False)
    (file,) = cached_files(folder)
    assert file.path == path
    assert time.time() - file.made > 4 * HOUR
    assert time.time() - file.used < HOUR


def test_a_library_is_used_with_its_record(folder: Path) -> None:
    library(NATIVE, "answer")
    for file in cached_files(folder):
        os.utime(file.path, (1, 1))
    library(NATIVE, "answer")
    assert all(time.time() - file.used < HOUR for file in cached_files(folder))


def test_the_folder_is_looked_through_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    original = cached_files
    monkeypatch.setattr(cache, "cached_files", lambda folder: looked.append(folder) or original(folder))
    monkeypatch.setattr(cache, "STRIDE", 10 * len(TEXT))
    monkeypatch.setattr(cache, "_unswept", 10 * len(TEXT))
    for number in range(20):
        written(number)
    assert 2 <= len(looked) <= 3


def test_what_is_gone_from_the_folder_still_runs(folder: Path) -> None:
    """Triton asks for the source when it compiles, `ctypes` maps a library once."""
    import inspect

    module, function = load_module(TEXT.format(1), "forward", False), load_function(NATIVE, "answer")
    assert remove(cached_files(folder)) == []
    assert not folder.exists() or list(folder.iterdir()) == []
    assert "x + 1" in inspect.getsource(module.forward.fn)
    assert function(b"", 0, 0) == 42


def test_a_library_that_goes_between_look_and_load_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original, lost = ctypes.CDLL, []

    def open_late(path: str) -> ctypes.CDLL:
        if not lost:
            lost.append(path)
            os.unlink(path)
        return original(path)

    monkeypatch.setattr(ctypes, "CDLL", open_late)
    assert load_function(NATIVE, "answer")(b"", 0, 0) == 42
    assert len(lost) == 1


def test_a_folder_that_goes_while_it_is_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, lost = os.replace, []

    def replace(source: str, target: Path) -> None:
        if not lost:
            lost.append(source)
            os.unlink(source)
            os.rmdir(Path(source).parent)
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    path = written(0)
    assert path.is_relative_to(folder)
    assert path.read_text() == TEXT.format(0)


def test_only_files_of_this_package_are_counted_and_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = "ab" * 16
    names = ("forward.py", f"{digest}.so.bak", f"forward_{digest}.py", f".forward_{digest}", f"cd{digest[2:]}.so")
    foreign = [folder / "ab" / name for name in names]
    foreign += [folder / f"{digest}.so", folder / "photos" / f"{digest}.so", folder / "abc" / f"{digest}.so"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        os.utime(path, (1, 1))
    (folder / "ab" / f"{digest}.so").symlink_to(foreign[0])
    (folder / "cd").symlink_to(folder / "ab")
    assert cached_files(folder) == []
    bounded(monkeypatch, 2)
    written(0)
    assert written(1).exists()
    assert all(path.read_bytes() == b"mine" for path in foreign)


def test_abandoned_writes_go_and_those_at_work_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = module_path(TEXT.format(0), "forward")
    path.parent.mkdir(parents=True, mode=0o700)
    old, new = (path.parent / f".{path.stem}.{end}" for end in ("abcdefgh", "ijklmnop"))
    for unfinished, age in ((old, 2 * HOUR), (new, 0)):
        unfinished.write_text("half")
        os.utime(unfinished, (time.time() - age,) * 2)
    assert [file.kind for file in cached_files(folder)] == [Kind.UNFINISHED] * 2
    monkeypatch.setattr(cache, "STRIDE", 0)
    written(1)
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("mode", [0o775, 0o757], ids=oct)
def test_a_folder_others_can_write_to_is_not_used(folder: Path, mode: int) -> None:
    path = module_path(TEXT.format(0), "forward")
    path.parent.mkdir(parents=True)
    path.parent.chmod(mode)
    with pytest.warns(CacheWarning, match="another user owns it or may write to it"):
        used = Path(load_module(TEXT.format(0), "forward", False).__file__ or "")
    assert not used.is_relative_to(folder)
    assert is_private(used)
    assert is_private(used.parent)


def test_an_entry_others_can_write_to_is_replaced() -> None:
    path = library(NATIVE, "answer")
    path.chmod(0o666)
    assert library(NATIVE, "answer") == path
    assert is_private(path)


def test_another_users_entry_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(0)
    if os.getuid() == 0:
        os.chown(path.parent, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    store._modules.clear()
    with pytest.warns(CacheWarning, match="another user owns it"):
        assert not Path(load_module(TEXT.format(0), "forward", False).__file__ or "").is_relative_to(folder)


def test_no_place_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(UnsupportedError) as caught:
        load_module(TEXT.format(0), "forward", False)
    (found,) = caught.value.diagnostics
    assert found.code == "no-place-for-kernels"
    assert str(folder) in found.message
    assert "ATTNDSL_CACHE_DIR" in (found.help or "")
    assert len(found.notes) == 2


def test_the_temporary_folder_of_a_process_outlives_its_forks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from attndsl.runtime.store import stored
path = stored(Path({str(tmp_path / "file" / "ab" / "x.py")!r}), b"data")
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
print(path.exists())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", done.stderr


def test_two_versions_share_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = written(0)
    store._modules.clear()
    with monkeypatch.context() as other:
        other.setattr(store, "_versions", lambda: "attndsl 9, torch 9, triton 9")
        there = written(0)
    assert here != there
    assert here.parent == there.parent
    assert [entry.language for entry in inventory(folder)] == ["Triton", "Triton"]
    assert list(damages(folder)) == []


def test_titles() -> None:
    from attndsl.codegen.plan import Target
    from attndsl.compiler import emit_source
    from attndsl.frontend.parse import parse

    (variant,) = parse("attention causal { mask kv_idx <= q_idx }")
    expected = "causal: attention forward, bf16, head dim 128"
    assert title(emit_source(variant)) == title(emit_source(variant, target=Target.CPP)) == expected
    assert title(NATIVE) == "support code"
    assert title('"""\x1b[2J, generated by attndsl') == "support code"

"""Fixtures every test may use: golden files, quick builds.

Random suites draw the same programs in every run; scripts draw others.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import builds
import interpreting
import pytest
from hypothesis import settings

# Workers of xdist have a core each: more threads in them would wait for each other. Tests of threads ask for theirs.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreting.hurry()

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--as-users", action="store_true", help="build every native kernel as users do")
    parser.addoption("--update-goldens", action="store_true", help="write what the tests got into tests/golden")


def pytest_collection_finish() -> None:
    """What is imported by now stays: whoever collects garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Extension modules say what they find leaked when they end."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quick_builds(request: pytest.FixtureRequest) -> Iterator[None]:
    """Most native kernels are built without optimisation, unless a test is about what users get, to the last bit."""
    if request.config.getoption("--as-users") or request.node.get_closest_marker("as_users"):
        yield
    else:
        with builds.quick_builds():
            yield


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`golden(text)` compares with `tests/golden/<folder>/<test>.txt`; the file takes its name from the test's.

    A parametrised test `test_error[unknown-name]` owns `unknown-name.txt`, a plain `test_picture` owns `picture.txt`;
    `folder` groups the files of one kind, `name` and `suffix` override what the test's name says.
    """

    def check(text: str, folder: str, *, name: str | None = None, suffix: str = ".txt") -> None:
        path = GOLDEN / folder / ((name or _name_of(request.node.name)) + suffix)
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path.relative_to(GOLDEN)} is missing; run pytest with --update-goldens and review it"
        assert text == path.read_text(encoding="utf-8")

    return check


def _name_of(test: str) -> str:
    plain, bracket, parameters = test.partition("[")
    return parameters.removesuffix("]") if bracket else plain.removeprefix("test_")

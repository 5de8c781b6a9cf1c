"""What tests of integrations share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engines import DenseEngine

from attndsl import operations
from attndsl.codegen.plan import Target
from attndsl.runtime import backends


@pytest.fixture
def densely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go to the reference: for tests of many programs, each of which would be compiled once."""
    monkeypatch.setattr(backends, "_automatic", lambda *_: backends.Backend.REFERENCE)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """torch's compiler knows nothing of what other tests have compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def dense_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators run the pieces of kernels densely: for tests of many programs, each of which would be compiled once."""
    engines = {**operations.ENGINES, Target.CPP: lambda compilation, *_: DenseEngine(compilation.source)}
    monkeypatch.setattr(operations, "ENGINES", engines)

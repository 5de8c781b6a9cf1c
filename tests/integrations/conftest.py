"""What tests of integrations share."""

from __future__ import annotations

import pytest

from attndsl.runtime import backends


@pytest.fixture
def densely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go to the reference: for tests of many programs, each of which would be compiled once."""
    monkeypatch.setattr(backends, "_automatic", lambda *_: backends.Backend.REFERENCE)

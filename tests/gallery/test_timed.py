"""What was measured of entries is on record, and where another was faster the record says why."""

from __future__ import annotations

import json

import pytest

from examples.gallery.entry import entries
from examples.gallery.pages import TIMED


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return json.loads(TIMED.read_text(encoding="utf-8"))["rows"]


def test_every_entry_is_on_record(rows: list[dict]) -> None:
    assert {row["entry"] for row in rows} == set(entries()), "run `python -m benchmarks.gallery`"


def test_what_is_slower_has_a_reason(rows: list[dict]) -> None:
    assert [row["entry"] for row in rows if row["missed"] and not row["why slower"]] == []


def test_what_flex_attention_has_not_has_a_reason(rows: list[dict]) -> None:
    assert [row["entry"] for row in rows if row["over flex"] is None and not row["no flex"]] == []

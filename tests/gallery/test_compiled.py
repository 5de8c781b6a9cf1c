"""What the kernels of entries take on a GPU: the results on record say it of each, and of a few it is measured anew."""

from __future__ import annotations

import json

import pytest

from benchmarks.gallery_compile import reports
from examples.gallery.entry import entries
from examples.gallery.pages import COMPILED

SPILLS: dict[tuple[str, str], str] = {}
"""Attentions of entries with kernels that spill, and why."""

SAMPLE = ("cog_attention", "wenet", "mqa", "flash_window")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return json.loads(COMPILED.read_text(encoding="utf-8"))["rows"]


def test_every_entry_is_on_record(rows: list[dict]) -> None:
    stale = "run `python -m benchmarks.gallery_compile`"
    assert {row["entry"] for row in rows} == set(entries()), stale


def test_nothing_spills_but_for_a_reason(rows: list[dict]) -> None:
    spilling = {(row["entry"], row["attention"]) for row in rows if row["spilled bytes"]}
    assert spilling == set(SPILLS)


@pytest.mark.parametrize("name", SAMPLE)
def test_the_record_is_what_compiling_says(name: str, rows: list[dict]) -> None:
    assert [*reports(name, entries()[name])] == [row for row in rows if row["entry"] == name]

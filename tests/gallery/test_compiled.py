"""What the kernels of entries take on a GPU: the results on record say it of each, and of a few it is measured anew."""

from __future__ import annotations

import json

import pytest

from benchmarks.gallery_compile import reports
from examples.gallery.entry import entries
from examples.gallery.pages import COMPILED

KEPT = "one to six numbers wait on the stack through the loops, which touch none of them; smaller tiles would cost more"
WIDE = "two accumulators of 200 to 256 columns take half of all registers, and products take 64 keys at least"
SPILLS = {
    ("ancat", "soft"): KEPT,
    ("attention_sinks", "shares"): KEPT,
    ("bidaf", "bidaf"): WIDE,
    ("bidaf", "bidaf_best"): WIDE,
    ("el_attention", "el_attention"): WIDE,
    ("flash_window", "flash_window"): KEPT,
    ("parallel_context", "parallel"): KEPT,
    ("sha_rnn", "sha_rnn"): WIDE,
    ("t5gemma_tts", "progress"): WIDE,
}
"""Attentions of entries with kernels that spill at the launcher's tiles, and why."""

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

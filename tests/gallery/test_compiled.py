"""What the kernels of entries take on a GPU: the results on record say it of each, and of a few it is measured anew."""

from __future__ import annotations

import json

import pytest

from benchmarks.gallery_compile import reports
from examples.gallery.entry import entries
from examples.gallery.pages import COMPILED

ROUTED = "a table of blocks is asked about every pair of a partial tile, beside the mask, at head dim 128"
WIDE = "the accumulators of 200 to 256 columns fill the registers"
PAIRS = "two captured tensors, or more, are read pair by pair"
SPILLS = {
    ("acmil", "acmil"): WIDE,
    ("adaptive_filter", "adaptive_filter"): "six captured numbers of a head are learnt, each with sums of its own",
    ("ancat", "soft"): PAIRS,
    ("attention_sinks", "shares"): "a normalizer of two branches, each with a logarithm",
    ("bee_rag", "bee_rag"): PAIRS,
    ("bidaf", "bidaf"): WIDE,
    ("bidaf", "bidaf_best"): WIDE,
    ("dam", "dam"): ROUTED,
    ("draft_attention", "draft_attention"): ROUTED,
    ("el_attention", "el_attention"): WIDE,
    ("flash_attention", "flash_attention"): ROUTED,
    ("flash_vsr", "flash_vsr"): ROUTED,
    ("flash_window", "flash_window"): PAIRS,
    ("gated_swin_rmt", "swin_rmt_swat"): "a sigmoid, a slope and a decay are differentiated in one pair",
    ("hip", "hip"): ROUTED,
    ("mega", "mega_laplace"): "an error function and a bias by distance, values twice as wide as keys",
    ("mega", "mega_relu2"): "a bias by distance, values twice as wide as keys",
    ("overlock", "contmix"): PAIRS,
    ("parallel_context", "parallel"): ROUTED,
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

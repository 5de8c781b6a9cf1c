"""Plans of lengths at which nothing may be written down tile by tile, up to the largest length there is."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch

import attndsl as ad
from attndsl.analysis.bounds import Strategy
from attndsl.diagnostics import CallError
from attndsl.runtime import tables
from attndsl.runtime.planner import BlockPlan
from attndsl.runtime.tables import build_table

LONGEST = 2**31 - 1
BLOCK = (1024, 1024)
ROWS = 2**21
masks = ad.masks


def plan(mask: Any, length: int, **how: Any) -> BlockPlan:
    return ad.attention(mask_mod=mask).plan(length, **how)


def halves(q_idx: Any, kv_idx: Any) -> Any:
    """Causal in chunks of 2**30."""
    return (kv_idx <= q_idx) & (kv_idx // 1073741824 == q_idx // 1073741824)


def census(needed: int, full: int, rows: int = ROWS) -> dict[str, int]:
    return {"full": full, "partial": needed - full, "empty": rows * rows - needed}


@pytest.mark.parametrize(
    ("mask", "needed", "full"),
    [
        (masks.full, ROWS**2, ROWS**2),
        (masks.causal, ROWS * (ROWS + 1) // 2, ROWS * (ROWS - 1) // 2),
        (masks.sliding_window(window=1024), 2 * ROWS - 1, 0),
        (masks.sliding_window(window=1025), 2 * ROWS - 1, 0),
        (masks.sliding_window(window=1026), 3 * ROWS - 3, 0),
        (masks.sliding_window(window=5), 2 * ROWS - 1, 0),
        (masks.sliding_window(window=4096), 5 * ROWS - 10, 3 * ROWS - 6),
        (halves, 2**20 * (2**20 + 1), 2**20 * (2**20 - 1)),
    ],
    ids=["full", "causal", "window 1024", "window 1025", "window 1026", "window 5", "window 4096", "halves"],
)
def test_closed_forms_of_the_longest_calls_are_counted(mask: Any, needed: int, full: int) -> None:
    found = plan(mask, LONGEST, block=BLOCK)
    assert found.counts == census(needed, full)
    assert found.nbytes == 0
    assert found.walk is Strategy.CLOSED_FORM


def test_positions_beyond_32_bits_are_positions() -> None:
    ahead = plan(masks.causal, LONGEST, kv_len=4096, q_offset=LONGEST, block=BLOCK)
    assert ahead.counts == {"full": 4 * ROWS, "partial": 0, "empty": 0}
    window = plan(masks.sliding_window(window=1024), 2048, kv_len=LONGEST, q_offset=LONGEST - 2048, block=BLOCK)
    assert window.counts == {"full": 0, "partial": 4, "empty": 2 * ROWS - 4}


def test_the_picture_of_the_longest_call_needs_no_matrix() -> None:
    assert "sparsity 50.0%" in str(plan(masks.causal, LONGEST, block=(2**20, 2**20)))


@pytest.mark.parametrize(
    ("mask", "block", "what"),
    [
        (masks.causal, (1, 128), "2147483647 rows of tiles"),
        (masks.dilated_window(window=4, dilation=3), (128, 128), "bounds on the key do not describe"),
    ],
)
def test_more_rows_than_are_counted_are_refused(mask: Any, block: tuple[int, int], what: str) -> None:
    with pytest.raises(CallError, match=what) as caught:
        plan(mask, LONGEST, block=block)
    assert caught.value.diagnostics[0].code == "too-many-tiles"


def test_tiles_are_not_listed_one_by_one_where_they_are_too_many() -> None:
    with pytest.raises(CallError, match="4398046511104 tiles are too many to list") as caught:
        plan(masks.causal, LONGEST, block=BLOCK).classes()
    assert caught.value.diagnostics[0].code == "too-many-tiles"


def test_a_table_of_too_many_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(masks.document(doc=torch.arange(4096) // 50), 4096)
    assert build_table(found.tiles, found.tiling, torch.device("cpu")).records.shape[0] == 32
    monkeypatch.setattr(tables, "MAX_RECORDS", 31)
    with pytest.raises(CallError, match="a table of 32 runs of key tiles is too large, at most 31") as caught:
        build_table(found.tiles, found.tiling, torch.device("cpu"))
    assert caught.value.diagnostics[0].code == "table-too-large"


def test_packed_documents_of_a_million_tokens_fit_in_little_memory() -> None:
    doc = torch.arange(2**20, dtype=torch.int32) // 700
    attention = ad.attention(mask_mod=masks.document(doc=doc) & masks.causal)
    tracemalloc.start()
    found = attention.plan(2**20)
    table = build_table(found.tiles, found.tiling, torch.device("cpu"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    assert table.nbytes == found.nbytes < 500_000
    # A row of tiles reaches from the start of the document of its first query to its own end.
    first = (torch.arange(0, 2**20, 128) // 700 * 700) // 128
    assert found.counts["full"] + found.counts["partial"] == int((torch.arange(2**13) - first + 1).sum())


def test_what_nothing_decides_is_not_looked_at_tile_by_tile() -> None:
    """Millions of tiles that ranges leave open count as partial in large squares."""
    tracemalloc.start()
    found = plan(lambda q_idx, kv_idx: (q_idx - kv_idx) % 3 == 0, 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.counts == {"full": 0, "partial": 2**26, "empty": 0}
    assert found.walk is Strategy.DENSE
    assert peak < 2e9

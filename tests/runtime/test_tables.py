"""A table lists every tile that is not empty once, in ascending order, and as full only what is full and whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from strategies import Case, mask_cases

import attndsl as ad
from attndsl.diagnostics import CallError
from attndsl.passes.pipeline import run_passes
from attndsl.runtime import tables
from attndsl.runtime.planner import BlockPlan, plan_blocks
from attndsl.runtime.tables import TileTable, build_table


def walked(table: TileTable, plan: BlockPlan) -> torch.Tensor:
    """The classes a kernel takes tiles for, [B', H', Tq, Tk]; a tile visited twice fails."""
    batch, heads, rows, _ = shape = tuple(plan.classes().shape)
    found = torch.zeros(shape, dtype=torch.int8)
    keys = plan.tiling.block[1]
    for b, h, row in torch.cartesian_prod(*map(torch.arange, (batch, heads, rows))).tolist():
        at = b * table.batch_stride + h * table.head_stride + row
        end = 0
        for first, full, last in table.records[int(table.rows[at]) : int(table.rows[at + 1])].tolist():
            assert end <= first <= full <= last
            assert first % keys == 0
            for start in range(first, last, keys):
                found[b, h, row, start // keys] = 1 if start < full else 2
            end = last
    return found


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(mask_cases())
def test_every_tile_is_walked_once_as_what_it_is(case: Case) -> None:
    plan = plan_blocks(
        run_passes(case.variant),
        case.values,
        case.q_len,
        case.kv_len,
        batch=case.batch,
        heads=case.q_heads,
        block=(16, 16),
        q_offset=case.q_offset,
    )
    expected = plan.classes().clone()
    if case.kv_len % 16:
        expected[..., -1].clamp_(max=1)
    table = build_table(plan.tiles, plan.tiling, torch.device("cpu"))
    assert torch.equal(walked(table, plan), expected), case


def test_a_table_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_RECORDS", 3)
    documents = ad.parse("attention d(doc: int tensor[N]) { mask doc[q_idx] == doc[kv_idx] }").d
    plan = documents(doc=torch.arange(200) // 20).plan(200, block=(16, 16))
    with pytest.raises(CallError, match="table-too-large") as caught:
        build_table(plan.tiles, plan.tiling, torch.device("cpu"))
    assert "split the batch" in str(caught.value)

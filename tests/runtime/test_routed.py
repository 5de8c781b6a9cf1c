"""Tables of routed calls, made on the device of the block table, against every pair of their masks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import counted

import attndsl as ad
from attndsl.reference import live_pairs
from attndsl.routing.join import Joined, joins_of
from attndsl.runtime import routed
from attndsl.runtime.arguments import Call, check_call
from attndsl.runtime.facts import FactBook
from attndsl.runtime.tables import Lists, TileTable

masks = ad.masks
MASKS: dict[str, Any] = {
    "causal": masks.causal,
    "full": masks.full,
    "window": masks.sliding_window(window=70),
    "chunked": masks.chunked(chunk=48),
    "prefix by batch": masks.prefix_lm(prefix=torch.tensor([5, 90])),
    "padding": masks.padding(lengths=torch.tensor([77, 200])),
    "documents": masks.causal & masks.document(doc=torch.arange(300) // 37),
    "dilated": masks.dilated_window(window=5, dilation=7),
    "head windows": lambda h, q_idx, kv_idx: (kv_idx <= q_idx) & (q_idx - kv_idx < 30 * (h + 1)),
}
SOLVED = ("causal", "chunked", "full", "window", "padding", "documents", "head windows")
"""Those of which bounds say everything."""


def routed_call(
    mask: Any, live: torch.Tensor, block: tuple[int, int], lengths: tuple[int, int], offset: Any
) -> tuple[Joined, Call]:
    """A call of two batches and two heads."""
    attention = ad.attention(mask_mod=mask)
    table = ad.BlockTable(live, block)
    joined: Joined = joins_of(attention._compilation).of(table, offset)
    values = joined.bindings(attention._values(), table, offset).resolve()
    q, k = (torch.zeros(2, 2, length, 16) for length in lengths)
    call = check_call(joined.compilation.source, values, q, k, k, scale=None, q_offset=offset)
    return joined, call


def walked(table: TileTable, lengths: tuple[int, int], tile: tuple[int, int]) -> torch.Tensor:
    """The classes a kernel would walk, [2, 2, query tiles, key tiles]."""
    rows, columns = (-(-length // size) for length, size in zip(lengths, tile, strict=True))
    found = torch.zeros(2, 2, rows, columns, dtype=torch.int8)
    for b, h, row in itertools.product(range(2), range(2), range(rows)):
        place = b * table.batch_stride + h * table.head_stride + row
        for start, full, end in table.records[table.rows[place] : table.rows[place + 1]].tolist():
            assert (found[b, h, row, start // tile[1] :] == 0).all()
            found[b, h, row, start // tile[1] : -(-full // tile[1])] = 1
            found[b, h, row, full // tile[1] : end // tile[1]] = 2
    return found


@st.composite
def calls(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, int], tuple[int, int], tuple[int, int], Any]:
    lengths = draw(st.tuples(st.sampled_from((1, 63, 128, 200)), st.sampled_from((1, 64, 100, 200))))
    block = draw(st.tuples(st.sampled_from((1, 16, 48, 64)), st.sampled_from((1, 16, 24, 64))))
    tile = draw(st.sampled_from(((16, 16), (64, 32), (32, 64), (128, 128))))
    blocks = [-(-length // size) for length, size in zip(lengths, block, strict=True)]
    shape = [*draw(st.tuples(*[st.sampled_from((1, 2))] * 2)), *blocks]
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    offset = draw(st.sampled_from((0, 9, torch.tensor([0, 40]))))
    return numbers < draw(st.sampled_from((0.05, 0.5, 0.95, 1.0))), block, lengths, tile, offset


@pytest.mark.parametrize("lists", [Lists.KEYS, Lists.QUERIES])
@pytest.mark.parametrize("name", sorted(MASKS))
@given(drawn=calls())
@settings(max_examples=40, deadline=None)
def test_the_device_lists_every_tile_as_what_it_is(name: str, lists: Lists, drawn: Any) -> None:
    live, block, lengths, tile, offset = drawn
    joined, call = routed_call(MASKS[name], live, block, lengths, offset)
    found = FactBook()._routed(joined.compilation.program, call, tile, lists)
    assert (found is not None) == (name in SOLVED)
    if found is not None:
        sizes = {"batch": 2, "heads": 2, "q_len": lengths[0], "kv_len": lengths[1], "q_offset": offset}
        truth = counted(live_pairs(joined.compilation.source, dict(call.values), **sizes), tile).expand(2, 2, -1, -1)
        if lists is Lists.QUERIES:
            truth, lengths, tile = truth.mT, lengths[::-1], tile[::-1]
        # A full tile that overhangs the length is walked as a partial one.
        whole = truth.clone()
        whole[..., lengths[1] // tile[1] :].clamp_(max=1)
        assert torch.equal(walked(found, lengths, tile), whole)


def test_a_table_is_not_read_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    joined, call = routed_call(masks.causal, torch.rand(1, 2, 4, 4) < 0.5, (32, 32), (128, 128), 0)
    read: list[torch.Tensor] = []
    monkeypatch.setattr(FactBook, "_summary", lambda self, tensor: read.append(tensor))
    book = FactBook()
    facts = book.of(joined.compilation.source, joined.compilation.program, call)
    assert book.table(joined.compilation.program, call, facts, (64, 64)) is not None
    assert not read


def test_tables_too_large_to_spread_are_left_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routed, "MAX_UNITS", 10)
    joined, call = routed_call(masks.causal, torch.ones(1, 1, 4, 4, dtype=torch.bool), (32, 32), (128, 128), 0)
    book, program = FactBook(), joined.compilation.program
    assert book._routed(program, call, (64, 64), Lists.KEYS) is None
    found = book.table(program, call, book.of(joined.compilation.source, program, call), (64, 64))
    assert found is not None
    assert walked(found, (128, 128), (64, 64)).tolist() == [[[[1, 0], [2, 1]]] * 2] * 2

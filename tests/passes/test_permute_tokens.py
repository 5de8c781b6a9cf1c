"""A mask over tokens in storage is the mask over positions, its rows and columns permuted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attndsl.frontend.parse import parse
from attndsl.ir.printer import print_variant
from attndsl.ir.variant import Variant
from attndsl.passes.permute_tokens import permute_tokens
from attndsl.passes.pipeline import run_passes
from attndsl.passes.transpose_mask import transpose_mask
from attndsl.reference import live_pairs

GRID = "grid g(t = 2, y = 4, x = 6) tile (1, 2, 3)"
MASKS = {
    "coordinates": "abs(g(q_idx).y - g(kv_idx).y) <= 1 and g(q_idx).t == g(kv_idx).t and g(kv_idx).x >= g(q_idx).x",
    "positions": "kv_idx <= q_idx",
    "both": "kv_idx <= q_idx and g(kv_idx).x != 3 or g(kv_idx - 7).y == 1",
    "tensors": "doc[q_idx] == doc[kv_idx] and kv_idx - q_idx < w",
}
VALUES = {"doc": torch.arange(48) // 5, "w": 4}
SIZES = {"batch": 1, "heads": 1, "q_len": 48, "kv_len": 48}


def variant_of(mask: str) -> Variant:
    (variant,) = parse(f"attention a(doc: int tensor[N], w: int) {{ {GRID} mask {mask} }}")
    return variant


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("last", ["permute_tokens", None])
def test_masks_in_storage(name: str, last: str | None) -> None:
    variant = variant_of(MASKS[name])
    expected = live_pairs(variant, VALUES, **SIZES)
    assert 0 < expected.sum() < expected.numel()
    found = live_pairs(run_passes(variant, last), VALUES, **SIZES)
    moved = torch.arange(48).view(2, 2, 2, 2, 3).transpose(2, 3).reshape(48)
    assert moved[:8].tolist() == [0, 1, 2, 6, 7, 8, 3, 4]
    assert torch.equal(found, expected[..., moved, :][..., moved])


def test_the_mask_seen_from_the_keys_is_permuted_once() -> None:
    variant = variant_of(MASKS["both"])
    mask = live_pairs(run_passes(variant), VALUES, **SIZES)
    transposed = replace(variant, order=None, mask=transpose_mask(variant))
    swapped = live_pairs(transposed, VALUES, **SIZES)
    assert torch.equal(swapped.mT, mask)


def test_nothing_is_left_to_permute() -> None:
    variant = variant_of(MASKS["both"])
    after = permute_tokens(variant)
    assert after.order is None
    assert after.requirements == variant.demands
    assert permute_tokens(after) is after
    assert run_passes(parse(print_variant(after))[0]) == run_passes(after)


def test_spans_follow_the_nodes() -> None:
    text = f"attention a {{ {GRID} mask g(q_idx).x < 3 }}"
    (variant,) = parse(text)
    after = permute_tokens(variant)
    (span,) = after.origins.of(after.mask)
    assert text[span.column - 1 : span.end_column - 1] == "g(q_idx).x < 3"

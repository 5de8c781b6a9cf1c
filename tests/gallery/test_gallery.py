"""Every entry of the gallery against its paper's formula, its plan against every pair, and what it refuses."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from proof import cast, check_forward, check_gradients, check_plan, drawn, unread

import attndsl as ad
from examples.gallery.entry import SIZES, Entry, catalog, entries
from examples.gallery.recorded import recorded

ENTRIES = entries()
TRAINED = {name: entry for name, entry in ENTRIES.items() if entry.trained}
REFUSALS = [
    pytest.param(name, argument, value, id=f"{name}-{argument}{at or ''}")
    for name, entry in ENTRIES.items()
    for argument, outside in entry.refuses.items()
    for at, value in enumerate(outside if isinstance(outside, list) else [outside])
]
INTERPRETED = ("cog_attention", "sparse_transformer", "wenet")
"""Through Triton's interpreter as well: one of each kind of mask, normalizer and gradient."""
LINES = 15
"""Of a program as text."""


def each(chosen: dict[str, Entry]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", chosen.values(), ids=chosen.keys())


@each(ENTRIES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size.length))
def test_forward(entry: Entry, size) -> None:
    check_forward(entry, size)


@each(TRAINED)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size.length))
def test_gradients(entry: Entry, size) -> None:
    check_gradients(entry, size)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted(name: str) -> None:
    check_forward(ENTRIES[name], replace(SIZES[0], batch=1, heads=2))
    check_gradients(ENTRIES[name], replace(SIZES[0], batch=1, heads=2))


@each(ENTRIES)
def test_plans(entry: Entry) -> None:
    with recorded(backend="reference") as calls:
        entry.run(**drawn(entry, SIZES[0]))
    assert calls, "the system never calls an attention"
    for call in calls:
        check_plan(call)


@pytest.mark.parametrize("name, argument, value", REFUSALS)
def test_refusals(name: str, argument: str, value: Any) -> None:
    """A value outside the paper's domain is refused, by name."""
    entry = ENTRIES[name]
    wrong = {**drawn(entry, SIZES[0]), argument: value}
    with pytest.raises(ad.DiagnosticError, match=re.escape(f"`{argument}`")):
        entry.run(**cast(wrong, torch.float32))


def test_entries_are_of_the_catalog() -> None:
    """Every name is one of the catalog's, and no system has two entries."""
    known = {system["system"] for system in catalog()}
    named = Counter(system for entry in ENTRIES.values() for system in entry.systems)
    assert set(named) <= known
    assert not [system for system, times in named.items() if times > 1]


def test_entries_are_short() -> None:
    """The attention itself, without its formula and inputs, is what a reader takes in at a glance."""
    long = {
        name: len(lines) for name, entry in ENTRIES.items() if len(lines := written(entry)) > 15 * len(spent(entry))
    }
    assert not long


def written(entry: Entry) -> list[str]:
    """The lines of the printed programs, but for comments and for what they refuse."""
    lines = [line.strip() for text in spent(entry) for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "require "))]


def spent(entry: Entry) -> list[str]:
    """The distinct programs an entry calls, as text."""
    with recorded(backend="reference") as calls:
        entry.run(**drawn(entry, SIZES[0]))
    return sorted({call.attention.text for call in calls})


def test_numbers_are_read() -> None:
    """The tensors drawn are such that a number misread, a window that is one short, changes the result."""
    found = {(name, number) for name, entry in ENTRIES.items() for number in unread(entry, SIZES[1])}
    assert found == {("tellme", "prompt")}, "where a prompt ends changes how tokens are attended, not what they get"


def test_a_wrong_formula_is_told() -> None:
    """The proof fails where the formula is another one, forward and backward."""
    entry = ENTRIES["wenet"]
    other = replace(entry, formula=lambda q, k, v, chunk, left: entry.formula(q, k, v, chunk, left + 1))
    with pytest.raises(AssertionError, match="result 0"):
        check_forward(other, SIZES[0])
    with pytest.raises(AssertionError, match="gradient of `q`"):
        check_gradients(other, SIZES[0])

"""The pages of the gallery are those of its entries, and what they say is true."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from examples.gallery.entry import catalog, entries
from examples.gallery.pages import CAPABILITIES, DOCS, WAITING, pages

STALE = "run `python -m examples.gallery.pages` and look at the difference"


@pytest.fixture(scope="module")
def made() -> dict:
    return pages()


def test_pages_are_current(made: dict) -> None:
    present = set((DOCS / "gallery").glob("*.svg"))
    assert present == {path for path in made if path.suffix == ".svg"}, STALE
    assert not [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text], STALE


def test_links_lead_somewhere(made: dict) -> None:
    text = made[DOCS / "gallery.md"]
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
    files = re.findall(r"\]\(([^)#]+)\)", text)
    assert [name for name in files if not (DOCS / name).exists()] == []


def test_pictures_are_pictures(made: dict) -> None:
    for path, text in made.items():
        if path.suffix == ".svg":
            assert ElementTree.fromstring(text).tag.endswith("svg"), path.name


def test_the_catalog_is_told_truly() -> None:
    """Every system has its capabilities named, and those that attndsl has all of are shown, no others."""
    assert len({system["system"] for system in catalog()}) == len(catalog()) == 232
    assert {tag for system in catalog() for tag in system["tags"]} <= CAPABILITIES.keys()
    shown = {system for entry in entries().values() for system in entry.systems}
    assert shown == {system["system"] for system in catalog() if WAITING.isdisjoint(system["tags"])}

"""The pages of docs/ are programs: their Python runs top to bottom and prints what they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import FENCE, paragraph

from attndsl.compiler import emit_source
from attndsl.frontend import prelude
from attndsl.frontend.parse import parse
from attndsl.frontend.scope import FUNCTIONS, RESERVED, Stage
from attndsl.ir.ops import FACTS, Form

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if page.stem != "gallery")
"""The gallery is generated, and has a test of its own."""


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the lines above it."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(2)), found[2]) for found in FENCE.finditer(text) if found[1] == language]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_runs_and_prints_what_it_shows(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page.stem == "transformers":
        pytest.importorskip("transformers")
    program = ""
    for line, block in blocks(page, "python"):
        program += "\n" * (line - program.count("\n")) + block + "print()\n"
    script = tmp_path / f"page_{page.stem}.py"  # no name that another module has
    script.write_text(program, encoding="utf-8")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env={**os.environ})
    assert run.returncode == 0, run.stderr
    excerpts = [*blocks(page, "text"), *blocks(page, "py")]
    shown = {block: paragraph(run.stdout, block.splitlines()[0]) for _, block in excerpts}
    if request.config.getoption("--update-goldens"):
        text = page.read_text(encoding="utf-8")
        for old, new in shown.items():
            text = text.replace(old, new)
        page.write_text(text, encoding="utf-8")
        return
    for block, present in shown.items():
        assert block == present


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_texts_of_a_page_compile(page: Path) -> None:
    for _, block in blocks(page, "attn"):
        for variant in parse(block):
            assert emit_source(variant)


def test_every_page_has_programs() -> None:
    assert PAGES
    assert all(blocks(page, "python") for page in PAGES)


def test_the_page_of_the_language_is_complete() -> None:
    """Every operator, function, constant and word is in it, and every keyword of the grammar."""
    page = (DOCS / "language.md").read_text(encoding="utf-8")
    inline = " ".join(re.findall(r"`([^`\n]+)`", page))
    names = FUNCTIONS | RESERVED | prelude.offered(Stage.NORMALIZER) | prelude.offered(Stage.WEIGHT)
    assert not [name for name in names if re.search(rf"\b{name}\b", inline) is None]
    spelt = {facts.text for facts in FACTS.values() if facts.form is not Form.CALL}
    assert not [text for text in spelt if text not in inline.split() and f"`{text}`" not in page]
    grammar = (DOCS.parent / "attndsl" / "frontend" / "grammar.lark").read_text(encoding="utf-8")
    words = set(re.findall(r"^\w+: /(\w+)\\b/", grammar, re.MULTILINE)) - {"if", "else", "or", "and", "not"}
    assert "tile" in words
    assert not [word for word in words if f'"{word}"' not in page]

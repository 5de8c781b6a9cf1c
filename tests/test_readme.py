"""The README is a program: its Python runs top to bottom under Triton's interpreter and prints what the README shows.

Blocks marked `python` are run, `attn` are parsed, `text` and `py` (excerpts of Triton) must appear in the output.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attndsl.frontend.parse import parse

README = Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[tuple[int, str]]:
    """The fenced blocks of these languages, each with the lines above it."""
    text = README.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(2)), found[2]) for found in FENCE.finditer(text) if found[1] in languages]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the README's Python prints."""
    program = ""
    for line, block in blocks("python"):
        program += "\n" * (line - program.count("\n")) + block  # a traceback then names the README's own lines
    script = tmp_path_factory.mktemp("readme") / "README.py"
    script.write_text(program, encoding="utf-8")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("line, block", blocks("text", "py"))
def test_shown_output_is_printed(line: int, block: str, printed: str) -> None:
    assert block.rstrip() in printed


@pytest.mark.parametrize("line, block", blocks("attn"))
def test_texts_parse(line: int, block: str) -> None:
    assert parse(block, f"README.md:{line}")


def test_every_kind_of_block_is_found() -> None:
    assert all(blocks(language) for language in ("python", "text", "py", "attn"))
    assert not blocks("cobol")

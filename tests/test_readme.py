"""The README is a program: its Python runs top to bottom under Triton's interpreter and prints what the README shows.

Blocks marked `python` are run, `attn` are parsed. `text` and `py` (excerpts of Triton) are what the output has from the
block's first line to the next empty one; `--update-goldens` writes them anew.
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
        # A traceback then names the README's own lines. The closing fence leaves room for the empty line.
        program += "\n" * (line - program.count("\n")) + block + "print()\n"
    script = tmp_path_factory.mktemp("readme") / "README.py"
    script.write_text(program, encoding="utf-8")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def paragraph(text: str, first: str) -> str:
    """The lines of a text from this one to the next empty one."""
    _, found, rest = text.partition(f"\n{first}\n")
    assert found, f"nothing prints {first!r}"
    return f"{first}\n{rest}".split("\n\n")[0].rstrip("\n") + "\n"


def test_shown_output_is_printed(printed: str, request: pytest.FixtureRequest) -> None:
    shown = {block: paragraph(printed, block.splitlines()[0]) for _, block in blocks("text", "py")}
    if request.config.getoption("--update-goldens"):
        text = README.read_text(encoding="utf-8")
        for old, new in shown.items():
            text = text.replace(old, new)
        README.write_text(text, encoding="utf-8")
        return
    for block, present in shown.items():
        assert block == present


@pytest.mark.parametrize("line, block", blocks("attn"))
def test_texts_parse(line: int, block: str) -> None:
    assert parse(block, f"README.md:{line}")


def test_every_kind_of_block_is_found() -> None:
    assert all(blocks(language) for language in ("python", "text", "py", "attn"))
    assert not blocks("cobol")

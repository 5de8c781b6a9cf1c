"""The README is a program: its Python runs top to bottom under Triton's interpreter, its texts parse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the line it starts at."""
    text = README.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in FENCE.finditer(text) if match[1] == language]


def test_python_blocks_run_in_order(tmp_path: Path) -> None:
    program = ""
    for line, block in blocks("python"):
        program += "\n" * (line - program.count("\n")) + block  # a traceback then names the README's own lines
    assert program, "the README has no Python"
    script = tmp_path / "README.py"
    script.write_text(program, encoding="utf-8")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("line, text", blocks("attn"))
def test_texts_parse(line: int, text: str) -> None:
    from attndsl.frontend.parse import parse

    assert parse(text, f"README.md:{line}")


def test_blocks_are_found() -> None:
    assert blocks("attn")
    assert not blocks("cobol")

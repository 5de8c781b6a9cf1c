"""Triton decides when it is imported whether it interprets: asking later is refused, not half done."""

from __future__ import annotations

import subprocess
import sys


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_asking_too_late_is_refused() -> None:
    done = run(
        "import os, triton; os.environ['TRITON_INTERPRET'] = '1'\n"
        "from attndsl.runtime.interpreter import is_interpreting; is_interpreting()"
    )
    assert "error[interpreter-too-late]" in done.stderr
    assert "set it before anything imports triton" in done.stderr


def test_asking_in_time_is_granted() -> None:
    done = run(
        "import os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "from attndsl.runtime.interpreter import is_interpreting; print(is_interpreting())"
    )
    assert done.stdout == "True\n"

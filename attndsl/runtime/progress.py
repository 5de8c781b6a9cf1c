"""Saying what is being done, on a terminal; nothing is said elsewhere.

In: what takes its time. Out: something to call with each step of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str], None]


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A line that says what is done, and with which step; it goes when it is done."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(what) as status:
        yield lambda step: status.update(f"{what}: {step}")

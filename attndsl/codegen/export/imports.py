"""The imports of an exported file.

In: the names its text reads. Out: lines, sorted as a linter sorts them.
"""

from __future__ import annotations

from collections.abc import Iterable

IMPORTS = {
    "math": "import math",
    "operator": "import operator",
    "sys": "import sys",
    "warnings": "import warnings",
    "Callable": "from collections.abc import Callable",
    "Iterator": "from collections.abc import Iterator",
    "Sequence": "from collections.abc import Sequence",
    "contextmanager": "from contextlib import contextmanager",
    "nullcontext": "from contextlib import nullcontext",
    "dataclass": "from dataclasses import dataclass",
    "replace": "from dataclasses import replace",
    "cache": "from functools import cache",
    "partial": "from functools import partial",
    "Any": "from typing import Any",
}
THIRD_PARTY = {
    "torch": "import torch",
    "triton": "import triton",
    "tl": "import triton.language as tl",
    "Tensor": "from torch import Tensor",
    "functional": "from torch.nn import functional",
}


def import_lines(used: frozenset[str]) -> Iterable[str]:
    """The imports of the names a text uses, as a linter sorts them."""
    plain = [line for name, line in IMPORTS.items() if name in used and line.startswith("import")]
    others: dict[str, list[str]] = {}
    for name, line in IMPORTS.items():
        if name in used and line.startswith("from"):
            others.setdefault(line.split()[1], []).append(name)
    joined = [f"from {module} import {', '.join(sorted(names))}" for module, names in others.items()]
    third = [line for name, line in THIRD_PARTY.items() if name in used]
    return [*plain, *joined, "", *third]

"""An attention as a file that needs torch and triton alone: what can be one, and writing it.

In: a compilation, and the program with the values its scalars have. Out: a file, whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from attndsl.analysis.obligations import obligations
from attndsl.codegen.export.file import export_text
from attndsl.codegen.export.subject import Subject
from attndsl.codegen.plan import KernelPlan, Specialisation
from attndsl.compiler import Compilation
from attndsl.diagnostics import Reporter, UnsupportedError
from attndsl.ir.variant import Variant
from attndsl.runtime.tiles import FAMILIES, default_tile
from attndsl.version import __version__


def exported(compilation: Compilation, source: Variant, spec: Specialisation) -> str:
    """The text of the file. Raises `UnsupportedError` with every reason why there is none."""
    check_exportable(compilation)
    made_with = f"attndsl {__version__}, torch {torch.__version__}, triton {_triton_version()}"
    subject = Subject(
        source, compilation.program, compilation.derivation, compilation.fingerprint, spec, made_with, _tiles
    )
    return export_text(subject)


def write(path: str | os.PathLike[str], text: str) -> Path:
    """Write a file whole or not at all."""
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    return target


def check_exportable(compilation: Compilation) -> None:
    """Refuse what a file alone cannot do, with every reason."""
    program, reporter = compilation.source, Reporter(UnsupportedError)
    if program.order is not None:
        message = "tokens of this grid are kept tile by tile, and what permutes them stays in attndsl"
        reporter.error("not-exportable", message, help="export the variant over a grid without `tile=`")
    shapes = {param.name: (0,) * param.rank for param in program.tensors}
    for duty in obligations(compilation.program, shapes):
        if duty.depends_on_data:
            message = "an index, a divisor or a shift depends on the score, which no host can check"
            reporter.error("not-exportable", message, program.origins.first(duty.operand))
    reporter.check()


def _tiles(plan: KernelPlan) -> dict[str, tuple[int, int, int, int]]:
    found = {family: default_tile(family, plan) for family in FAMILIES}
    return {family: (tile.block_m, tile.block_n, tile.num_warps, tile.num_stages) for family, tile in found.items()}


def _triton_version() -> str:
    import triton

    version: str = triton.__version__
    return version


def _umask() -> int:
    """The user's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

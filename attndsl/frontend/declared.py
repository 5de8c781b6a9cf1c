"""Parameters of Python variants that are declared: left without a value for now, or named and shared by several mods.

In: `ad.Tensor["H"]` as an annotation or in the place of a value, annotations `int` and `float`, `ad.param(...)`. Out:
`Open` and `Named`, which a trace makes parameters of.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attndsl.diagnostics import ProgramError, fail
from attndsl.frontend.names import RESERVED
from attndsl.frontend.symbols import symbols_in
from attndsl.ir.types import DType


@dataclass(frozen=True, slots=True)
class Open:
    """A parameter that has no value yet: a number where it has no `dims`, else a tensor of so many dimensions."""

    dtype: DType
    dims: tuple[str, ...] | None = None

    @property
    def ndim(self) -> int:
        """How many dimensions its values have."""
        return len(self.dims or ())

    def __str__(self) -> str:
        return described(self.dtype, self.dims)


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """One parameter wherever this object is passed: a value of it, or what it is declared as."""

    name: str
    value: Any

    def __getitem__(self, index: Any) -> Any:
        """An element of a tensor, in the mod that reads it by a name of its module."""
        for symbol in symbols_in(index):
            return symbol.recorder.index(self, index)
        raise fail(ProgramError, "parameter-index", f"`{self.name}` is indexed outside of a mod", help="index a tensor")


INT, FLOAT = Open(DType.I64), Open(DType.F32)
NUMBERS: Mapping[Any, Open] = {int: INT, float: FLOAT, "int": INT, "float": FLOAT}


class TensorKind:
    """What tensors of one kind are declared by: `ad.Tensor["H"]`, `ad.IntTensor["B, N"]`, `ad.BoolTensor[()]`."""

    def __init__(self, dtype: DType) -> None:
        self._dtype = dtype

    def __getitem__(self, dims: str | int | tuple[str | int, ...]) -> Open:
        given = dims if isinstance(dims, tuple) else (dims,)
        names = [name for one in given for name in re.split(r"[\s,]+", str(one)) if name]
        wrong = [name for name in names if name in RESERVED or re.fullmatch(r"[^\W\d]\w*|\d+", name, re.ASCII) is None]
        if wrong:
            help_ = 'write `ad.Tensor["B, H"]`, or `ad.Tensor[()]` for a single element'
            raise fail(ProgramError, "dimension-name", f"`{wrong[0]}` names no dimension", help=help_)
        return Open(self._dtype, tuple(names))


Tensor, IntTensor, BoolTensor = TensorKind(DType.F32), TensorKind(DType.I64), TensorKind(DType.BOOL)


def param(name: str, value: Any) -> Named:
    """One parameter for several mods: pass what this returns to each of them.

    After `w = ad.param("window", 256)`, `near(size=w)` and `penalty(reach=w)` have one parameter `window`, which
    `attn.bind(window=512)` changes for both. `value` is a number, a tensor, or what is declared without a value:
    `int`, `float`, `ad.Tensor["H"]`.
    """
    help_ = 'write `ad.param("window", 256)`, or `ad.param("slopes", ad.Tensor["H"])`'
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
        raise fail(ProgramError, "parameter-name", f"{name!r} cannot name a parameter", help=help_)
    value = NUMBERS.get(value) if isinstance(value, type) else value
    if type(value) not in (int, float) and not isinstance(value, torch.Tensor | Open):
        message = f"`{name}` is neither a number nor a tensor, nor declared as one"
        raise fail(ProgramError, "parameter-type", message, help=help_)
    return Named(name, value)


def described(dtype: DType, dims: tuple[str, ...] | None) -> str:
    """What values of a parameter are, in words."""
    article = "an" if dtype.is_int else "a"
    if dims is None:
        return f"{article} {dtype.word}"
    sizes = f"[{', '.join(dims)}]" if dims else "without dimensions"
    return f"{article} {dtype.word} tensor {sizes}"


def held(value: Any) -> Any:
    """What a named parameter holds; any other value itself."""
    return value.value if isinstance(value, Named) else value


def declaration(annotation: Any, function: Callable[..., Any]) -> Open | None:
    """What a parameter of a function is declared as by its annotation, which may be text."""
    if isinstance(annotation, str) and annotation not in NUMBERS:
        annotation = _evaluated(annotation, function)
    if isinstance(annotation, type | str):
        return NUMBERS.get(annotation)
    return annotation if isinstance(annotation, Open) else None


def _evaluated(annotation: str, function: Callable[..., Any]) -> Any:
    """The value of an annotation where the function was written; none where its names are not known there.

    Names of dimensions are read as they are written: they name no variables, and tools take their quotes away.
    """
    function = inspect.unwrap(function)
    home: Any = function if hasattr(function, "__code__") else type(function).__call__
    try:
        cells = zip(home.__code__.co_freevars, home.__closure__ or (), strict=True)
        scope = {**home.__globals__, **{name: cell.cell_contents for name, cell in cells}}
        written = ast.parse(annotation, mode="eval").body
        if not isinstance(written, ast.Subscript):
            return eval(annotation, scope)
        kind = eval(ast.unparse(written.value), scope)
        return kind[re.sub(r"[\"'()]", "", ast.unparse(written.slice))] if isinstance(kind, TensorKind) else None
    except Exception:  # of any kind: annotations need not be expressions, nor for us
        return None

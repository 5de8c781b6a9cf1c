"""attndsl: write an attention variant as mathematics over coordinates; get a block-sparse, readable kernel.

Names are looked up when they are used, so that importing the package, and reading text with it, imports neither torch
nor triton.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attndsl.version import __version__

_MATH = (
    *("abs", "bit_length", "ceil", "clamp", "cos", "erf", "exp", "exp2", "floor", "gelu", "log", "log2", "maximum"),
    *("minimum", "round", "row_max", "row_solve", "row_sum", "rsqrt", "sigmoid", "silu", "sin", "sqrt", "tan"),
    *("tanh", "where"),
)
_HOME = {
    "attndsl.attention": ("Attention", "Aux", "attention"),
    "attndsl.diagnostics": ("Diagnostic", "DiagnosticError", "VerifyError"),
    "attndsl.frontend.declared": ("BoolTensor", "IntTensor", "Tensor", "param"),
    "attndsl.frontend.decorators": ("mask_mod", "normalizer", "score_mod", "weight_mod"),
    "attndsl.frontend.grids": ("Grid", "grid", "require"),
    "attndsl.frontend.math": _MATH,
    "attndsl.integrations.flex": ("AuxOutput", "AuxRequest", "KernelOptionsWarning", "flex_attention"),
    "attndsl.library.normalizers": ("softmax",),
    "attndsl.loading": ("load", "parse"),
    "attndsl.merging": ("merge",),
    "attndsl.routing.router": ("router",),
    "attndsl.routing.table": ("BlockTable",),
    "attndsl.runtime.planner": ("BlockPlan",),
    "attndsl.runtime.store": ("CacheWarning",),
    "attndsl.serving.paged": ("PagedCache", "paged"),
    "attndsl.serving.varlen": ("packed", "varlen"),
}
_MODULES = {"masks": "attndsl.library.masks", "scores": "attndsl.library.scores"}
_MODULES["normalizers"] = "attndsl.library.normalizers"
_MODULES["weights"] = "attndsl.library.weights"
_MODULES["aux"] = "attndsl.row_outputs"
_MODULES["routers"] = "attndsl.routing.routers"
_NAMES = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted((*_NAMES, *_MODULES))]

if TYPE_CHECKING:
    from attndsl.attention import Attention as Attention
    from attndsl.attention import attention as attention
    from attndsl.loading import load as load
    from attndsl.loading import parse as parse


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module `attndsl` has no attribute `{name}`")


def __dir__() -> list[str]:
    return list(__all__)


class _Package(ModuleType):
    """Keeps `attndsl.attention` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_shadow = name in _NAMES and isinstance(value, ModuleType)
        super().__setattr__(name, getattr(value, name) if is_shadow else value)


sys.modules[__name__].__class__ = _Package

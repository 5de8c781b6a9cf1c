"""A variant as one file that needs torch and triton alone.

In: a variant, what was derived of it, its kernels' plans. Out: the text of a module with those kernels, what launches
and differentiates them, a dense reference in plain torch, and a test of one against the other. The kernels are the
compiler's, those that rely on no facts of a call; what hosts compute is printed from the same derivation.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from attndsl.analysis.backward import DELTA, Backward
from attndsl.analysis.bounds import Strategy
from attndsl.analysis.exponential import divisors, exponential
from attndsl.analysis.obligations import Kind, Obligation, obligations
from attndsl.analysis.streaming import Refusal
from attndsl.analysis.structure import Structure, is_indexed_by_scores, structure_of
from attndsl.codegen.copied import copied, definitions_of
from attndsl.codegen.derivation import Derivation
from attndsl.codegen.export_text import Body, Values, body, call_lines, mapping, names_in, quoted, sequence
from attndsl.codegen.kernels import plan_kernel
from attndsl.codegen.placement import Side
from attndsl.codegen.plan import KernelPlan, Specialisation
from attndsl.codegen.triton import emit_function, helper_sources, rendered
from attndsl.ir import build
from attndsl.ir.nodes import Const, Expr, Load, Reduce, Scalar, Solve, postorder
from attndsl.ir.ops import Op
from attndsl.ir.printer import print_expr, print_variant
from attndsl.ir.types import DType
from attndsl.ir.variant import Param, ScalarParam, TensorParam, Variant

_OWN_NAMES = """
    q k v scale q_offset return_lse values call at live score weight rows sums silent found torch functional lse
    b h q_idx kv_idx q_len kv_len row_max row_sum floor_divide remainder bit_length shift divisor empty
"""
RESERVED = frozenset(_OWN_NAMES.split())
"""What a parameter cannot be called in an exported file."""

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
KINDS = {DType.F32: "float", DType.I64: "int", DType.BOOL: "bool"}
LENGTHS = ((1, 1), (33, 70), (64, 64))
"""What an exported file tests itself with, beside lengths that its requirements name."""

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


Tiles = Mapping[str, tuple[int, int, int, int]]
"""The tile of a kernel on each family of targets: queries, keys, warps, stages."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is exported: the program as written, with the values its scalars have; after its passes; what was derived.

    `made_with` are versions, `tiles` what a launcher uses by default.
    """

    source: Variant
    program: Variant
    derivation: Derivation
    fingerprint: str
    spec: Specialisation
    made_with: str
    tiles: Callable[[KernelPlan], Tiles]


@dataclass(frozen=True, slots=True)
class LaunchText:
    """An entry of the table of kernels."""

    name: str
    tensors: str
    reads: str
    writes: str
    params: str
    keeps_keys: bool
    tiles: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DutiesText:
    """What must hold of a call's reads and divisions; `are_numbers` where lengths, scalars and sizes decide it."""

    messages: tuple[str, ...]
    anywhere: Body
    reached: Body
    are_numbers: bool


@dataclass(frozen=True, slots=True)
class RequirementsText:
    lines: tuple[str, ...]
    results: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class BackwardText:
    reads_delta: bool
    has_sums: bool
    rows: tuple[str, ...]
    by_row: tuple[str, ...]
    by_column: tuple[str, ...]


def export_text(subject: Subject) -> str:
    """The text of the file; the same subject gives the same bytes."""
    file = ExportFile(subject)
    functions = [emit_function(plan) for plan in file.plans]
    seen = {
        "file": file,
        "kernel": _Constants(tuple(dict.fromkeys(name for function in functions for name in function.runtime_args))),
        "kernels": [function.text.strip("\n") for function in functions],
        "helpers": helper_sources({name for function in functions for name in function.helpers}),
        "copies": _copies(any(isinstance(node, Solve) for node in postorder(*subject.source.roots))),
    }
    without = rendered("export.py.jinja", imports=(), **seen)
    return rendered("export.py.jinja", imports=tuple(_imports(names_in(without))), **seen)


@dataclass(frozen=True, slots=True)
class _Constants:
    """What the lines before kernels see."""

    runtime_args: tuple[str, ...]


class ExportFile:
    """What the template sees: finished texts."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.source, self.program, self.derivation = subject.source, subject.program, subject.derivation
        self.symbols = _identifiers(self.source.params)

    @cached_property
    def form(self) -> Backward | None:
        found = self.derivation.derivative
        return None if isinstance(found, Refusal) else found

    @cached_property
    def refused_gradients(self) -> dict[str, str]:
        """The captured floats a file has no gradients of, and why."""
        if self.form is None:
            return {}
        found = {}
        for load in self.derivation.cotangents:
            if isinstance(load, Load) and is_indexed_by_scores(load):
                found[load.tensor] = "which is indexed by scores"
            elif isinstance(load, Load) and structure_of(load) in (Structure.DIAGONAL, Structure.PAIRS):
                found[load.tensor] = "which is indexed by queries and keys together"
        return found

    @cached_property
    def gradients(self) -> tuple[str, ...]:
        """The captured floats a file has gradients of."""
        if self.form is None:
            return ()
        floats = (param.name for param in self.source.tensors if param.dtype.is_float)
        return tuple(name for name in floats if name not in self.refused_gradients)

    @cached_property
    def plans(self) -> tuple[KernelPlan, ...]:
        """The kernels, each with a walk that needs no table."""
        spec = replace(
            self.subject.spec, fast=False, offset_per_batch=True, gradients=frozenset(self.gradients), strategy=None
        )
        left_out = ("backward_diagonal", "backward_pairs")
        names = (name for name in self.derivation.kernels if name not in left_out)
        return tuple(_without_table(self.derivation, name, spec) for name in names)

    @property
    def launches(self) -> tuple[LaunchText, ...]:
        return tuple(map(self._launch, self.plans))

    def _launch(self, plan: KernelPlan) -> LaunchText:
        return LaunchText(
            plan.kernel,
            sequence(plan.tensors, 8),
            sequence(plan.kept, 8),
            sequence(plan.stored, 8),
            sequence((self.symbols[param.name] for param in plan.params), 8),
            plan.side is Side.KEYS,
            tuple((family, repr(tile)) for family, tile in self.subject.tiles(plan).items()),
        )

    @property
    def statistics(self) -> tuple[str, ...]:
        return self.derivation.statistics_kernels

    @property
    def maximum(self) -> str:
        return self.derivation.maximum

    @property
    def has_lse(self) -> bool:
        return self.derivation.streaming.lse is not None

    @property
    def dtype(self) -> str:
        return DTYPES[self.subject.spec.dtype]

    @property
    def head_dim(self) -> int:
        return self.subject.spec.head_dim

    @property
    def v_head_dim(self) -> int:
        return self.subject.spec.v_head_dim

    @property
    def scalars(self) -> str:
        return mapping({self.symbols[param.name]: _python_type(param) for param in self.source.scalars})

    @property
    def tensors(self) -> str:
        described = {
            self.symbols[param.name]: f'("{KINDS[param.dtype]}", {param.rank})' for param in self.source.tensors
        }
        return mapping(described)

    @property
    def learnt(self) -> str:
        return sequence((self.symbols[name] for name in self.gradients), 0)

    @property
    def not_learnt(self) -> str:
        return mapping({self.symbols[name]: quoted(why) for name, why in self.refused_gradients.items()})

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters as keyword arguments."""
        return tuple(map(self._parameter, self.source.params))

    def _parameter(self, param: Param) -> str:
        name = self.symbols[param.name]
        if isinstance(param, TensorParam):
            return f"{name}: Tensor"
        default = "" if param.default is None else f" = {_number(param.default)}"
        return f"{name}: {_python_type(param)}{default}"

    @property
    def values(self) -> str:
        return mapping({name: name for name in self.symbols.values()}, 4)

    @property
    def samples(self) -> str:
        """Values of scalars to test with."""
        return mapping({self.symbols[param.name]: _sample(param) for param in self.source.scalars}, 8)

    @property
    def lengths(self) -> str:
        conditions = [requirement.condition for requirement in self.source.requirements]
        named = [int(node.value) for node in postorder(*conditions) if isinstance(node, Const) and node.dtype.is_int]
        sizes = [*LENGTHS, *((size, size) for size in dict.fromkeys(named) if 1 < size <= 1024)]
        return ", ".join(map(repr, sizes))

    @property
    def requirements(self) -> RequirementsText | None:
        if not self.source.requirements:
            return None
        found = body([one.condition for one in self.source.requirements], self.symbols)
        messages = (quoted(one.message) for one in self.source.requirements)
        return RequirementsText(found.lines, tuple(zip(messages, found.results, strict=True)))

    @cached_property
    def duties(self) -> DutiesText | None:
        """What the host must look at before a kernel runs."""
        shapes = {param.name: (0,) * param.rank for param in self.program.tensors}
        duties = [duty for duty in obligations(self.program, shapes) if not _holds_by_itself(duty)]
        if not duties:
            return None
        broken = [_violation(duty) for duty in duties]
        reached = [_and(_reached(duty), violation) for duty, violation in zip(duties, broken, strict=True)]
        sizes: dict[Expr, str] = {
            leaf: f"{self.symbols[duty.node.tensor]}.shape[{duty.dimension}]"
            for duty in duties
            if isinstance(duty.node, Load) and (leaf := _size_leaf(duty.node.tensor, duty.dimension))
        }
        are_numbers = not any(isinstance(node, Load) for node in postorder(*reached))
        messages = tuple(quoted(_message(duty)) for duty in duties)
        return DutiesText(messages, self._sized(broken, sizes), self._sized(reached, sizes), are_numbers)

    def _sized(self, roots: list[Expr], sizes: Mapping[Expr, str]) -> Body:
        """Values that read sizes of tensors."""
        values = Values(self.symbols)
        used = [leaf for leaf in postorder(*roots) if leaf in sizes]
        for tensor in dict.fromkeys(sizes[leaf].partition(".")[0] for leaf in used):
            values.read(tensor)
        for leaf in used:
            values.name(leaf, sizes[leaf])
        results = values.texts(*roots, short=True)
        return Body(tuple(values.lines), results)

    @cached_property
    def backward(self) -> BackwardText | None:
        form = self.form
        if form is None:
            return None
        formulas = (*(row.value for row in (*form.sums, *form.rows)), form.dscore)
        all_values = (*formulas, *(value for _, value in (*form.dloads, *form.drows)))
        reads_delta = DELTA in postorder(*all_values)
        return BackwardText(reads_delta, bool(form.sums), self._row_values(form), self._by_row(form), self._by_column())

    def _row_values(self, form: Backward) -> tuple[str, ...]:
        values = Values(self.symbols)
        for row in form.rows:
            text = values.texts(row.value, short=True)[0]
            values.lines.append(
                f'rows["{row.name}"] = torch.where(silent[..., None], 0.0, {text})[..., 0].contiguous()'
            )
        return tuple(values.lines)

    def _by_row(self, form: Backward) -> tuple[str, ...]:
        values = Values(self.symbols)
        for name, load in self._captured(Structure.ROW).items():
            self._add(values, load, f'sums["{name}"][..., None]')
        for load, value in form.drows:
            if load.tensor in self.gradients:
                text = values.texts(value, short=True)[0]
                self._add(values, load, f"torch.where(silent[..., None], 0.0, {text})")
        return tuple(values.lines)

    def _by_column(self) -> tuple[str, ...]:
        values = Values(self.symbols)
        for name, load in self._captured(Structure.COLUMN).items():
            self._add(values, load, f'sums["{name}"][:, :, None, :]')
        return tuple(values.lines)

    def _captured(self, structure: Structure) -> dict[str, Load]:
        spec = replace(self.subject.spec, gradients=frozenset(self.gradients))
        return self.derivation.captured(spec, structure)

    def _add(self, values: Values, load: Load, derivatives: str) -> None:
        indices = f"[{', '.join(values.texts(*load.indices, short=True))}]"
        values.lines += call_lines("_add", (f'found["{self.symbols[load.tensor]}"]', indices, derivatives))

    @property
    def mask(self) -> Body:
        mask = self.source.mask
        return Body((), (f"at.number({mask.value})",)) if isinstance(mask, Const) else body((mask,), self.symbols)

    @property
    def score(self) -> Body:
        return body((self.source.score,), self.symbols, {build.SCORE: "score"})

    @property
    def weights(self) -> tuple[str, ...]:
        """From final scores to final weights and lse."""
        values = Values(self.symbols, {build.SCORE: "score"})
        kin = exponential(self.source.normalizer)
        if kin is not None and kin.sinks is not None and isinstance(kin.shift, Reduce):
            self._shift(values, kin.shift, kin.sinks)
        divided = () if kin is None else (kin.shift, kin.divisor)
        found = values.texts(self.source.normalizer, *divided, *divisors(self.source.normalizer), short=True)
        weight = found[0]
        for total in found[1 + len(divided) :]:
            weight = f"torch.where({total} == 0, 0.0, {weight})"
        values.lines.append(f"weight = {weight}")
        if kin is None:
            values.lines.append("lse = None")
        else:
            shift = f"at.number({found[1]})" if isinstance(kin.shift, Const) else found[1]
            values.lines += (
                f"empty = ({found[2]} == 0) | ({shift} == -torch.inf)",
                f"lse = torch.where(empty, -torch.inf, {shift} + torch.log(torch.where(empty, 1.0, {found[2]})))",
                "lse = lse.expand(*live.shape[:-1], 1).squeeze(-1)",
            )
        values.name(build.WEIGHT, "weight")
        final = values.texts(self.source.weight, short=True)[0]
        final = f"at.number({final})" if isinstance(self.source.weight, Const) else final
        return (*values.lines, f"return {final}, lse")

    def _shift(self, values: Values, shift: Expr, sinks: tuple[Expr, ...]) -> None:
        """A shift under which no term overflows: the row's maximum or the largest sink; 0 in a row with neither."""
        largest, *others = values.texts(shift, *sinks, short=True)
        values.lines.append(f"shift = {largest}.detach()")
        for sink, text in zip(sinks, others, strict=True):
            text = f"at.number({text})" if isinstance(sink, Const) else f"{text}.detach()"
            values.lines.append(f"shift = torch.maximum(shift, {text})")
        values.lines.append("shift = torch.where(shift == -torch.inf, 0.0, shift)")
        values.name(shift, "shift")

    @property
    def sampling(self) -> tuple[str, ...]:
        """Random captured tensors, those others are indexed by before these."""
        lines: list[str] = []
        loads: dict[str, list[Load]] = {}
        for node in postorder(*self.source.roots):
            if isinstance(node, Load):
                loads.setdefault(node.tensor, []).append(node)
        for name in (*loads, *(param.name for param in self.source.tensors if param.name not in loads)):
            param = self.source.param(name)
            assert isinstance(param, TensorParam)
            values = Values(self.symbols)
            found = loads.get(name, [])
            indices = [
                f"[{', '.join(values.texts(*(load.indices[axis] for load in found), short=True))}]"
                for axis in range(param.rank)
            ]
            place = f'at.call.values["{self.symbols[name]}"] = '
            call = call_lines("_tensor", ("at", quoted(KINDS[param.dtype]), *indices), 4 + len(place))
            lines += (*values.lines, place + call[0], *call[1:])
        return tuple(lines)

    @property
    def docstring(self) -> str:
        return docstring(self)


def docstring(file: ExportFile) -> str:
    """The head of the file: what it serves, where it came from."""
    name, heads = file.source.name, f"{file.head_dim}"
    arguments = ", ".join(f"{symbol}={symbol}" for symbol in file.symbols.values())
    given = f", {arguments}" if arguments else ""
    parts = [
        f"{name}: an attention that needs torch and triton alone, generated by attndsl.",
        f"    out = attention(q, k, v{given})",
        f"q (B, Hq, Nq, {heads}), k (B, Hkv, Nk, {heads}) and v (B, Hkv, Nk, {file.v_head_dim}) are {file.dtype}, on a "
        f"GPU, or\nanywhere with TRITON_INTERPRET=1; Hkv divides Hq, strides are free. `scale` defaults to "
        "1/sqrt(head dim), `q_offset`\nis the position of the first query, an int or an int tensor (B,). `reference` "
        "takes any float dtype and head dim.\n`python` on this file compares the two.",
        print_variant(file.source).rstrip(),
        "\n".join(_remarks(file)),
        f"fingerprint {file.subject.fingerprint}\nmade with   {file.subject.made_with}",
        "The parts that are attndsl's: Copyright (c) 2026 The attndsl authors\nSPDX-License-Identifier: MIT",
    ]
    text = "\n\n".join(part for part in parts if part)
    return '"""' + text.replace("\\", "\\\\").replace('"""', "'''") + '\n"""'


def _remarks(file: ExportFile) -> Iterable[str]:
    """What a user of the file must know."""
    dense = [plan.kernel for plan in file.plans if plan.walk.strategy is Strategy.DENSE]
    if dense and file.program.mask is not build.TRUE:
        yield "Tiles: all are visited and masked, as bounds do not describe this mask; tables for it are attndsl's."
    else:
        yield "Tiles: those the mask leaves empty are skipped, from bounds the kernels compute."
    if file.form is None:
        yield "Gradients: none, because"
        reasons = file.derivation.derivative
        assert isinstance(reasons, Refusal)
        yield from (f"  {reason.message}" for reason in reasons.reasons)
        return
    yield f"Gradients: {', '.join(('q', 'k', 'v', *(file.symbols[name] for name in file.gradients)))}."
    for name, why in file.refused_gradients.items():
        yield f"  None of `{file.symbols[name]}`, {why}: a call refuses it where it requires grad."


def _copies(solves: bool) -> tuple[str, ...]:
    """Functions of this package that files use, those of thresholds where there is one."""
    return (
        *(definitions_of("roots.py") if solves else ()),
        *copied("dense.py", "floor_divide", "remainder", "_divisor", "bit_length", "_gather"),
        *definitions_of("guarded.py"),
        *copied("reference.py", "_Rounded", "_RoundedGradient"),
        *copied("runtime/interpreter.py", "silent_arithmetic", "mend_interpreter"),
        *copied("runtime/interpreter.py", "_multiply_bfloat16_by_value", "_spread_truth_values"),
    )


def _without_table(derivation: Derivation, name: str, spec: Specialisation) -> KernelPlan:
    """A kernel that asks the host for nothing: where bounds do not say which tiles are live, it visits all."""
    plan = plan_kernel(derivation, name, spec)
    return plan_kernel(derivation, name, replace(spec, strategy=Strategy.DENSE)) if plan.reads_table else plan


def _identifiers(params: Iterable[Param]) -> dict[str, str]:
    """What each parameter is called in the file."""
    found: dict[str, str] = {}
    for param in params:
        name = f"arg{param.name}" if param.name.startswith(("value_", "row_", "_")) else param.name
        while name in RESERVED or name in found.values() or keyword.iskeyword(name) or keyword.issoftkeyword(name):
            name += "_"
        found[param.name] = name
    return found


def _python_type(param: Param) -> str:
    return "int" if param.dtype.is_int else "float"


def _number(value: int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _sample(param: ScalarParam) -> str:
    if param.default is not None:
        return _number(param.default)
    return "16" if param.dtype.is_int else "0.5"


def _imports(used: frozenset[str]) -> Iterable[str]:
    """The imports of the names a text uses, as a linter sorts them."""
    plain = [line for name, line in IMPORTS.items() if name in used and line.startswith("import")]
    others: dict[str, list[str]] = {}
    for name, line in IMPORTS.items():
        if name in used and line.startswith("from"):
            others.setdefault(line.split()[1], []).append(name)
    joined = [f"from {module} import {', '.join(sorted(names))}" for module, names in others.items()]
    third = [line for name, line in THIRD_PARTY.items() if name in used]
    return [*plain, *joined, "", *third]


def _holds_by_itself(duty: Obligation) -> bool:
    """Whether the operand is a number that is in range."""
    if not isinstance(duty.operand, Const) or duty.kind is Kind.INDEX:
        return False
    value = int(duty.operand.value)
    return value != 0 if duty.kind is Kind.DIVISOR else 0 <= value < 64


def _size_leaf(tensor: str, dimension: int) -> Scalar:
    """What stands for the size of a tensor."""
    return build.scalar(f"size {tensor} {dimension}", DType.I64)


def _violation(duty: Obligation) -> Expr:
    """True where a duty is broken."""
    if duty.kind is not Kind.INDEX:
        return duty.violation
    assert isinstance(duty.node, Load)
    below = build.apply(Op.LT, duty.operand, build.integer(0))
    above = build.apply(Op.GE, duty.operand, _size_leaf(duty.node.tensor, duty.dimension))
    return build.disjunction([below, above])


def _reached(duty: Obligation) -> Expr:
    """True where the pair is live and the branch is taken."""
    ways = [build.conjunction(list(guards)) if guards else build.TRUE for guards in duty.reached]
    return build.disjunction(ways)


def _and(left: Expr, right: Expr) -> Expr:
    return right if left is build.TRUE else build.apply(Op.AND, left, right)


def _message(duty: Obligation) -> str:
    operand, node = print_expr(duty.operand), print_expr(duty.node)
    match duty.kind:
        case Kind.DIVISOR:
            return f"`{node}` divides by zero"
        case Kind.SHIFT:
            return f"`{node}` shifts by `{operand}`, not 0 to 63"
    assert isinstance(duty.node, Load)
    where = f"index `{operand}` of `{duty.node.tensor}` leaves dimension {duty.dimension}"
    return f"{where} at a live pair: pass a larger tensor, mask the pair, or clamp the index"

"""Calls of attentions inside `torch.compile` and `torch.export`: what their tracers are shown of a call.

In: an attention and the arguments of a call, while a graph is being made. Out: what the call returns, by one operator.

torch's compiler traces this module: it reads the values of parameters where an attention holds them, so that they are
inputs of the graph, and guards whatever it branches on. What it must not trace is marked as constant: functions whose
results depend on their arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attndsl.analysis.streaming import LSE
from attndsl.compiler import Compilation
from attndsl.diagnostics import CallError, Reporter, UnsupportedError, fail
from attndsl.frontend.bindings import Bindings
from attndsl.operations import MAX_SCORE, returned_rows
from attndsl.operators import attend
from attndsl.programs import counted_tensors, joined_text, names_of, plans_by_floats, text_of_masks
from attndsl.routing.join import layout_of
from attndsl.routing.table import BlockTable
from attndsl.runtime.arguments import Value
from attndsl.runtime.autograd import cast_by_autocast
from attndsl.runtime.backends import Backend, backend_named
from attndsl.runtime.statistics import Mass, wanted_statistics

OUTSIDE = "do that outside of the graph"

names_in_graph = torch.compiler.assume_constant_result(names_of)
rows_in_graph = torch.compiler.assume_constant_result(returned_rows)
masks_in_graph = torch.compiler.assume_constant_result(text_of_masks)
counted_in_graph = torch.compiler.assume_constant_result(counted_tensors)
planned_in_graph = torch.compiler.assume_constant_result(plans_by_floats)
joined_in_graph = torch.compiler.assume_constant_result(joined_text)


def call(
    eager: Callable[..., Any],
    compilation: Compilation,
    bindings: Bindings,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    blocks: Any,
    return_aux: Any,
    check: bool,
    backend: str,
    **how: Any,
) -> Any:
    """The result of calling the attention `eager`, of this compilation and bindings."""
    reason = _left_out(q, blocks, backend_named(backend), check, bindings)
    if reason is not None:
        return outside(
            reason, eager, q, k, v, blocks=blocks, return_aux=return_aux, check=check, backend=backend, **how
        )
    # What is read here torch's compiler watches: another program of this fingerprint means the same, except for what it
    # asks of calls.
    program = f"# {compilation.fingerprint}\n{compilation.text()}"
    if compilation.source.requirements:
        id(compilation)
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
        _check_no_parameters(bindings)
    q, k, v = cast_by_autocast(q, k, v)
    values: Mapping[str, Value] = bindings.resolve(q.device)
    if blocks is not None:
        program, values = _joined(program, values, blocks, q, k, how["q_offset"])
    return _attend(program, values, q, k, v, return_aux=return_aux, backend=backend, **how)


def outside(reason: str, eager: Callable[..., Any], *call: Any, **how: Any) -> Any:
    """A call that breaks the graph, and of which nothing is exported."""
    if torch.compiler.is_exporting():
        raise fail(UnsupportedError, "not-exportable", f"a graph has no place for {reason}", help=OUTSIDE)
    torch._dynamo.graph_break(msg=f"attndsl: a graph has no place for {reason}")
    return _run(eager, *call, **how)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run(eager: Callable[..., Any], *call: Any, **how: Any) -> Any:
    return eager(*call, **how)


def _left_out(q: Any, blocks: Any, backend: Backend, check: bool, bindings: Bindings) -> str | None:
    """What of a call cannot be in a graph."""
    if not isinstance(q, Tensor):
        return "what is no tensor"
    if bindings.are_open:
        return "a parameter without a value: bind it"
    if check:
        return "`check=True`, which compares values"
    if backend is Backend.REFERENCE:
        return '`backend="reference"`, which is dense'
    if q.device.type not in ("cpu", "cuda"):
        return f"the dense reference, which serves tensors on {q.device.type}"
    if blocks is not None and not isinstance(blocks, BlockTable):
        return "`blocks` of that kind, whose lists are read to make a table: make the `BlockTable` before, and pass it"
    return None


def _attend(
    program: str,
    values: Mapping[str, Value],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None,
    enable_gqa: bool,
    q_offset: int | Tensor,
    return_aux: Any,
    backend: str,
) -> Any:
    """The operator over the values of parameters, and what it returns as an eager call returns it."""
    wanted = wanted_statistics(return_aux)
    masses: tuple[Mass, ...] = () if wanted is None else wanted.masses
    predicates = masks_in_graph(*(mass.variant for mass in masses))
    entropy = wanted is not None and "entropy" in wanted.names
    given = (values, *(mass.bound.resolve(q.device) for mass in masses))
    tensors, integers, floats = _by_kind((*names_in_graph(program), *names_in_graph(predicates)), given)
    of_tensor = isinstance(q_offset, Tensor)
    offsets, offset = (q_offset, 0) if of_tensor else (None, q_offset)
    by_values = of_tensor or any(not tensor.is_floating_point() for tensor in tensors)
    by_values = by_values or planned_in_graph(program)
    by_values = by_values or any(_learns(values[name]) for name in counted_in_graph(program))
    numbers = (offsets, offset, scale, enable_gqa)
    how = (program, predicates, entropy, backend)
    out, *rows = attend(q, k, v, tensors, integers, floats, *numbers, *how, by_values=by_values)
    if wanted is None:
        return out
    names = rows_in_graph(program, predicates, entropy)
    named = dict(zip(names, rows, strict=False))
    lse, most = named.pop(LSE.name, None), named.pop(MAX_SCORE)
    return out, wanted.of(lse, most, named)


def _learns(value: Value) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _by_kind(
    names: Sequence[Sequence[tuple[str, str]]], given: Sequence[Mapping[str, Value]]
) -> tuple[list[Tensor], list[int], list[float]]:
    """The values of parameters by kind, in order."""
    tensors, integers, floats = [], [], []
    for params, values in zip(names, given, strict=True):
        for name, kind in params:
            value: Any = values[name]
            if kind == "tensor":
                tensors.append(value)
            elif kind == "int":
                integers.append(value)
            else:
                floats.append(float(value))
    return tensors, integers, floats


def _joined(
    program: str, values: Mapping[str, Value], table: BlockTable, q: Tensor, k: Tensor, q_offset: int | Tensor
) -> tuple[str, Mapping[str, Value]]:
    """The program whose mask also asks a block table, and the values of its parameters."""
    if not _fits(table, q, k):
        table.check_fits(q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.device)
    layout = layout_of(table, q_offset)
    sizes = (layout.queries, layout.keys, layout.by_batch, layout.by_head, layout.offset_by_batch)
    program, live, first, key_blocks = joined_in_graph(program, *sizes)
    added: dict[str, Value] = {live: table.live, first: q_offset}
    if isinstance(table.block[1], Tensor):
        added[key_blocks] = table.block[1]
    return program, {**values, **added}


def _fits(table: BlockTable, q: Tensor, k: Tensor) -> bool:
    """Whether a table is for calls of these sizes; said in words by `BlockTable.check_fits`."""
    (batch, heads, rows, columns), (bq, bk) = table.live.shape, table.block
    by_batch = batch == 1 or batch == q.shape[0]
    by_head = heads == 1 or heads == q.shape[1]
    by_keys = bk.shape[0] == k.shape[2] if isinstance(bk, Tensor) else columns == -(-k.shape[2] // bk)
    return by_batch and by_head and rows == -(-q.shape[2] // bq) and by_keys


def _check_no_parameters(bindings: Bindings) -> None:
    """Refuse what a graph would hold a copy of, though it is there to be learnt."""
    reporter = Reporter(CallError)
    for name, bound in bindings.captured.items():
        if type(bound.value) is torch.nn.Parameter:
            message = f"`{name}` is captured: an exported graph would keep the value it has now, and never learn it"
            help_ = f"bind it in `forward`, `self.attn.bind({name}=...)(q, k, v)`, or export with `strict=True`"
            reporter.error("captured-parameter", message, help=help_)
    reporter.check()

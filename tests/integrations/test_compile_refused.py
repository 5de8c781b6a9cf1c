"""What a graph has no place for breaks it, and is not exported; what is exported runs where the operators are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled import WINDOW, Calling, Layer, check, counted, flat, inputs

import attndsl as ad
from attndsl.diagnostics import CallError, UnsupportedError

pytestmark = [
    pytest.mark.usefixtures("forgotten"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # torch's compiler warns of torch itself
]


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "check": (lambda q, k, v: WINDOW(q, k, v, check=True), "check=True"),
    "reference": (lambda q, k, v: WINDOW(q, k, v, backend="reference"), 'backend="reference"'),
    "router": (lambda q, k, v: WINDOW(q, k, v, blocks=ad.routers.moba(block=16, top_k=1)), "BlockTable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_has_no_place_for_breaks_it(name: str) -> None:
    function, reason = REFUSED[name]
    args = [one.detach() for one in inputs(33)]
    with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
        torch.compile(function, fullgraph=True, backend="eager")(*args)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(function, backend="eager")(*args), function(*args))


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_has_no_place_for_is_not_exported(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason) as caught:
        torch.export.export(Calling(function), tuple(inputs(33)), strict=False)
    assert [one.code for one in caught.value.diagnostics] == ["not-exportable"]


@pytest.mark.parametrize(
    "how, code",
    [({"backend": "fpga"}, "unknown-backend"), ({"return_aux": ["weights"]}, "unknown-aux"), ({}, "batch-mismatch")],
)
def test_mistakes_are_told_as_outside(how: dict[str, Any], code: str) -> None:
    q, k, v = (one.detach() for one in inputs(20))
    with pytest.raises(CallError) as caught:
        torch.compile(lambda q, k, v: WINDOW(q, k, v, **how), backend="eager")(q, k if how else k[:1], v)
    assert [one.code for one in caught.value.diagnostics] == [code]


def test_a_variant_without_gradients_says_so_when_the_graph_is_made() -> None:
    table = torch.zeros(9, requires_grad=True)
    attend = ad.attention(score_mod=lambda score: score + table[ad.floor(ad.clamp(score, 0.0, 8.0)).to(torch.int64)])
    with pytest.raises(Exception, match="depends on the score"):
        counted(attend)[0](*inputs(20))


# Export.


@pytest.mark.parametrize("binds, strict", [(True, False), (False, True)])
def test_an_exported_layer_runs_where_only_the_operators_are(binds: bool, strict: bool, tmp_path: Path) -> None:
    layer, length = Layer(binds=binds), torch.export.Dim("length", min=2, max=60)
    args = tuple(inputs(40))
    shapes = {name: {2: length} for name in "qkv"}
    exported = torch.export.export(layer, args, dynamic_shapes=shapes, strict=strict)
    assert "slopes" in exported.graph_signature.parameters
    assert exported.graph_signature.buffers == ("documents",)
    assert not exported.constants
    others = tuple(one.detach() for one in inputs(51))
    expected = layer(*others)
    check(flat(exported.module()(*others)), flat(expected), 0.0)
    torch.export.save(exported, tmp_path / "layer.pt2")
    torch.save((others, expected), tmp_path / "data.pt")
    program = (
        "import sys, torch, attndsl.operators\n"
        "given, expected = torch.load(sys.argv[2])\n"
        "found = torch.export.load(sys.argv[1]).module()(*given)\n"
        "torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)"
    )
    run = [sys.executable, "-c", program, str(tmp_path / "layer.pt2"), str(tmp_path / "data.pt")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_exported_graph_must_not_keep_a_copy_of_what_is_learnt() -> None:
    with pytest.raises(CallError) as caught:
        torch.export.export(Layer(), tuple(inputs(40)), strict=False)
    assert [one.code for one in caught.value.diagnostics] == ["captured-parameter"]

"""Head dims that are no powers of two: how they are taken apart, how kernels read, and that they are right."""

from __future__ import annotations

import ast
import os
import re

import pytest
import torch
from compare import assert_rows_close
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import TOLERANCE, interpreted, variant

import attndsl as ad
from attndsl.codegen.head_dims import LEAST, columns_of, computed, padded
from attndsl.codegen.plan import Specialisation
from attndsl.compiler import Compilation

CAUSAL = "mask kv_idx <= q_idx"
TAKEN = """
attention taken(q_0: tensor[H], offs_d_1: int, acc_0: float) {
    mask   kv_idx <= q_idx + offs_d_1
    score  score * acc_0 + q_0[h]
}
"""
KERNELS = ("forward", "backward_dq", "backward_dkv")


@pytest.mark.parametrize(
    "head_dim, widths",
    [
        (1, [16]),
        (16, [16]),
        (17, [32]),
        (24, [32]),
        (32, [32]),
        (33, [32, 16]),
        (48, [32, 16]),
        (49, [64]),
        (64, [64]),
        (72, [64, 16]),
        (80, [64, 16]),
        (96, [64, 32]),
        (97, [128]),
        (112, [128]),
        (128, [128]),
        (160, [128, 32]),
        (192, [128, 64]),
        (193, [256]),
        (256, [256]),
    ],
)
def test_pieces(head_dim: int, widths: list[int]) -> None:
    assert [columns.width for columns in columns_of(head_dim)] == widths


def test_pieces_cover_a_head_dim() -> None:
    """Without a gap, in powers of two a matrix product takes, padded nowhere but at the end, and with fewer columns
    than one piece would have."""
    for head_dim in range(1, 257):
        found = columns_of(head_dim)
        widths = [columns.width for columns in found]
        assert [columns.start for columns in found] == [sum(widths[:at]) for at in range(len(found))]
        assert all(width >= LEAST and width & (width - 1) == 0 for width in widths)
        assert not any(columns.is_padded for columns in found[:-1])
        assert found[-1].start < head_dim <= computed(head_dim) <= padded(head_dim)
        assert found[-1].is_padded == (computed(head_dim) > head_dim)
        assert (len(found) == 1) == (computed(head_dim) == padded(head_dim))
        assert len({columns.suffix for columns in found}) == len(found)


def source(kernel: str, head_dim: int, v_head_dim: int, text: str = CAUSAL, dtype: str = "bf16") -> str:
    spec = Specialisation(dtype, head_dim, v_head_dim)
    return Compilation(variant(text)).kernel(kernel, spec).text


def test_a_forward_reads_as_by_hand() -> None:
    text = source("forward", 96, 96)
    for line in (
        "offs_d_0 = tl.arange(0, 64)",
        "offs_d_1 = 64 + tl.arange(0, 32)",
        "q_1 = tl.load(q_tile_1)",
        "acc_0 = tl.zeros([BLOCK_M, 64], tl.float32)",
        "acc_1 = tl.zeros([BLOCK_M, 32], tl.float32)",
        "s = tl.dot(q_0, k_0)\n        s = tl.dot(q_1, k_1, s)",
        "acc_1 = tl.dot(p.to(v_1.dtype), v_1, acc_1 * alpha[:, None])",
        "out_1 = acc_1 / l_i[:, None]",
        "tl.store(out_tile_1, out_1.to(Out.dtype.element_ty), mask=row_ok[:, None])",
    ):
        assert line in text, line
    assert "< 96" not in text


def test_the_last_piece_is_padded() -> None:
    text = source("forward", 80, 72)
    assert "q_1 = tl.load(q_tile_1)" in text
    assert "v_1 = tl.load(v_tile_1, mask=(offs_d_1[None, :] < 72), other=0.0)" in text
    assert "mask=row_ok[:, None] & (offs_d_1[None, :] < 72))" in text
    assert "offs_d_0[None, :] <" not in text
    assert "offs_dv" not in text


def test_values_have_pieces_of_their_own() -> None:
    """Keys of 192 with values of 128, as of multi-head latent attention."""
    forward, dq, dkv = (source(kernel, 192, 128) for kernel in KERNELS)
    assert "offs_dv = tl.arange(0, 128)" in forward
    assert "acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])" in forward
    assert "dw = tl.dot(do, tl.trans(v))" in dq
    assert "dq_1 = tl.dot(ds.to(k_1.dtype), tl.trans(k_1), dq_1)" in dq
    assert "dv = tl.dot(p.to(do.dtype), do, dv)" in dkv
    assert "s = tl.dot(k_0, q_0)\n                s = tl.dot(k_1, q_1, s)" in dkv


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dims", [(80, 72), (192, 128), (48, 96), (256, 48)])
def test_every_name_is_assigned_before_it_is_read(kernel: str, dims: tuple[int, int]) -> None:
    """And users may call their parameters what pieces are called."""
    module = ast.parse(source(kernel, *dims, text=TAKEN))
    function = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == kernel)
    names = [node for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)]
    known = {arg.arg for arg in function.args.args} | {"tl", "range", "INF", "LOG2E"}
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names if isinstance(node.ctx, ast.Load)} <= stored | known
    assert not stored & {arg.arg for arg in function.args.args} - {"Q", "K", "V", "Out", "DOut", "DQ", "DK", "DV"}


@pytest.mark.parametrize("head_dim", [64, 128, 50, 112])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_piece_has_no_numbers(kernel: str, head_dim: int) -> None:
    assert not re.search(r"\b(q|k|v|do|dq|dk|dv|acc|offs_d)_[01]\b", source(kernel, head_dim, head_dim))


def test_products_in_single_precision_stay_so() -> None:
    text = source("forward", 96, 96, dtype="fp32")
    assert text.count("tl.dot(") == text.count('input_precision="ieee")')


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles in this process")
def test_pieces_take_less_of_a_gpu() -> None:
    """Than the head dim they would be padded to, with the same tiles, and spill nothing."""
    (attention,) = ad.parse("attention causal { mask kv_idx <= q_idx }")
    whole, pieces = (
        attention.compile_for("cuda:90", dtype=torch.bfloat16, head_dim=head_dim).kernels for head_dim in (128, 96)
    )
    for padded_one, exact in zip(whole, pieces, strict=True):
        assert exact.tile == padded_one.tile
        assert exact.spilled_bytes == 0
        assert exact.shared_bytes <= 0.8 * padded_one.shared_bytes
        assert exact.instructions["wgmma"] > 0


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles in this process")
def test_latent_attention_spills_nothing() -> None:
    (attention,) = ad.parse("attention causal { mask kv_idx <= q_idx }")
    kernels = attention.compile_for("cuda:90", dtype=torch.bfloat16, head_dim=192, v_head_dim=128).kernels
    assert [kernel.spilled_bytes for kernel in kernels] == [0, 0, 0]
    assert all(kernel.instructions["wgmma"] > 0 for kernel in kernels)


DIMS = [(96, 96), (192, 192), (80, 80), (48, 48), (192, 128), (72, 96), (33, 160), (100, 48)]
PROGRAMS = {
    "causal": CAUSAL,
    "hidden keys": "attention hidden(t: tensor[N]) { mask kv_idx <= q_idx score score + log(t[kv_idx]) }",
    "sink": "attention sinks(t: tensor[H]) { mask kv_idx <= q_idx normalizer softmax(sink = t[h]) }",
    "two terms": "mask kv_idx <= q_idx weight weight + 0.25",
    "two passes": "mask kv_idx <= q_idx weight weight * weight",
    "thresholds": "mask kv_idx <= q_idx normalizer sparsemax()",
    "distances": "attention far(t: tensor[H, N]) { mask kv_idx <= q_idx score score + t[h, q_idx - kv_idx] }",
}


class TestInterpreted:
    pytestmark = interpreted

    @pytest.mark.parametrize("dims", DIMS, ids=str)
    def test_forward_and_gradients(self, dims: tuple[int, int]) -> None:
        check(PROGRAMS["causal"], dims, 0)

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_every_kind_of_program(self, name: str) -> None:
        check(PROGRAMS[name], (48, 80), 1)

    @settings(max_examples=12)
    @given(st.sampled_from(DIMS), st.sampled_from(sorted(PROGRAMS)), st.integers(0, 99))
    def test_programs_at_all_dims(self, dims: tuple[int, int], name: str, seed: int) -> None:
        check(PROGRAMS[name], dims, seed)


def check(text: str, dims: tuple[int, int], seed: int) -> None:
    """A call and its gradients against the reference in float64, per row."""
    torch.manual_seed(seed)
    length, (head_dim, v_head_dim) = 18 + seed % 5, dims
    (attention,) = ad.parse(text if "attention" in text else f"attention test() {{ {text} }}")
    shapes = {1: (length,), 2: (2, length)}
    values = {
        param.name: torch.rand((2,) if param.dims == ("H",) else shapes[param.rank]).requires_grad_()
        for param in attention.variant.tensors
    }
    sizes = (head_dim, head_dim, v_head_dim)
    q, k, v = (torch.randn(1, 2, length, size, requires_grad=True) for size in sizes)
    inputs = (q, k, v, *values.values())
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    found = attention.bind(**values)(q, k, v)
    names = dict(zip(values, exact[3:], strict=True))
    wanted = attention.bind(**names).reference(*exact[:3])
    dout = torch.randn_like(found)
    assert_rows_close(found, wanted, TOLERANCE[torch.float32])
    gradients = torch.autograd.grad(found, inputs, dout)
    expected = torch.autograd.grad(wanted, exact, dout.double())
    for one, other in zip(gradients, expected, strict=True):
        assert_rows_close(one, other, TOLERANCE[torch.float32])

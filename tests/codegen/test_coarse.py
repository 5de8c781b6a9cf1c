"""Tables of blocks are read once for every step of keys: which reads are, and that rows stay what they are."""

from __future__ import annotations

import pytest
import torch
from compare import assert_rows_close
from launches import TOLERANCE, check, interpreted, program

import attndsl as ad
from attndsl.codegen.burden import pair_reads
from attndsl.codegen.coarse import coarse_reads
from attndsl.codegen.plan import KernelPlan, Specialisation
from attndsl.compiler import Compilation
from attndsl.frontend.parse import parse

TABLE = "attention t(seen: bool tensor[Q, K], doc: int tensor[N], bias: tensor[Q, K]) {{ mask kv_idx <= q_idx and {} }}"


def plan(mask: str, name: str = "forward", **spec: object) -> KernelPlan:
    return Compilation(parse(TABLE.format(mask))[0]).kernel(name, Specialisation(**spec)).plan


@pytest.mark.parametrize(
    "mask, sizes, reads",
    [
        ("seen[q_idx // 16, kv_idx // 16]", [16], 0),
        ("seen[q_idx, kv_idx // 4] and bias[q_idx, kv_idx // 64] > 0.0", [4, 64], 0),
        ("seen[q_idx, kv_idx // 4] and bias[q_idx, kv_idx // 4] > 0.0", [4, 4], 0),
        # Steps that tiles would cut, and keys that are known one by one as well.
        ("seen[q_idx // 16, kv_idx // 12]", [], 1),
        ("seen[q_idx // 16, kv_idx // 16 + 1]", [], 1),
        ("seen[q_idx // 16, kv_idx // 16] and q_idx // 16 != kv_idx // 16", [], 1),
        ("seen[q_idx, kv_idx // 16] and seen[kv_idx // 16, kv_idx]", [], 1),
        # No read of pairs, or one whose place is read itself.
        ("doc[kv_idx // 16] == doc[q_idx]", [], 0),
        ("seen[q_idx, doc[kv_idx]]", [], 1),
        ("doc[doc[kv_idx]] == 0", [], 1),
    ],
)
def test_which_reads_are_made_once_for_a_step(mask: str, sizes: list[int], reads: int) -> None:
    planned = plan(mask)
    assert sorted(step.size for step in coarse_reads([planned.mask]).values()) == sizes
    assert pair_reads(planned) == reads


def test_the_general_kernel_reads_pair_by_pair() -> None:
    """Its integers are as wide as addresses, and its reads are pulled in one by one."""
    compilation = Compilation(parse(TABLE.format("seen[q_idx // 16, kv_idx // 16]"))[0])
    texts = [compilation.kernel("forward", Specialisation(fast=fast)).text for fast in (True, False)]
    assert ["# One read for 16 keys." in text for text in texts] == [True, False]


@pytest.mark.parametrize("size", [2, 8, 64])
@pytest.mark.parametrize("score", ["score", "score + bias[q_idx, kv_idx // {size}]"])
class TestInterpreted:
    """Steps of fewer keys than a tile and of more."""

    pytestmark = interpreted

    def test_rows_and_gradients(self, size: int, score: str) -> None:
        torch.manual_seed(size)
        inputs = tuple(torch.randn(1, 2, length, 16, requires_grad=True) for length in (37, 75, 75))
        blocks = -(-75 // size)
        text = (
            f"attention t(seen: bool tensor[Q, K], bias: tensor[N, K]) {{ score {score.format(size=size)}"
            f" mask kv_idx <= q_idx + 19 and seen[q_idx // 5, kv_idx // {size}] }}"
        )
        values = {"seen": torch.rand(8, blocks) < 0.6, "bias": torch.randn(37, blocks)}
        check(program(text, **values), *(tensor.detach() for tensor in inputs), fast=True)
        attention = ad.parse(text).t.bind(**values)
        exact = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
        dout = torch.randn(1, 2, 37, 16)
        gradients = torch.autograd.grad(attention(*inputs), inputs, dout)
        expected = torch.autograd.grad(attention.reference(*exact), exact, dout.double())
        for found, wanted in zip(gradients, expected, strict=True):
            assert_rows_close(found, wanted, TOLERANCE[torch.float32])

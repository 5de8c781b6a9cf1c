"""Whole calls through autograd, on a dense backend: gradients against autograd of the reference in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from compare import assert_rows_close
from engines import DenseEngine
from hypothesis import assume, given, settings
from launches import inputs, variant
from normalizers import row
from strategies import Case, cases
from torch import Tensor

from attndsl.analysis.backward import DELTA, DLSE, Backward, RowFormula, differentiate
from attndsl.analysis.streaming import Streaming, stream
from attndsl.ir import build
from attndsl.ir.ops import Op
from attndsl.ir.variant import Variant
from attndsl.passes.pipeline import run_passes
from attndsl.reference import attend as dense
from attndsl.runtime.arguments import Call, check_call
from attndsl.runtime.autograd import attend
from attndsl.runtime.gradients.rows import with_formulas
from attndsl.runtime.launch import Rows

Value = int | float | Tensor
PRECISE = 1e-9


def is_float(value: Value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def leaves(values: Mapping[str, Value], dtype: torch.dtype = torch.float64) -> dict[str, Value]:
    """Float tensors of that dtype, requiring grad."""
    learnt = {name: value.detach().to(dtype).requires_grad_() for name, value in values.items() if is_float(value)}
    return {**values, **learnt}


def learning(values: Mapping[str, Value]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor) and value.requires_grad}


def run(engine: DenseEngine, values: Mapping[str, Value], tensors: tuple[Tensor, ...], q_offset: int | Tensor) -> Rows:
    q, k, v = tensors
    return attend(engine, check_call(engine.variant, values, q, k, v, enable_gqa=True, q_offset=q_offset))


def loss(out: Tensor, lse: Tensor | None) -> Tensor:
    """Something of everything that is differentiable, with numbers that tell rows apart."""
    generator = torch.Generator().manual_seed(5)
    total = (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
    if lse is None:
        return total
    there = torch.where(lse.isfinite(), lse, 0.0)
    return total + (there * torch.randn(lse.shape, generator=generator, dtype=lse.dtype)).sum()


def check(
    subject: Variant,
    values: Mapping[str, Value],
    tensors: tuple[Tensor, Tensor, Tensor],
    q_offset: int | Tensor = 0,
    note: str = "",
) -> dict[str, Tensor]:
    """Gradients of q, k, v and every captured float, through the engine and through the reference."""
    values = leaves(values)
    tensors = tuple(tensor.detach().double().requires_grad_() for tensor in tensors)  # type: ignore[assignment]
    wanted = dict(zip("qkv", tensors, strict=True)) | {f"`{name}`": value for name, value in learning(values).items()}
    rows = run(DenseEngine(subject), values, tensors, q_offset)
    expected = dense(subject, values, *tensors, enable_gqa=True, q_offset=q_offset)
    assert_rows_close(rows.out, expected.out, PRECISE, f"out {note}")
    found = torch.autograd.grad(loss(rows.out, rows.lse), list(wanted.values()))
    reference = torch.autograd.grad(loss(expected.out, expected.lse), list(wanted.values()), allow_unused=True)
    for name, gradient, other in zip(wanted, found, reference, strict=True):
        other = torch.zeros_like(gradient) if other is None else other
        assert gradient.dtype is wanted[name].dtype
        assert_rows_close(gradient.reshape(1, -1), other.reshape(1, -1), PRECISE, f"gradient of {name} {note}")
    return dict(zip(wanted, found, strict=True))


@settings(max_examples=60)
@given(cases(max_programs=4, max_length=33, tensor_offsets=True, weights=True))
def test_random_programs(case: Case) -> None:
    check(case.variant, case.values, case.inputs(), case.q_offset, repr(case))


@settings(max_examples=60)
@given(cases(max_programs=4, max_length=33, tensor_offsets=True, row=row))
def test_random_normalizers(case: Case) -> None:
    streaming = stream(run_passes(case.variant))
    assume(isinstance(streaming, Streaming))
    assume(isinstance(differentiate(run_passes(case.variant), streaming), Backward))
    check(case.variant, case.values, case.inputs(), case.q_offset, repr(case))


PROGRAMS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "slopes": ("score + t[h] * float(kv_idx - q_idx)", {"t": (6,)}),
    "scalar": ("score * t", {"t": ()}),
    "grouped heads": ("score * t[h // 4]", {"t": (2,)}),
    "every pair": ("score + t[b, h, q_idx, kv_idx]", {"t": (2, 6, 70, 50)}),
    "every pair, for all heads": ("score + t[q_idx, kv_idx]", {"t": (60, 45)}),
    "queries and keys of one tensor": ("score + t[q_idx] * 0.5 + t[kv_idx]", {"t": (60,)}),
    "read twice, both ways": ("score + t[q_idx, kv_idx] + tanh(t[kv_idx, q_idx])", {"t": (60, 60)}),
    "clamped distances": ("score + t[h, clamp(kv_idx - q_idx, -m, m) + m]", {"t": (6, 11)}),
    "distances under a mask": ("score + t[q_idx - kv_idx]", {"t": (60,)}),
    "rows looked up": ("score + t[seg[q_idx], h]", {"t": (6, 6)}),
    "keys looked up": ("score + t[seg[kv_idx], b]", {"t": (6, 2)}),
    "pairs looked up": ("score + t[seg[q_idx], seg[kv_idx]]", {"t": (6, 6)}),
    "tables of blocks": ("score + t[h, q_idx // 4 - kv_idx // 4 + 15]", {"t": (6, 31)}),
    "interpolated": (
        "score + t[(q_idx - kv_idx) // 3] * (1.0 - w) + t[(q_idx - kv_idx) // 3 + 1] * w",
        {"t": (30,), "w": ()},
    ),
    "several": ("(score + t[h]) * u[kv_idx] + t[h] * w[b, q_idx]", {"t": (6,), "u": (45,), "w": (2, 60)}),
}
SEGMENTS = torch.tensor([0, 2, 2, 1, 3, 5, 1]).repeat(10)


def written(name: str, mask: str = "kv_idx <= q_idx") -> tuple[Variant, dict[str, Value]]:
    """One of the programs, and values of its parameters."""
    score, tensors = PROGRAMS[name]
    params = ", ".join(f"{t}: tensor[{', '.join(f'{t}{dim}' for dim in range(len(s)))}]" for t, s in tensors.items())
    text = f"attention a({params}, seg: int tensor[S], m: int = 5) {{ mask {mask} score {score} }}"
    generator = torch.Generator().manual_seed(1)
    values: dict[str, Value] = {t: torch.randn(sizes, generator=generator) for t, sizes in tensors.items()}
    return variant(text), values | {"seg": SEGMENTS, "m": 5}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("q_offset", [0, 4, torch.tensor([0, 11])], ids=["0", "4", "tensor"])
def test_structures(name: str, q_offset: int | Tensor) -> None:
    subject, values = written(name)
    tensors = inputs(batch=2, heads=6, kv_heads=3, q_len=37, kv_len=44, head_dim=5, v_head_dim=3)
    check(subject, values, tensors, q_offset)


def test_rows_without_a_key() -> None:
    """Their gradients are 0 whatever theirs are, and so is what they would have added to captured tensors."""
    subject, values = written("several", "kv_idx <= q_idx and q_idx - kv_idx < 7 and q_idx != 5")
    tensors = inputs(batch=2, heads=6, kv_heads=3, q_len=44, kv_len=20)
    check(subject, values, tensors)
    q, k, v = (tensor.requires_grad_() for tensor in tensors)
    values = leaves(values)
    rows = run(DenseEngine(subject), values, (q, k, v), 0)
    dead = rows.max_score == -torch.inf
    assert dead[:, :, 5].all()
    assert dead[:, :, 30:].all()
    wanted = (q, k, v, *learning(values).values())
    dout = torch.randn(rows.out.shape)
    poisoned = torch.where(dead[..., None], torch.nan, dout)
    outputs = (rows.out, rows.lse)
    clean = torch.autograd.grad(outputs, wanted, (dout, torch.zeros_like(rows.lse)), retain_graph=True)
    found = torch.autograd.grad(outputs, wanted, (poisoned, torch.where(dead, torch.nan, 0.0)))
    for gradient, other in zip(found, clean, strict=True):
        assert torch.equal(gradient.nan_to_num(123.0), other)


def test_no_pairs_at_all() -> None:
    for q_len, kv_len in ((0, 9), (9, 0), (0, 0)):
        subject, values = written("several", "true")
        tensors = tuple(t.requires_grad_() for t in inputs(batch=2, heads=6, kv_heads=3, q_len=q_len, kv_len=kv_len))
        values = leaves(values)
        rows = run(DenseEngine(subject), values, tensors, 0)  # type: ignore[arg-type]
        found = torch.autograd.grad(rows.out.sum(), (*tensors, *learning(values).values()))
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found)


def test_tensors_of_any_strides_and_dtypes() -> None:
    """An expanded tensor is one number many times over: its gradient is the sum."""
    subject, values = written("several")
    tensors = inputs(batch=2, heads=6, kv_heads=3, q_len=37, kv_len=44)
    base = {
        "t": torch.randn(()).requires_grad_(),
        "u": torch.randn(90, dtype=torch.float64).requires_grad_(),
        "w": torch.randn(60, 1, dtype=torch.bfloat16).requires_grad_(),
    }
    bound = {"t": base["t"].expand(6), "u": base["u"][::2], "w": base["w"].expand(60, 2).T}
    whole = {name: value.detach().clone().requires_grad_() for name, value in bound.items()}
    found, plain = (run(DenseEngine(subject), {**values, **some}, tensors, 0).out.sum() for some in (bound, whole))
    gradients = torch.autograd.grad(found, tuple(base.values()))
    expected = torch.autograd.grad(plain, tuple(whole.values()))
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float64, torch.bfloat16]
    torch.testing.assert_close(gradients[0], expected[0].sum())
    torch.testing.assert_close(gradients[1][::2], expected[1])
    torch.testing.assert_close(gradients[2][:, 0], expected[2].sum(0))


def test_the_same_bits_every_time() -> None:
    """In float32, at any number of threads."""
    before = torch.get_num_threads()
    try:
        for name in PROGRAMS:
            subject, values = written(name)
            tensors = tuple(t.requires_grad_() for t in inputs(batch=2, heads=6, kv_heads=3, q_len=13, kv_len=18))
            values, engine = leaves(values, torch.float32), DenseEngine(subject)
            seen = set()
            for threads in (1, 2, 3, 1) * 5:
                torch.set_num_threads(threads)
                rows = run(engine, values, tensors, 0)  # type: ignore[arg-type]
                found = torch.autograd.grad(loss(rows.out, rows.lse), tuple(learning(values).values()))
                seen.add(tuple(gradient.numpy().tobytes() for gradient in found))
            assert len(seen) == 1, name
    finally:
        torch.set_num_threads(before)


def test_sinks_of_rows_without_a_key() -> None:
    """Without a key, `lse` is the sink, and its gradient goes there; a sink of -inf leaves nothing, and no NaN."""
    text = "attention a(sink: tensor[H]) { mask kv_idx < q_idx normalizer softmax(sink = sink[h]) }"
    values: dict[str, Value] = {"sink": torch.tensor([0.5, -torch.inf, 1.0])}
    q, k, v = inputs(batch=2, heads=3, q_len=9)
    found = check(variant(text), values, (q, k, v))
    engine, values = DenseEngine(variant(text)), leaves(values)
    rows = run(engine, values, (q, k, v), 0)
    dead = rows.max_score == -torch.inf
    assert dead[:, :, 0].all()
    given = torch.where(dead[..., None], torch.nan, torch.zeros_like(rows.out)), torch.where(dead, 1.0, 0.0)
    given[1][:, 1, 0] = torch.nan
    (of_sink,) = torch.autograd.grad((rows.out, rows.lse), learning(values).values(), given)
    assert of_sink.tolist() == [2.0, 0.0, 2.0], "once for each batch"
    assert found["`sink`"][1] == 0


def test_row_values_of_silent_rows() -> None:
    """They are 0, whatever formulas make of statistics that are none: kernels may multiply by them."""
    q, k, v = inputs(q_len=3)
    log = build.apply(Op.LOG2, build.row_value("l_i"))
    twice = build.apply(Op.ADD, build.row_value("u"), build.row_value("u"))
    rows = (RowFormula("u", log), RowFormula("w", twice), RowFormula("c", build.real(2.0)))
    form = Backward((), rows, (), build.WEIGHT, build.SCORE, (), ())
    statistics, silent = torch.tensor([[[1.0, 0.0, 2.0]]]), torch.tensor([[[False, True, False]]])
    found = with_formulas(Call(q, k, v, 1.0, 0, {}), form, {"l_i": statistics}, silent)
    assert found["l_i"] is statistics
    assert found["u"].tolist() == [[[0.0, 0.0, 1.0]]]
    assert found["w"].tolist() == [[[0.0, 0.0, 2.0]]]
    assert found["c"].tolist() == [[[2.0, 0.0, 2.0]]]
    assert found["c"].is_contiguous()


MASS, DMASS = build.row_value("mass"), build.row_value("dmass")
FIRST = build.apply(Op.TO_FLOAT, build.apply(Op.LT, build.K, build.integer(4)))


class Weighing(DenseEngine):
    """Also gives the weight of the first four keys, and what comes of its gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.derivative, Backward)
        of_mass = build.apply(Op.ADD, DELTA, build.apply(Op.MUL, DMASS, MASS))
        net = RowFormula("net", build.apply(Op.SUB, of_mass, DLSE))
        above = build.apply(Op.ADD, build.DWEIGHT, build.apply(Op.MUL, DMASS, FIRST))
        dscore = build.apply(Op.MUL, self.derivative.weight, build.apply(Op.SUB, above, build.row_value("net")))
        self.derivative = replace(self.derivative, rows=(net,), dscore=dscore)

    def forward(self, call: Call) -> Rows:
        first = torch.zeros_like(call.v)
        first[:, :, :4] = 1
        return replace(super().forward(call), sums={"mass": super().forward(replace(call, v=first)).out[..., 0]})


def test_further_sums() -> None:
    """Their gradients are row values for formulas to read."""
    subject, values = written("several", "kv_idx <= q_idx and q_idx - kv_idx < 7")
    values, engine = leaves(values), Weighing(subject)
    tensors = tuple(
        tensor.double().requires_grad_() for tensor in inputs(batch=2, heads=6, kv_heads=3, q_len=37, kv_len=20)
    )
    wanted = (*tensors, *learning(values).values())
    rows = run(engine, values, tensors, 0)
    first = torch.zeros_like(tensors[2])
    first[:, :, :4] = 1
    expected = dense(subject, values, *tensors[:2], torch.cat((tensors[2], first[..., :1]), -1), enable_gqa=True)
    out, mass = expected.out[..., :-1], expected.out[..., -1]
    assert_rows_close(rows.sums["mass"], mass, PRECISE)
    found = torch.autograd.grad(loss(rows.out, rows.sums["mass"]), wanted, retain_graph=True)
    for gradient, other in zip(found, torch.autograd.grad(loss(out, mass), wanted), strict=True):
        assert_rows_close(gradient.reshape(1, -1), other.reshape(1, -1), PRECISE)


def test_further_sums_of_rows_without_a_key() -> None:
    """A sink keeps such rows in the gradients, but not for what came of no key."""
    text = "attention a(sink: tensor[H]) { mask kv_idx < q_idx normalizer softmax(sink = sink[h]) }"
    values: dict[str, Value] = {"sink": torch.tensor([0.5, 1.0], requires_grad=True)}
    q, k, v = (tensor.requires_grad_() for tensor in inputs(heads=2, q_len=9))
    rows = run(Weighing(variant(text)), values, (q, k, v), 0)
    dead = rows.max_score == -torch.inf
    assert dead.any()
    wanted = (q, k, *learning(values).values())
    alone, poisoned = (
        torch.autograd.grad(rows.sums["mass"], wanted, torch.where(dead, there, 1.0), retain_graph=True)
        for there in (0.0, torch.nan)
    )
    assert all(torch.equal(gradient, other) for gradient, other in zip(alone, poisoned, strict=True))

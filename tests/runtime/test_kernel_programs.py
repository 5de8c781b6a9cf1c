"""Kernels of programs written to be difficult: every operator, sinks, -inf, huge numbers, guarded reads, odd names."""

from __future__ import annotations

import keyword
import math
from functools import cache

import pytest
import torch
from launches import INTERPRETING, TILE, check, inputs, on_kernels, program

from attndsl.codegen.cpp_names import taken_names
from attndsl.codegen.names import KERNEL_NAMES
from attndsl.diagnostics import ProgramError
from attndsl.frontend.parse import parse
from attndsl.ir.ops import FACTS, Form, Op
from attndsl.ir.types import DType

pytestmark = on_kernels

INF = math.inf

INTEGERS = {
    Op.SHL: "(q_idx - 9) << (kv_idx % 5)",
    Op.SHR: "(q_idx * 7 - 90) >> (kv_idx % 5)",
    Op.FLOORDIV: "(q_idx - 9) // where(kv_idx % 2 == 0, kv_idx + 1, -kv_idx)",
    Op.MOD: "(q_idx - 9) % where(kv_idx % 2 == 0, kv_idx + 1, -kv_idx)",
    Op.BIT_LENGTH: "bit_length((q_idx - 9) * kv_idx * 40)",
}
"""Operands for the operators that do not take any."""

FLOATS = {
    Op.LOG: "log(abs(score) + 0.01)",
    Op.LOG2: "log2(abs(score) + 0.01)",
    Op.SQRT: "sqrt(abs(score))",
    Op.RSQRT: "rsqrt(abs(score) + 0.01)",
    Op.TAN: "tan(score * 0.5)",
    Op.POW: "(abs(score) + 0.1) ** x",
    Op.DIV: "score / (abs(x) + 0.1)",
    Op.FLOORDIV: "y // (float(kv_idx % 3) * 0.5 - 0.75)",
    Op.MOD: "y % (float(kv_idx % 3) * 0.5 - 0.75)",
    Op.FLOOR: "floor(y)",
    Op.CEIL: "ceil(y)",
    Op.ROUND: "round(y)",
}


def _spelled(op: Op, left: str, right: str) -> str:
    row = FACTS[op]
    match row.form:
        case Form.INFIX:
            return f"({left}) {row.text} ({right})"
        case Form.PREFIX:
            return f"{row.text} ({left})"
        case Form.CALL:
            return f"{row.text}({', '.join((left, right)[: row.arity])})"


def _programs() -> dict[str, str]:
    """A small program for each operator and each kind of operand it takes."""
    texts: dict[str, str] = {}
    for op, row in FACTS.items():
        name = op.name.lower()
        if op is Op.WHERE:
            continue
        if DType.BOOL in row.operands:
            text = _spelled(op, "kv_idx <= q_idx", "kv_idx % 3 == 1")
            texts[f"{name}-bool"] = (
                f"mask {text}" if row.result.name in ("BOOL", "SAME") else f"score score + float({text})"
            )
        if DType.I64 in row.operands:
            text = INTEGERS.get(op) or _spelled(op, "q_idx * 3 - 40", "kv_idx - 7")
            texts[f"{name}-int"] = f"mask {text}" if row.result.name == "BOOL" else f"mask ({text}) % 5 <= 2"
        if DType.F32 in row.operands:
            text = FLOATS.get(op) or _spelled(op, "score", "x")
            texts[f"{name}-float"] = (
                f"score where({text}, score, x)" if row.result.name == "BOOL" else f"score {text} + 0.5"
            )
    texts["where-bool"] = "mask where(q_idx % 2 == 0, kv_idx <= q_idx, kv_idx > 5)"
    texts["where-int"] = "mask where(q_idx % 2 == 0, kv_idx - 5, q_idx) < 12"
    texts["where-float"] = "score where(q_idx % 2 == 0, score, x)"
    texts["to_int-float"] = "mask int(y) <= 1 score score + float(int(y))"
    texts["clamp"] = "score clamp(score, -0.5, x)"
    return {name: text.replace("score + 0.5 + 0.5", "score + 0.5") for name, text in texts.items()}


def _with_lets(text: str) -> str:
    """`x` is a smooth float of the pair, `y` a float in quarters, halves among them."""
    x = "let x = float(q_idx - 2 * kv_idx) / 16.0" if "x" in text else ""
    y = "let y = float(q_idx * 3 - kv_idx * 5) * 0.25" if "y" in text else ""
    return f"attention test() {{ {x} {y} {text} }}"


SCORES = {name: text.removeprefix("score ") for name, text in _programs().items() if text.startswith("score ")}
AT_A_TIME = 8
"""Scores of one program, each of a head."""


@pytest.mark.parametrize("name", [name for name in _programs() if name not in SCORES])
def test_every_operator_of_masks(name: str) -> None:
    check(program(_with_lets(_programs()[name])), *inputs(q_len=20, kv_len=35))


@pytest.mark.parametrize("start", range(0, len(SCORES), AT_A_TIME), ids=lambda start: [*SCORES][start])
def test_every_operator_of_scores(start: int) -> None:
    score, names = "score", [*SCORES][start : start + AT_A_TIME]
    for head, name in enumerate(names):
        score = f"where(h == {head}, {SCORES[name]}, {score})"
    check(program(_with_lets(f"score {score}")), *inputs(heads=len(names), q_len=20, kv_len=35), note=", ".join(names))


def test_every_row_of_the_table_has_a_program() -> None:
    tried = {name.partition("-")[0] for name in _programs()}
    assert {op.name.lower() for op in FACTS} - tried == set()
    for op, row in FACTS.items():
        for kind, dtype in (("int", DType.I64), ("float", DType.F32), ("bool", DType.BOOL)):
            assert (dtype in row.operands) == (f"{op.name.lower()}-{kind}" in _programs()), f"{op.name} of {kind}"


@pytest.mark.parametrize("offset", [0, -50], ids=["fast", "general"])
@pytest.mark.parametrize("symbol", ["//", "%"])
@pytest.mark.parametrize("divisor", ["3", "-3", "n", "-n", "(h - 4)", "(q_idx + 60)"])
def test_division_rounds_down_whatever_the_signs(symbol: str, divisor: str, offset: int) -> None:
    text = f"attention t(n: int) {{ mask (kv_idx - q_idx) {symbol} {divisor} <= q_idx {symbol} {divisor} }}"
    check(program(text, n=4), *inputs(heads=2, q_len=24), q_offset=offset)


# Sinks.


def test_sinks_of_every_shape() -> None:
    q, k, v = inputs(batch=2, heads=3, q_len=20)
    shapes = {"": (), "[H]": (3,), "[B, H]": (2, 3), "[B, H, N]": (2, 3, 20)}
    index = {"": "sink[]", "[H]": "sink[h]", "[B, H]": "sink[b, h]", "[B, H, N]": "sink[b, h, q_idx]"}
    for dims, shape in shapes.items():
        if not dims:
            subject = program(
                "attention t(sink: float) { mask kv_idx <= q_idx - 3 normalizer softmax(sink = sink) }", sink=0.7
            )
        else:
            normalizer = f"softmax(sink = {index[dims]})"
            text = f"attention t(sink: tensor{dims}) {{ mask kv_idx <= q_idx - 3 normalizer {normalizer} }}"
            subject = program(text, sink=torch.randn(shape) * 3)
        rows = check(subject, q, k, v)
        assert bool((rows.out[:, :, :3] == 0).all())
        assert bool(rows.lse.isfinite().all())
        assert bool((rows.max_score[:, :, :3] == -INF).all())


@pytest.mark.parametrize("sink", [-INF, -1e38, -1e30, 1e30, 1e38, 3e38, -3e38, 80.0, -80.0], ids=str)
def test_sinks_of_every_size(sink: float) -> None:
    text = "attention t(sink: tensor[H]) { mask kv_idx <= q_idx - 3 normalizer softmax(sink = sink[h]) }"
    check(program(text, sink=torch.tensor([sink, 1.0])), *inputs(heads=2, q_len=20))


def test_a_sink_of_minus_infinity_is_no_sink() -> None:
    q, k, v = inputs(heads=2, q_len=40)
    text = "mask kv_idx <= q_idx - 3"
    sunk = f"attention t(sink: tensor[H]) {{ {text} normalizer softmax(sink = sink[h]) }}"
    with_sink = check(program(sunk, sink=torch.full((2,), -INF)), q, k, v)
    without = check(program(text), q, k, v)
    for name in ("out", "lse", "max_score"):
        assert torch.equal(getattr(with_sink, name), getattr(without, name)), name


# -inf and huge scores.


@pytest.mark.parametrize("lowest", [-INF, torch.finfo(torch.float32).min, -1e38], ids=["inf", "finfo.min", "1e38"])
@pytest.mark.parametrize("text", ["", "mask kv_idx <= q_idx", "mask kv_idx % 2 == 0"])
def test_padding_by_an_additive_bias(lowest: float, text: str) -> None:
    """As many models pad: whole rows, whole first tiles and single keys of the lowest number."""
    q, k, v = inputs(batch=2, q_len=40)
    bias = torch.zeros(2, 40, 40)
    bias[0, :, :20] = bias[1, 5] = bias[1, 20:, 16:] = bias[:, :, 39] = lowest
    subject = program(
        f"attention t(bias: tensor[B, N, M]) {{ score score + bias[b, q_idx, kv_idx] {text} }}", bias=bias
    )
    check(subject, q, k, v)


def test_a_value_whose_score_is_minus_infinity_stays_out() -> None:
    q, k, v = inputs(batch=2, q_len=40)
    bias = torch.zeros(2, 40)
    bias[0, 3] = bias[:, 20:] = -INF
    v[0, :, 3] = v[:, :, 25] = math.nan
    check(program("attention t(bias: tensor[B, M]) { score score + bias[b, kv_idx] }", bias=bias), q, k, v)


def test_scores_that_are_minus_infinity_by_computation() -> None:
    q, k, v = inputs(q_len=20)
    v[:, :, 0] = math.nan
    check(program("score score + log(float(kv_idx))"), q, k, v)


def test_a_score_that_grows_along_the_keys() -> None:
    """Every tile has a new maximum, far above the last."""
    for step in (2.0, 50.0, -50.0):
        check(program(f"score score + float(kv_idx) * {step}"), *inputs(q_len=20, kv_len=100))


def test_rows_that_become_dead_in_the_score() -> None:
    check(program("score where(q_idx % 3 == 0 or kv_idx > q_idx, -inf, score)"), *inputs(q_len=40))
    check(program("mask q_idx < kv_idx - 30"), *inputs(q_len=40))
    check(program("mask false"), *inputs(q_len=20))


# Integers beyond 32 bits, and reads.


@pytest.mark.parametrize("width", [2**31 - 1, 2**31, 2**40, 2**60])
def test_scalars_beyond_32_bits(width: int) -> None:
    text = f"attention t(width: int) {{ mask q_idx - kv_idx < width - {width - 10} and kv_idx <= q_idx }}"
    check(program(text, width=width), *inputs(q_len=40), fast=None if width < 2**31 else False)


def test_products_beyond_32_bits() -> None:
    check(program("mask (q_idx * 100000000 - kv_idx * 300000000) % 7 <= 3"), *inputs(q_len=40), fast=False)


def test_captured_integers_beyond_32_bits() -> None:
    ids = torch.arange(40) // 7 + 2**33 * (torch.arange(40) // 7 % 2)
    check(program("attention t(ids: int tensor[N]) { mask ids[q_idx] == ids[kv_idx] }", ids=ids), *inputs())


def test_reads_only_live_pairs_make_in_bounds() -> None:
    rel = torch.randn(40)
    text = "attention t(rel: tensor[N]) { mask kv_idx <= q_idx score score + rel[q_idx - kv_idx] }"
    check(program(text, rel=rel), *inputs(q_len=40), fast=False)
    flags = torch.rand(40) > 0.3
    text = "attention t(flags: bool tensor[N]) { mask kv_idx <= q_idx and flags[q_idx - kv_idx] }"
    check(program(text, flags=flags), *inputs(q_len=40), fast=False)


@pytest.mark.parametrize(
    "score",
    [
        "where(q_idx < 5, table[q_idx], 0.0)",
        "where(kv_idx < 5, table[kv_idx], score)",
        "where(kv_idx >= 35, table[kv_idx - 35], score)",
        "float(kv_idx < 5 and table[kv_idx] > 0.0)",
        "where(q_idx < 5 or kv_idx >= 5, 1.0, table[kv_idx])",
    ],
)
def test_reads_only_a_branch_makes_in_bounds(score: str) -> None:
    """Read anywhere else the table is NaN, so that a read that strays shows."""
    room = torch.full((200,), math.nan)
    table = room[80:85].copy_(torch.randn(5))
    check(program(f"attention t(table: tensor[N]) {{ score score + {score} }}", table=table), *inputs(q_len=40))


def test_captures_of_every_storage() -> None:
    q, k, v = inputs(heads=2, q_len=20)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        text = "attention t(bias: tensor[H, N]) { score score + bias[h, kv_idx] }"
        check(program(text, bias=torch.randn(2, 20).to(dtype)), q, k, v)
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64):
        ids = (torch.arange(20) // 6 * 20 + 100).to(dtype)
        check(program("attention t(ids: int tensor[N]) { mask ids[q_idx] == ids[kv_idx] }", ids=ids), q, k, v)
    doubles = torch.linspace(-1, 1, 20, dtype=torch.float64)
    check(program("attention t(bias: tensor[N]) { score score + bias[kv_idx] }", bias=doubles), q, k, v)


def test_captures_of_every_rank() -> None:
    q, k, v = inputs(batch=2, heads=2, q_len=20)
    sizes, index = (2, 2, 20, 20, 3, 2), ("b", "h", "q_idx", "kv_idx", "kv_idx % 3", "q_idx % 2")
    for rank in range(1, 7):
        dims = ", ".join(f"d{axis}" for axis in range(rank))
        text = f"attention t(w: tensor[{dims}]) {{ score score + w[{', '.join(index[:rank])}] mask kv_idx <= q_idx }}"
        check(program(text, w=torch.randn(sizes[:rank])), q, k, v)


# Names.


TAKEN = KERNEL_NAMES if INTERPRETING else taken_names()
"""Names a kernel has for itself."""

AT_ONCE = 12 if INTERPRETING else 150
"""Parameters of one program; native kernels take as long to build with few as with many."""


@cache
def _words() -> list[str]:
    """Names with a meaning in an emitted kernel, its language or its system, that the text language leaves to users."""
    python = [*keyword.kwlist, *keyword.softkwlist]
    system = ["linux", "unix", "NULL", "INT32_MAX", "assert", "errno", "main", "λ", "größe", "__x", "_X", "forward"]
    derived = ["stride_x", "match", "size_acc_0", "_floordiv", "_", "acc_", "lambda_", "int32"]
    return [word for word in dict.fromkeys([*sorted(TAKEN), *python, *system, *derived]) if _is_free(word)]


def _is_free(word: str) -> bool:
    """Whether a program may have a parameter of that name."""
    try:
        parse(f"attention t({word}: int) {{ mask kv_idx <= {word} }}")
    except ProgramError:
        return False
    return word.isidentifier()


@pytest.mark.parametrize("start", range(0, len(_words()), AT_ONCE))
def test_names_the_kernel_wants_for_itself(start: int) -> None:
    """Many at a time: scalars, tensors and both in one program."""
    words = _words()[start : start + AT_ONCE]
    scalars, tensors = words[::2], words[1::2]
    params = [f"{word}: int" for word in scalars] + [f"{word}: tensor[N]" for word in tensors]
    terms = [f"float({word} * kv_idx) / 1024.0" for word in scalars] + [f"{word}[kv_idx]" for word in tensors]
    bound = " and ".join(f"kv_idx <= q_idx + {word}" for word in scalars)
    text = f"attention t({', '.join(params)}) {{ score score + {' + '.join(terms)} mask {bound} }}"
    values = {word: place for place, word in enumerate(scalars)} | {word: torch.randn(20) for word in tensors}
    check(program(text, **values), *inputs(q_len=20), tile=TILE)


def test_names_that_differ_by_what_a_clash_adds() -> None:
    text = "attention t(acc: int, acc_: int, acc__: int) { mask kv_idx + acc * 2 + acc_ * 3 <= q_idx + acc__ }"
    check(program(text, acc=1, acc_=2, acc__=11), *inputs(q_len=20))

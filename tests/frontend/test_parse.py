"""Text means what it says: each construct against nodes written out with the constructors."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attndsl.diagnostics import ProgramError
from attndsl.frontend.builder import Builder
from attndsl.frontend.names import identifier
from attndsl.frontend.normalizers import softmax
from attndsl.frontend.parse import parse, read
from attndsl.frontend.scope import RESERVED
from attndsl.ir import build
from attndsl.ir.build import SCORE, WEIGHT, B, H, K, Q, integer, real
from attndsl.ir.nodes import Expr
from attndsl.ir.ops import Op
from attndsl.ir.types import DType, Reduction
from attndsl.ir.variant import ScalarParam, TensorParam, Variant

A, C, D = (build.scalar(name, DType.I64) for name in "acd")
X, Y, Z = (build.scalar(name, DType.F32) for name in "xyz")
P, R, S = (build.load(name, (), DType.BOOL) for name in "prs")
PARAMS = "a: int, c: int, d: int, x: float, y: float, z: float, p: bool tensor[], r: bool tensor[], s: bool tensor[]"
HUGE = 2**20


def op(op: Op, *args: Expr) -> Expr:
    return build.apply(op, *args)


def one(body: str, params: str = PARAMS, before: str = "") -> Variant:
    (variant,) = parse(f"{before}\nattention a_variant({params}) {{ {body} }}")
    return variant


def codes(text: str) -> list[str]:
    with pytest.raises(ProgramError) as caught:
        parse(text)
    return [diagnostic.code for diagnostic in caught.value.diagnostics]


def test_a_whole_program() -> None:
    text = """
        # one of everything
        def soft(x, cap) = cap * tanh(x / cap)
        attention gpt_oss(window: int = 128, sink: tensor[H], doc: int tensor[B, N], cap: float = 50.0) {
            let d = q_idx - kv_idx
            mask        0 <= d < window and doc[b, q_idx] == doc[b, kv_idx]
            score       soft(score, cap)   # a comment
            normalizer  softmax(sink = sink[h])
            weight      weight * exp(float(d) * -0.1)
        }
    """
    (variant,) = parse(text)
    distance, cap = op(Op.SUB, Q, K), build.scalar("cap", DType.F32)
    window = build.scalar("window", DType.I64)
    documents = [build.load("doc", (B, position), DType.I64) for position in (Q, K)]
    near = op(Op.AND, op(Op.LE, integer(0), distance), op(Op.LT, distance, window))
    assert variant.name == "gpt_oss"
    assert variant.params == (
        ScalarParam("window", DType.I64, 128),
        TensorParam("sink", DType.F32, ("H",)),
        TensorParam("doc", DType.I64, ("B", "N")),
        ScalarParam("cap", DType.F32, 50.0),
    )
    assert variant.mask is op(Op.AND, near, op(Op.EQ, *documents))
    assert variant.score is op(Op.MUL, cap, op(Op.TANH, op(Op.DIV, SCORE, cap)))
    assert variant.normalizer is softmax(Builder(), build.load("sink", (H,), DType.F32))
    decay = op(Op.EXP, op(Op.MUL, op(Op.TO_FLOAT, distance), real(-0.1)))
    assert variant.weight is op(Op.MUL, WEIGHT, decay)


def test_an_empty_body_is_plain_attention() -> None:
    (variant,) = parse("attention plain {}")
    assert variant == Variant("plain", (), SCORE, build.TRUE, softmax(Builder()), WEIGHT)


@pytest.mark.parametrize(
    "text, meaning",
    [
        ("p or r and s", op(Op.OR, P, op(Op.AND, R, S))),
        ("p or r or s", op(Op.OR, op(Op.OR, P, R), S)),
        ("not p and r", op(Op.AND, op(Op.NOT, P), R)),
        ("not a == c", op(Op.NOT, op(Op.EQ, A, C))),
        ("not not p", op(Op.NOT, op(Op.NOT, P))),
        ("a < c <= d", op(Op.AND, op(Op.LT, A, C), op(Op.LE, C, D))),
        ("a == c != d > 1", op(Op.AND, op(Op.AND, op(Op.EQ, A, C), op(Op.NE, C, D)), op(Op.GT, D, integer(1)))),
        ("(a < c) == p", op(Op.EQ, op(Op.LT, A, C), P)),
        ("p & r | s", op(Op.OR, op(Op.AND, P, R), S)),
        ("p ^ ~r", op(Op.XOR, P, op(Op.NOT, R))),
        ("p if a < c else r if s else s", op(Op.WHERE, op(Op.LT, A, C), P, op(Op.WHERE, S, R, S))),
        ("where(p, r, s)", op(Op.WHERE, P, R, S)),
        ("true", build.TRUE),
    ],
)
def test_conditions(text: str, meaning: Expr) -> None:
    assert one(f"mask {text}").mask is meaning


@pytest.mark.parametrize(
    "text, meaning",
    [
        ("a | c ^ d & 1", op(Op.BIT_OR, A, op(Op.BIT_XOR, C, op(Op.BIT_AND, D, integer(1))))),
        ("a & c << d + 1", op(Op.BIT_AND, A, op(Op.SHL, C, op(Op.ADD, D, integer(1))))),
        ("a >> 1 << 2", op(Op.SHL, op(Op.SHR, A, integer(1)), integer(2))),
        ("a - c - d", op(Op.SUB, op(Op.SUB, A, C), D)),
        ("a - (c - d)", op(Op.SUB, A, op(Op.SUB, C, D))),
        ("a * c // d % 7", op(Op.MOD, op(Op.FLOORDIV, op(Op.MUL, A, C), D), integer(7))),
        ("a + c * d", op(Op.ADD, A, op(Op.MUL, C, D))),
        ("-a * c", op(Op.MUL, op(Op.NEG, A), C)),
        ("~-+a", op(Op.BIT_NOT, op(Op.NEG, A))),
        ("a - -3", op(Op.SUB, A, integer(-3))),
        ("-9223372036854775808", integer(-(2**63))),
        ("0x1F + 0b11 + 1_000", op(Op.ADD, op(Op.ADD, integer(31), integer(3)), integer(1000))),
        ("a ** 2", op(Op.MUL, A, A)),
        ("clamp(a, 0, c)", op(Op.MIN, op(Op.MAX, A, integer(0)), C)),
        ("min(a, c, d)", op(Op.MIN, op(Op.MIN, A, C), D)),
        ("int(x)", op(Op.TO_INT, X)),
    ],
)
def test_integers(text: str, meaning: Expr) -> None:
    assert one(f"mask {text} == 7").mask is op(Op.EQ, meaning, integer(7))


def test_constants_are_folded_only_into_their_sign() -> None:
    assert one("mask a < -3").mask is op(Op.LT, A, integer(-3))
    assert one("mask a < 1 + 2").mask is op(Op.LT, A, op(Op.ADD, integer(1), integer(2)))


@pytest.mark.parametrize(
    "text, meaning",
    [
        ("x ** y ** z", op(Op.POW, X, op(Op.POW, Y, Z))),
        ("(x ** y) ** z", op(Op.POW, op(Op.POW, X, Y), Z)),
        ("-x ** 2", op(Op.NEG, op(Op.POW, X, real(2.0)))),
        ("(-2.0) ** x", op(Op.POW, real(-2.0), X)),
        ("x ** -y", op(Op.POW, X, op(Op.NEG, Y))),
        ("x + a", op(Op.ADD, X, op(Op.TO_FLOAT, A))),
        ("a / c", op(Op.DIV, op(Op.TO_FLOAT, A), op(Op.TO_FLOAT, C))),
        ("1e3 * .5 * 2. * 1_0.5e-1", op(Op.MUL, op(Op.MUL, op(Op.MUL, real(1e3), real(0.5)), real(2.0)), real(1.05))),
        ("inf", real(math.inf)),
        ("-inf", real(-math.inf)),
        ("nan", real(math.nan)),
        ("-0.0", real(-0.0)),
        ("x if p else 1", op(Op.WHERE, P, X, real(1.0))),
        ("exp(x + y)", op(Op.EXP, op(Op.ADD, X, Y))),
    ],
)
def test_floats(text: str, meaning: Expr) -> None:
    assert one(f"score {text}").score is meaning


def test_indexing() -> None:
    params = "t: tensor[B, H, N], i: int tensor[N], g: tensor[], n: tensor[4]"
    element = build.load("t", (B, H, build.load("i", (Q,), DType.I64)), DType.F32)
    for text in ("t[b, h, i[q_idx]]", "t[b][h][i[q_idx]]", "t[b][h, i[q_idx],]"):
        assert one(f"score {text}", params).score is element
    assert one("score g", params).score is build.load("g", (), DType.F32)
    assert one("score n[3]", params).params[3] == TensorParam("n", DType.F32, ("4",))


def test_items_conjoin_and_compose() -> None:
    variant = one(
        "mask p score score * x mask r let t = tanh(score) score t + score mask s weight weight * y weight -weight"
    )
    assert variant.mask is op(Op.AND, op(Op.AND, P, R), S)
    scaled = op(Op.MUL, SCORE, X)
    assert variant.score is op(Op.ADD, op(Op.TANH, scaled), scaled)
    assert variant.weight is op(Op.NEG, op(Op.MUL, WEIGHT, Y))


def test_composition_keeps_the_spans() -> None:
    variant = one("score score * x score tanh(score)")
    spans = variant.origins.of(variant.score)
    assert [(span.line, span.column, span.end_column) for span in spans] == [(2, 153, 164)]


def test_normalizers() -> None:
    e = op(Op.EXP, op(Op.SUB, SCORE, build.row(Reduction.MAX, SCORE)))
    ratio = op(Op.DIV, e, op(Op.ADD, real(1.0), build.row(Reduction.SUM, e)))
    assert one("let e = exp(score - row_max(score)) normalizer e / (1.0 + row_sum(e))").normalizer is ratio
    assert one("normalizer softmax").normalizer is softmax(Builder())
    assert one("normalizer softmax()").normalizer is softmax(Builder())
    assert one("normalizer softmax(x)").normalizer is softmax(Builder(), X)
    assert one("normalizer sigmoid(score)").normalizer is op(Op.SIGMOID, SCORE)


def test_functions() -> None:
    before = "def twice(f) = f + f def soft(score, cap) = twice(cap) * tanh(score / cap) def causal() = kv_idx <= q_idx"
    soft = op(Op.MUL, op(Op.ADD, X, X), op(Op.TANH, op(Op.DIV, SCORE, X)))
    for call in ("soft(score, x)", "soft(score, cap = x)", "soft(cap = x, score = score,)"):
        assert one(f"score {call}", before=before).score is soft
    assert one("mask causal()", before=before).mask is op(Op.LE, K, Q)


def test_functions_in_a_body_see_it() -> None:
    variant = one("let e = a + q_idx def near(w) = e - kv_idx < w * c  mask near(3)")
    inner = op(Op.SUB, op(Op.ADD, A, Q), K)
    assert variant.mask is op(Op.LT, inner, op(Op.MUL, integer(3), C))


def test_words_of_items_are_free_as_names() -> None:
    params = "mask: bool tensor[N], let: int, attention: float, normalizer: tensor[], def: int"
    variant = one("mask mask[q_idx] mask let < def score attention score score * normalizer", params)
    words = op(Op.LT, build.scalar("let", DType.I64), build.scalar("def", DType.I64))
    assert variant.mask is op(Op.AND, build.load("mask", (Q,), DType.BOOL), words)
    assert variant.score is op(Op.MUL, build.scalar("attention", DType.F32), build.load("normalizer", (), DType.F32))
    assert one("mask masked", "masked: bool tensor[]").mask is build.load("masked", (), DType.BOOL)


def test_several_attentions_in_order() -> None:
    names = [
        variant.name for variant in parse("attention z {} def f(x) = x attention y { score f(score) } attention x {}")
    ]
    assert names == ["z", "y", "x"]


def test_defaults() -> None:
    variant = one("", "a: int = -3, b_: float = 2, c: float = -inf, d: int, e: float = nan,")
    assert [param.default for param in variant.scalars[:4]] == [-3, 2.0, -math.inf, None]
    assert isinstance(variant.scalars[1].default, float)
    assert math.isnan(variant.scalars[4].default or 0.0)


def test_every_node_has_its_span() -> None:
    text = "attention a(w: int) {\n    mask (q_idx - kv_idx) * 2 < w and\n         kv_idx >= 0\n}"
    (variant,) = parse(text, "spans.attn")
    compared, other = variant.mask.args  # type: ignore[union-attr]
    (span,) = variant.origins.of(compared)
    assert (span.line, span.column, span.end_line, span.end_column) == (2, 10, 2, 34)
    (span,) = variant.origins.of(other)
    assert (span.line, span.column, span.end_line, span.end_column) == (3, 10, 3, 21)
    (span,) = variant.origins.of(variant.mask)
    assert (span.line, span.column, span.end_line, span.end_column) == (2, 10, 3, 21)
    assert len(variant.origins.of(K)) == 2
    assert span.source.name == "spans.attn"


def test_line_endings_do_not_move_spans() -> None:
    for end in ("\n", "\r\n", "\r"):
        text = f"# one \u2028 line \x0c only{end}attention a {{{end} mask nothing{end}}}"
        with pytest.raises(ProgramError) as caught:
            parse(text)
        assert "<text>:3:7\n 3 |  mask nothing\n   |       ^^^^^^^\n" in str(caught.value) + "\n"


def test_mistakes_of_all_attentions_come_together() -> None:
    text = "def f(x) = x + nowhere attention a { mask q score 1 } attention b { mask kv_idx }"
    assert codes(text) == ["unknown-name", "score-not-float", "mask-not-boolean", "unknown-name"]


def test_a_mistake_is_reported_once() -> None:
    assert codes("def f(x) = x + nowhere attention a { mask f(1) < f(2) and f(1) < 3 score f(score) }") == [
        "unknown-name"
    ]
    assert codes("attention a { let d = missing mask not (d + 1 < 2) or exp(d) }") == ["unknown-name"]
    assert codes("attention a { mask not (1 + (q_idx < 2)) }") == ["operand-type"]


@pytest.mark.parametrize(
    "body",
    [
        f"mask {'(' * 10_000}p{')' * 10_000}",
        f"score {'exp(' * 10_000}x{')' * 10_000}",
        f"mask {'not ' * 10_000}p",
        f"score {'-' * 10_000}x",
        f"score {'x if p else ' * 10_000}x",
        f"score {'x ** ' * 10_000}x",
        f"score {'(x if p else ' * 10_000}x{')' * 10_000}",
        "score " + "t[" * 10_000 + "0" + "]" * 10_000,
    ],
)
def test_deep_nesting_is_refused(body: str) -> None:
    assert codes(f"attention a({PARAMS}) {{ {body} }}") == ["nesting-too-deep"]


def test_long_chains_of_calls_are_refused() -> None:
    chain = "".join(f"def f{n}(x) = f{n + 1}(x) " for n in range(1000))
    assert codes(chain + "def f1000(x) = x attention a { score f0(score) }") == ["nesting-too-deep"]


def test_wide_is_not_deep() -> None:
    terms = [f"q_idx < {n}" for n in range(390)]
    mask: Expr = op(Op.LT, Q, integer(0))
    for n in range(1, 390):
        mask = op(Op.OR, mask, op(Op.LT, Q, integer(n)))
    assert one(f"mask {' or '.join(terms)}").mask is mask
    nested = "(" * 150 + "p" + ")" * 150
    assert one(f"mask {nested}").mask is P
    assert codes("attention a { mask " + " or ".join(["q_idx < 0"] * 2000) + " }") == ["program-too-deep"]


def test_expansion_is_bounded() -> None:
    doubling = "".join(f"def f{n}(x) = f{n + 1}(x + {n}) + f{n + 1}(x * {n + 2}) " for n in range(40))
    start = time.perf_counter()
    assert codes(doubling + "def f40(x) = x attention a { score f0(score) }") == ["expansion-too-large"]
    assert time.perf_counter() - start < 30
    shared = "".join(f"def f{n}(x) = f{n + 1}(x) + f{n + 1}(x) " for n in range(40))
    assert parse(shared + "def f40(x) = x attention a { score f0(score) }")


@pytest.mark.parametrize(
    "text, code",
    [
        ("a" * (HUGE + 1), "text-too-large"),
        ("+ " * (HUGE // 2), "text-too-large"),
        ("a" * HUGE, "syntax-error"),
        ("attention a { mask " + "9" * (HUGE // 2) + " < q_idx }", "integer-too-large"),
        ("attention a { mask " + "x" * (HUGE // 2) + " < q_idx }", "unknown-name"),
        ("attention a { " + "mask nothing " * 30_000 + "}", "unknown-name"),
        ("#" * (HUGE - 20), "no-attention"),
    ],
    ids=["long", "many words", "one word", "digits", "name", "many mistakes", "comment"],
)
def test_large_texts_are_answered_in_time(text: str, code: str) -> None:
    start = time.perf_counter()
    assert set(codes(text)) == {code}
    assert time.perf_counter() - start < 20


def test_a_large_program_is_read() -> None:
    lets = "\n".join(f"let v{n} = q_idx + {n}  # {'-' * 100}" for n in range(8000))
    (variant,) = parse(f"attention big {{ {lets}\n mask v7 < v7999 }}")
    assert variant.mask is op(Op.LT, op(Op.ADD, Q, integer(7)), op(Op.ADD, Q, integer(7999)))


def test_read(tmp_path: Path) -> None:
    file = tmp_path / "causal.attn"
    file.write_bytes(b"\xef\xbb\xbfattention causal {\r\n  mask kv_idx <= q_idx # \xc3\xa9\r\n}\r\n")
    (variant,) = read(file)
    assert variant.mask is op(Op.LE, K, Q)
    span = variant.origins.first(variant.mask)
    assert span is not None
    assert (span.source.name, span.line, span.column) == (str(file), 2, 8)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.attn")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"attention a {\0}", "error[nul-byte]: `{}` has a NUL byte at offset 13"),
        (b"attention a { # \xff\n}", "error[not-utf-8]: `{}` is not UTF-8: byte 0xff at offset 16"),
        (b"\xef\xbb\xbf\xff", "error[not-utf-8]: `{}` is not UTF-8: byte 0xff at offset 3"),
        (b"#" * (HUGE + 1), "error[text-too-large]: `{}` is larger than"),
    ],
    ids=["nul", "utf-8", "after a byte order mark", "large"],
)
def test_files_that_are_not_text(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "bad.attn"
    file.write_bytes(data)
    with pytest.raises(ProgramError) as caught:
        read(file)
    assert str(caught.value).startswith(message.format(file))


def test_parsing_needs_neither_torch_nor_triton() -> None:
    modules = "attndsl.frontend.parse, attndsl.ir.printer"
    code = f"import sys, {modules}; print({{'torch', 'triton', 'sympy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_traced_programs_never_take_a_reserved_name() -> None:
    assert {name for name in RESERVED if identifier(name) in RESERVED} == set()

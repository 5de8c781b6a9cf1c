"""Random normalizers and weight mods: the families people write, with constants, captures and statistics of all kinds.

In: a `Scope`. Out: a normalizer over the final score and a weight mod over the weight. Divisors are sums of what cannot
cancel, so that float64 has digits to compare; a row may well have a divisor of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable

from expressions import Scope, real

from attndsl.ir import build
from attndsl.ir.nodes import Expr
from attndsl.ir.types import Reduction

S = build.SCORE


def most(scope: Scope, value: Expr) -> Expr:
    return scope.builder.row(Reduction.MAX, value)


def sum_of(scope: Scope, value: Expr) -> Expr:
    return scope.builder.row(Reduction.SUM, value)


def by_row(scope: Scope) -> Expr:
    """A number alike for all keys: a constant, a runtime scalar, a captured element."""
    shape = scope.shape
    indexed = (
        ((build.H,), (shape.q_heads,)),
        ((build.B, build.H), (shape.batch, shape.q_heads)),
        ((build.Q,), (shape.q_end,)),
        ((), ()),
    )
    kind = scope.between(0, 5)
    if kind < 2:
        return scope.number(scope.pick((0.5, -1.25, 0.0, 2.0)))
    indices, sizes = indexed[kind - 2]
    return scope.load(scope.reals(*sizes), *indices)


def by_key(scope: Scope) -> Expr:
    return scope.load(scope.reals(scope.shape.kv_len), build.K)


def positive(scope: Scope, value: Expr) -> Expr:
    """The size of a value, not near 0."""
    return scope.op("+", scope.call("abs", value), 0.5)


def over_its_sum(scope: Scope, value: Expr) -> Expr:
    return scope.op("/", value, sum_of(scope, value))


def shifted(scope: Scope, value: Expr) -> Expr:
    """exp(x - row_max(x))"""
    return scope.call("exp", scope.op("-", value, most(scope, value)))


def softmax_like(scope: Scope) -> Expr:
    """exp(x - shift) over its sum, and sinks."""
    exponent = scope.pick(
        (lambda: S, lambda: scope.op("+", S, by_key(scope)), lambda: scope.op("*", S, by_row(scope)))
    )()
    shift = scope.pick((lambda: most(scope, exponent), lambda: most(scope, S), lambda: by_row(scope)))()
    raised = scope.call("exp", scope.op("-", exponent, shift))
    if scope.between(0, 4) == 0:
        shift, raised = build.real(0.0), scope.call("exp", exponent)
    divisor = sum_of(scope, raised)
    for _ in range(scope.between(0, 2)):
        sink = scope.op("-", by_row(scope), shift)
        divisor = scope.op("+", scope.call("exp", scope.pick((sink, scope.minus(shift)))), divisor)
    return scope.op("/", raised, divisor)


def gated(scope: Scope) -> Expr:
    """Sums of nothing: sigmoid, powers of relu over the length, an exponential as it is."""
    bias = scope.pick((by_row, by_key))(scope)
    value = scope.op("+", S, bias)
    kind = scope.between(0, 3)
    if kind == 0:
        return scope.call("sigmoid", value)
    if kind == 1:
        return scope.op("*", scope.call("exp", scope.call("min", value, 2.0)), by_row(scope))
    rectified = scope.call("max", value, 0.0)
    rectified = scope.op("*", rectified, rectified) if kind == 2 else rectified
    return scope.op("/", rectified, scope.call("float", build.KV_LEN))


def normalized(scope: Scope) -> Expr:
    """Over its own sum, which may be 0: relu, Taylor, size."""
    choices: tuple[Callable[[], Expr], ...] = (
        lambda: scope.call("max", S, 0.0),
        lambda: scope.op("+", scope.op("+", 1.0, S), scope.op("*", scope.op("*", S, S), 0.5)),
        lambda: scope.op("*", scope.call("max", S, 0.0), scope.call("max", S, 0.0)),
        lambda: scope.call("sigmoid", scope.op("-", S, by_row(scope))),
    )
    return over_its_sum(scope, scope.pick(choices)())


def signed(scope: Scope) -> Expr:
    """One softmax minus a part of another."""
    first, second = shifted(scope, S), shifted(scope, scope.pick((scope.minus(S), scope.op("*", S, 0.5))))
    part = scope.op("*", over_its_sum(scope, second), by_row(scope))
    return scope.op(scope.pick(("-", "+")), over_its_sum(scope, first), part)


def tempered(scope: Scope) -> Expr:
    """exp((s - m) / temperature), also where its sum is a power."""
    temperature = positive(scope, by_row(scope))
    raised = scope.call("exp", scope.op("/", scope.op("-", S, most(scope, S)), temperature))
    if scope.between(0, 1) == 0:
        return over_its_sum(scope, raised)
    squares = sum_of(scope, scope.op("*", raised, raised))
    return scope.op("/", raised, scope.call("sqrt", squares))


def with_prior(scope: Scope) -> Expr:
    """A captured factor for each key, or 0 for some of them."""
    prior = positive(scope, by_key(scope)) if scope.between(0, 1) else scope.call("max", by_key(scope), 0.0)
    return over_its_sum(scope, scope.op("*", prior, shifted(scope, S)))


def chosen(scope: Scope) -> Expr:
    """Branches by position, or by closeness to the row's maximum."""
    raised = shifted(scope, S)
    if scope.between(0, 1) == 0:
        near = scope.op("<", scope.op("-", build.Q, build.K), 3)
        other = scope.pick((scope.op("*", raised, by_row(scope)), build.real(0.0)))
        kept = scope.call("where", near, raised, other)
        return scope.op("/", kept, scope.op("+", sum_of(scope, raised), scope.call("exp", scope.minus(most(scope, S)))))
    close = scope.op(">", S, scope.op("-", most(scope, S), 1.5))
    return over_its_sum(scope, scope.call("where", close, raised, 0.0))


def two_statistics(scope: Scope) -> Expr:
    raised = shifted(scope, S)
    plain, squares = sum_of(scope, raised), sum_of(scope, scope.op("*", raised, raised))
    choices: tuple[Callable[[], Expr], ...] = (
        lambda: scope.op("/", raised, scope.op("+", plain, scope.call("sqrt", squares))),
        lambda: scope.op("/", scope.op("*", raised, plain), scope.op("*", squares, positive(scope, by_row(scope)))),
        lambda: scope.op("/", S, scope.op("+", sum_of(scope, scope.call("abs", S)), by_row_above(scope))),
        lambda: scope.op("*", over_its_sum(scope, raised), sum_of(scope, scope.call("sigmoid", S))),
        lambda: scope.op("/", raised, scope.op("+", plain, scope.op("*", positive(scope, by_row(scope)), plain))),
    )
    return scope.pick(choices)()


def by_row_above(scope: Scope) -> Expr:
    return positive(scope, by_row(scope))


def solved(scope: Scope) -> Expr:
    """Powers of what a score has above a threshold, that sum to a number of the row; over their sum, or as they are."""
    power = scope.pick((1, 2))
    total = positive(scope, by_row(scope))

    def above(threshold: Expr) -> Expr:
        gap = scope.call("max", scope.op("-", S, threshold), 0.0)
        return gap if power == 1 else scope.op("*", gap, gap)

    top = most(scope, S)
    lower = scope.op("-", scope.op("-", top, total), 1.0)
    value = above(build.solve(above(build.THRESHOLD), total, lower, top))
    return value if scope.between(0, 1) == 0 else scope.op("/", value, scope.op("+", sum_of(scope, value), 0.5))


FAMILIES = (
    softmax_like,
    gated,
    normalized,
    signed,
    tempered,
    with_prior,
    chosen,
    two_statistics,
    softmax_like,
    solved,
)


def weight_mod(scope: Scope) -> Expr:
    """None, a factor of the row or of the pair, an affine one, a threshold, a power."""
    weight = build.WEIGHT
    choices: tuple[Callable[[], Expr], ...] = (
        lambda: weight,
        lambda: weight,
        lambda: scope.op("*", weight, by_row(scope)),
        lambda: scope.op("*", weight, real(scope, 1, None)[0]),
        lambda: scope.op("+", scope.op("*", weight, by_row(scope)), by_row(scope)),
        lambda: scope.op("+", scope.op("*", weight, real(scope, 1, None)[0]), real(scope, 1, None)[0]),
        lambda: scope.call("where", scope.op("<", weight, 0.07), 0.0, weight),
        lambda: scope.call("max", scope.op("-", weight, 0.03), 0.0),
        lambda: scope.op("*", weight, weight),
        lambda: scope.op("/", weight, scope.op("+", scope.call("abs", weight), positive(scope, by_row(scope)))),
    )
    return scope.pick(choices)()


def row(scope: Scope) -> tuple[Expr, Expr]:
    """A normalizer and a weight mod."""
    return scope.pick(FAMILIES)(scope), weight_mod(scope)

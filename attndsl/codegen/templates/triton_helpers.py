"""Functions an emitted module may define, beside its kernels: only those it calls are copied into it."""

import triton
import triton.language as tl


@triton.jit
def _floordiv(a, b):
    """a // b rounded down; Triton's own rounds towards zero."""
    quotient = a // b
    return tl.where((a % b != 0) & ((a < 0) != (b < 0)), quotient - 1, quotient)


@triton.jit
def _mod(a, b):
    """a % b with the sign of b; Triton's own has the sign of a."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@triton.jit
def _floordiv_float(a, b):
    """a // b of floats rounded down, exact where a / b is not."""
    rest = a % b
    quotient = (a - rest) / b
    quotient = tl.where((rest != 0) & ((rest < 0) != (b < 0)), quotient - 1, quotient)
    nearest = tl.floor(quotient)
    return tl.where(quotient - nearest > 0.5, nearest + 1, nearest)


@triton.jit
def _mod_float(a, b):
    """a % b of floats with the sign of b."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@triton.jit
def _minimum(a, b):
    """The smaller; NaN when either is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _maximum(a, b):
    """The larger; NaN when either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bit_length(x):
    """The number of bits of |x|, without sign and leading zeros."""
    rest = tl.abs(x).to(tl.int64)
    bits = rest * 0
    for step in tl.static_range(6):
        is_wide = (rest >> (32 >> step)) != 0
        bits = tl.where(is_wide, bits + (32 >> step), bits)
        rest = tl.where(is_wide, rest >> (32 >> step), rest)
    return (bits + rest).to(x.dtype)


@triton.jit
def _ordered(x):
    """A float32 as an integer, in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _number(n):
    """The float32 of such an integer."""
    bits = n.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _tan(x):
    return tl.sin(x) / tl.cos(x)


@triton.jit
def _tanh(x):
    """tanh to float32 accuracy: a series where 1 - 2 / (e^2x + 1) would cancel."""
    square = x * x
    series = x * (1.0 + square * (-0.33333334 + square * (0.13333334 + square * (-0.053968254 + square * 0.021869488))))
    return tl.where(tl.abs(x) < 0.25, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _round(x):
    """The nearest integer, halves to even."""
    down = tl.floor(x)
    rest = x - down
    is_odd = down - 2.0 * tl.floor(down * 0.5) != 0.0
    return tl.where((rest > 0.5) | ((rest == 0.5) & is_odd), down + 1.0, down)


@triton.jit
def _pow(x, y):
    """x ** y; a negative base takes the sign of an odd integer exponent and is NaN for a fractional one."""
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    half = tl.floor(y * 0.5)
    is_odd = y - 2.0 * half == 1.0
    is_whole = tl.floor(y) == y
    signed = tl.where(is_odd, -size, size)
    power = tl.where(x < 0, tl.where(is_whole, signed, float("nan")), size)
    return tl.where((y == 0) | (x == 1), 1.0, power)


@triton.jit
def _small_pow(x, count: tl.constexpr):
    """x ** count, multiplied out."""
    power = x
    for _ in tl.static_range(count - 1):
        power = power * x
    return power


@triton.jit
def _steps(BLOCK: tl.constexpr, STEP: tl.constexpr):
    """The places of a tile at which a step begins; of a tile that lies in one, the first."""
    return tl.arange(0, (BLOCK + STEP - 1) // STEP) * STEP


@triton.jit
def _spread(x, BLOCK: tl.constexpr, AXIS: tl.constexpr):
    """What is known of every step of a tile, repeated for each of its BLOCK places along an axis."""
    count: tl.constexpr = x.shape[AXIS]
    wide: tl.constexpr = [x.shape[0], BLOCK] if AXIS == 1 else [BLOCK, x.shape[1]]
    if count == 1:
        return tl.broadcast_to(x, wide)
    parts: tl.constexpr = [x.shape[0], count, BLOCK // count] if AXIS == 1 else [count, BLOCK // count, x.shape[1]]
    return tl.reshape(tl.broadcast_to(tl.expand_dims(x, AXIS + 1), parts), wide)

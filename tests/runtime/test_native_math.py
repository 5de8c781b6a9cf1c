"""The mathematics of native kernels: accuracy over all floats, integers as Python's, elements as torch rounds them."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attndsl.codegen.cpp_text import template_text
from attndsl.runtime.native.build import library

pytestmark = pytest.mark.as_users

HEADERS = ("cpp_lanes.h", "cpp_storage.h", "cpp_math.h")
STEP = 4099
"""Every so many floats of all 2^32 are tried, beside all those near special points."""

FLOATS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "exp": (1.0, torch.exp),
    "exp2": (1.0, torch.exp2),
    "log": (1.0, torch.log),
    "log2": (2.0, torch.log2),
    "tanh": (2.0, torch.tanh),
    "erf": (1.0, torch.erf),
    "sigmoid": (3.0, torch.sigmoid),
    "fabs": (0.0, torch.abs),
    "floor": (0.0, torch.floor),
    "ceil": (0.0, torch.ceil),
    "round": (0.0, torch.round),
    "sqrt": (0.5, torch.sqrt),
    "rsqrt": (1.5, torch.rsqrt),
    "sin": (1.0, torch.sin),
    "cos": (1.0, torch.cos),
    "tan": (1.0, torch.tan),
}
"""The largest error in units of the last place, and what is right in float64; one more unit where nothing is fused."""

OTHERS = {"silu": functional.silu, "gelu": functional.gelu, "exp2_flushing": torch.exp2}

ROUGH = "exp2_roughly"
"""The exponential of weights that are rounded to bfloats: of floats alone."""

ENTRY = 'extern "C" __attribute__((visibility("default"))) void'
FLOAT_PROBE = """
{entry} lanes_{name}(const real* x, real* y, int64_t n) {{
    for (int64_t i = 0; i < n; i += LANES) store(y + i, {name}(load(x + i)));
}}
{entry} single_{name}(const real* x, real* y, int64_t n) {{
    for (int64_t i = 0; i < n; i++) y[i] = {name}(x[i]);
}}
"""
INTEGER_PROBE = """
{entry} lanes_{name}(const integer* a, const integer* b, integer* y, int64_t n) {{
    for (int64_t i = 0; i < n; i += LANES) store(y + i, {call}(load(a + i){second}));
}}
{entry} single_{name}(const integer* a, const integer* b, integer* y, int64_t n) {{
    for (int64_t i = 0; i < n; i++) y[i] = {call}(a[i]{second_one});
}}
"""
STORAGE_PROBE = """
{entry} widen_{name}(const {element}* x, real* y, int64_t n) {{
    for (int64_t i = 0; i < n; i += LANES) store(y + i, reals(x + i));
}}
{entry} widen_one_{name}(const {element}* x, real* y, int64_t n) {{
    for (int64_t i = 0; i < n; i++) y[i] = to_real(x[i]);
}}
{entry} narrow_{name}(const real* x, {element}* y, int64_t n) {{
    for (int64_t i = 0; i < n; i += LANES) put_all(y + i, load(x + i));
}}
{entry} narrow_one_{name}(const real* x, {element}* y, int64_t n) {{
    for (int64_t i = 0; i < n; i++) put(y + i, x[i]);
}}
"""
FUSED_PROBE = """
extern "C" __attribute__((visibility("default"))) int is_fused() {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return 1;
#else
    return 0;
#endif
}
"""
INTEGERS: dict[str, Callable[[int, int], int]] = {
    "floor_divide": lambda a, b: a // b,
    "floor_mod": lambda a, b: a % b,
    "shift_left": lambda a, b: a << b,
    "shift_right": lambda a, b: a >> b,
    "bit_length": lambda a, b: a.bit_length(),
    "abs": lambda a, b: abs(a),
    "min": min,
    "max": max,
}
UNARY = ("bit_length", "abs")
STORAGES = {"half": torch.float16, "bfloat": torch.bfloat16}


@cache
def probes(real: str, integer: str) -> ctypes.CDLL:
    """A library with every function over lanes and over one number."""
    parts = [FLOAT_PROBE.format(entry=ENTRY, name=name) for name in (*FLOATS, *OTHERS)]
    for name in INTEGERS:
        second = ("", "") if name in UNARY else (", load(b + i)", ", b[i]")
        parts.append(INTEGER_PROBE.format(entry=ENTRY, name=name, call=name, second=second[0], second_one=second[1]))
    parts.extend(STORAGE_PROBE.format(entry=ENTRY, name=name, element=name) for name in STORAGES)
    if real == "float":
        parts.append(FLOAT_PROBE.format(entry=ENTRY, name=ROUGH))
    parts.append(FUSED_PROBE)
    defines = f"#define ATTNDSL_REAL {real}\n#define ATTNDSL_INTEGER {integer}\n"
    text = "\n".join((defines, "namespace attndsl {", *map(template_text, HEADERS), *parts, "}"))
    return ctypes.CDLL(str(library(text, "probe")))


def is_fused() -> bool:
    """Whether this CPU multiplies and adds in one rounding."""
    return bool(probes("float", "int32_t").is_fused())


def called(library_: ctypes.CDLL, name: str, result: Tensor, *operands: Tensor) -> Tensor:
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*operands, result)]
    getattr(library_, name)(*addresses, ctypes.c_int64(result.numel()))
    return result


@cache
def floats() -> Tensor:
    """Floats of every size, and all near 0, 1, the subnormal numbers, infinity and where functions overflow."""
    special = [
        0.0,
        1.0,
        0.5,
        0.55,
        0.927734375,
        2.0**-126,
        2.0**-149,
        3.4e38,
        88.72284,
        87.33654,
        103.97208,
        126.0,
        2**24,
    ]
    near = np.arange(-300, 300)
    bits = [np.arange(0, 2**32, STEP, dtype=np.int64), np.array([0x7F800000, 0x7FC00000, 0xFF800000, 0xFFC00001])]
    for value, sign in itertools.product(special, (0, 2**31)):
        around = int(np.float32(value).view(np.uint32)) + near
        bits.append((np.clip(around, 0, 2**31 - 1) + sign).astype(np.int64))
    found = np.concatenate(bits)
    return torch.from_numpy(found[: len(found) // 64 * 64].astype(np.uint32).view(np.float32).copy())


def ulps(found: Tensor, exact: Tensor) -> Tensor:
    """The error in units of the last place of float32; 0 where both are infinite, NaN or past the largest float."""
    rounded = exact.float()
    magnitude = rounded.abs().clamp(2.0**-126, 3.4028234e38)
    unit = torch.nextafter(magnitude, torch.tensor(torch.inf)).double() - magnitude.double()
    unit = torch.where(magnitude >= 3.4e38, 2.0**104, unit)
    same = (found == rounded) | (found.isnan() & rounded.isnan())
    return torch.where(same, 0.0, (found.double() - exact).abs() / unit).nan_to_num(torch.inf, torch.inf)


@pytest.mark.parametrize("kind", ["lanes", "single"])
@pytest.mark.parametrize("name", FLOATS)
def test_float_functions_are_accurate_everywhere(name: str, kind: str) -> None:
    allowed, exact = FLOATS[name]
    x = floats()
    error = ulps(called(probes("float", "int32_t"), f"{kind}_{name}", torch.empty_like(x), x), exact(x.double()))
    worst = int(error.argmax())
    allowed += 0.0 if is_fused() else 1.0
    assert float(error[worst]) <= allowed, f"{name}({float(x[worst])!r}) is off by {float(error[worst])} ulp"


def test_the_measure_of_errors_sees_one_unit() -> None:
    x = torch.tensor([1.0, 1e-42, math.inf, 1.0])
    off = torch.nextafter(x, torch.tensor(0.0))
    assert ulps(off, x.double())[:2].tolist() == [0.5, 1.0]
    assert ulps(torch.tensor([math.nan]), torch.tensor([1.0]).double()).item() > 1e300
    assert ulps(off[2:3], x[2:3].double()).item() > 1e300


def test_one_number_and_lanes_give_the_same_bits() -> None:
    x = floats()
    for name in (*FLOATS, *OTHERS, ROUGH):
        lanes, single = (
            called(probes("float", "int32_t"), f"{kind}_{name}", torch.empty_like(x), x) for kind in ("lanes", "single")
        )
        same = (lanes == single) | (lanes.isnan() & single.isnan())
        assert bool(same.all()), f"{name} of {float(x[~same][0])!r}"


def test_functions_that_cancel_are_accurate_for_their_argument() -> None:
    x = floats()
    x = x[x.abs() < 1e30][: x.numel() // 128 * 64]
    for name, bound in (("silu", 2.0**-22), ("gelu", 2.0**-23)):
        found = called(probes("float", "int32_t"), f"lanes_{name}", torch.empty_like(x), x)
        error = (found.double() - OTHERS[name](x.double())).abs() / x.double().abs().clamp(2.0**-120)
        assert float(error.max()) <= bound, f"{name}({float(x[error.argmax()])!r})"


def test_exponentials_of_weights_flush() -> None:
    x = torch.linspace(-140.0, 100.0, 64 * 4000)
    above = x >= -100.0
    exact = torch.exp2(x[above].double())
    for name in ("exp2_flushing", ROUGH):
        found = called(probes("float", "int32_t"), f"lanes_{name}", torch.empty_like(x), x)
        assert bool((found[x < -100.5] == 0).all())
        if name == ROUGH:
            assert float((found[above].double() / exact - 1).abs().max()) <= 2.0**-17
        else:
            assert float(ulps(found[above], exact).max()) <= (1.0 if is_fused() else 2.0)
        ends = torch.tensor([-math.inf, math.nan, -1e30, 0.0] * 16)
        found = called(probes("float", "int32_t"), f"lanes_{name}", torch.empty_like(ends), ends)[:4]
        assert found[[0, 2, 3]].tolist() == [0.0, 0.0, 1.0]
        assert bool(found[1].isnan())


@pytest.mark.parametrize("kind", ["lanes", "single"])
@pytest.mark.parametrize("name", [*FLOATS, *OTHERS])
def test_functions_of_doubles(name: str, kind: str) -> None:
    exact = FLOATS[name][1] if name in FLOATS else OTHERS[name]
    x = torch.cat(
        [torch.linspace(-30.0, 30.0, 1001).double(), torch.tensor([0.0, -0.0, 1e300, 1e-310, math.inf]).double()]
    )
    x = torch.cat([x, x.new_tensor([math.nan, -math.inf])])[: x.numel() // 64 * 64]
    found = called(probes("double", "int64_t"), f"{kind}_{name}", torch.empty_like(x), x)
    torch.testing.assert_close(found, exact(x), rtol=1e-14, atol=1e-15, equal_nan=True)


@pytest.mark.parametrize("kind", ["lanes", "single"])
@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("real, integer", [("float", "int32_t"), ("float", "int64_t"), ("double", "int64_t")])
def test_integers_are_pythons(real: str, integer: str, name: str, kind: str) -> None:
    bits = 32 if integer == "int32_t" else 64
    edges = [0, 1, -1, 2, -2, 3, 7, -7, 63, 64, -64, 1000, -999, 2**24 + 1, 2 ** (bits - 2) + 1, 2 ** (bits - 1) - 1]
    edges += [-(2 ** (bits - 1)) + 1, -(2 ** (bits - 1))]
    rights = list(range(64)) if name.startswith("shift") else edges
    pairs = [(a, b) for a, b in itertools.product(edges, rights) if b or not name.startswith("floor")]
    wanted = [INTEGERS[name](a, b) for a, b in pairs]
    kept = [place for place, value in enumerate(wanted) if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)]
    kept = (kept * 64)[: -(-len(kept) // 64) * 64]
    dtype = torch.int32 if bits == 32 else torch.int64
    a, b, expected = (
        torch.tensor([values[place] for place in kept], dtype=dtype)
        for values in ([a for a, _ in pairs], [b for _, b in pairs], wanted)
    )
    found = called(probes(real, integer), f"{kind}_{name}", torch.empty_like(a), a, b)
    bad = (found != expected).nonzero()
    assert not bad.numel(), f"{name}({a[bad[0]]}, {b[bad[0]]}) is {found[bad[0]]}, not {expected[bad[0]]}"


@pytest.mark.parametrize("kind", ["floor_divide", "floor_mod"])
@pytest.mark.parametrize("integer", ["int32_t", "int64_t"])
def test_a_division_by_zero_is_no_trap(kind: str, integer: str) -> None:
    dtype = torch.int32 if integer == "int32_t" else torch.int64
    a = torch.tensor([0, 1, -1, torch.iinfo(dtype).min] * 16, dtype=dtype)
    for way in ("lanes", "single"):
        called(probes("float", integer), f"{way}_{kind}", torch.empty_like(a), a, torch.zeros_like(a))
        called(probes("float", integer), f"{way}_{kind}", torch.empty_like(a), a, torch.full_like(a, -1))


@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("name", STORAGES)
def test_halves_are_read_and_rounded_as_torch_does(name: str, real: str) -> None:
    probe, dtype = probes(real, "int64_t"), torch.float32 if real == "float" else torch.float64
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(STORAGES[name])
    for way in ("widen", "widen_one"):
        found = called(probe, f"{way}_{name}", torch.empty(every.shape, dtype=dtype), every)
        torch.testing.assert_close(found, every.to(dtype), rtol=0, atol=0, equal_nan=True)
    x = floats()
    for way in ("narrow", "narrow_one"):
        found = called(probe, f"{way}_{name}", torch.empty(x.shape, dtype=STORAGES[name]), x.to(dtype))
        torch.testing.assert_close(found, x.to(STORAGES[name]), rtol=0, atol=0, equal_nan=True)

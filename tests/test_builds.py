"""How suites build their kernels: quickly for the most part, a share as users do, and all as users do where marked."""

from __future__ import annotations

import itertools

import builds
import pytest
import torch

import attndsl as ad
from attndsl.runtime.native import load
from attndsl.runtime.native.compiler import compiler

OPTIMISED = """/* A kernel that says how it was built.
attention test() {{
    mask        kv_idx <= q_idx + {}
}}
*/
extern "C" __attribute__((visibility("default"))) int answer() {{
#ifdef __OPTIMIZE__
    return 1;
#else
    return 0;
#endif
}}
"""


@ad.mask_mod
def within(q_idx, kv_idx, *, window):
    return (kv_idx <= q_idx) & (q_idx - kv_idx < window)


def one_that(is_quick: bool) -> str:
    return next(text for text in map(OPTIMISED.format, itertools.count()) if builds.is_quick(text) is is_quick)


def test_a_share_of_programs_is_built_as_users_build_theirs() -> None:
    quick = sum(builds.is_quick(OPTIMISED.format(n)) for n in range(500))
    assert abs(quick / 500 - (1 - 1 / builds.SHARE)) <= 0.03
    assert not builds.is_quick('extern "C" int no_kernel();')


def test_all_kernels_of_a_program_are_built_alike() -> None:
    for name in ("one", "two", "three", "four", "five"):
        attention = ad.attention(mask_mod=within(window=4), name=name)
        texts = [
            attention.source(kernel, "cpp", dtype=dtype)
            for kernel in attention.kernels("cpp")
            for dtype in (torch.float32, torch.bfloat16)
        ]
        assert len(set(map(builds.is_quick, texts))) == 1


@pytest.mark.parametrize("is_quick", [True, False])
def test_kernels_are_built_as_told(is_quick: bool) -> None:
    assert load.load_function(one_that(is_quick), "answer")(b"", 0, 0) == (not is_quick)
    assert compiler().flags.count("-O2") == 1
    assert builds.quick(compiler()).flags.count("-O0") == 1


@pytest.mark.as_users
def test_marked_tests_get_what_users_get() -> None:
    """Even of a text that was built quickly before."""
    assert load.load_function(one_that(True), "answer")(b"", 0, 0) == 1
    with builds.quick_builds():
        assert load.load_function(one_that(True), "answer")(b"", 0, 0) == 0
    assert load.load_function(one_that(True), "answer")(b"", 0, 0) == 1

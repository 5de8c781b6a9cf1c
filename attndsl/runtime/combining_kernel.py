"""The Triton kernel that joins the parts of a row. Triton reads kernels from files, and this one is always the same."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))


@triton.jit(do_not_specialize=["splits", "q_len", "width"])
def combine_parts(Parts, Lse, Max, Out, Out_lse, Out_max, splits, q_len, width, BLOCK_D: tl.constexpr):
    """A program joins the parts of one row, in their order; a part without a live key has the weight 0."""
    row = tl.program_id(0).to(tl.int64)
    first = row // q_len * splits * q_len + row % q_len
    offs_d = tl.arange(0, BLOCK_D)
    d_ok = offs_d < width

    m_i = -INF
    most = -INF
    l_i = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for split in range(splits):
        place = first + split * q_len
        lse = tl.load(Lse + place)
        most = tl.maximum(most, tl.load(Max + place))
        m_new = tl.maximum(m_i, lse)
        shift = tl.where(m_new == -INF, 0.0, m_new)
        alpha = tl.exp(m_i - shift)
        p = tl.exp(lse - shift)
        part = tl.load(Parts + place * width + offs_d, mask=d_ok, other=0.0)
        acc = acc * alpha + p * part
        l_i = l_i * alpha + p
        m_i = m_new

    out = acc / tl.where(l_i == 0.0, 1.0, l_i)
    tl.store(Out + row * width + offs_d, out.to(Out.dtype.element_ty), mask=d_ok)
    tl.store(Out_lse + row, tl.where(l_i == 0.0, -INF, m_i + tl.log(l_i)))
    tl.store(Out_max + row, most)

// The two products of a tile by matrix registers of bfloats, where the processor has them: 16 rows of 16 sums each, from
// 32 products of pairs at a time. What is multiplied lies in pairs: two numbers of a query, or the weights of two keys.

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define ATTNDSL_MATRIX 1

#define TILE_ZERO(T) asm volatile("tilezero %%tmm" #T ::)
#define TILE_LOAD(T, FROM, STRIDE) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #T ::"r"(FROM), "r"(int64_t(STRIDE)) : "memory")
#define TILE_STORE(T, TO, STRIDE) \
    asm volatile("tilestored %%tmm" #T ", (%0,%1,1)" ::"r"(TO), "r"(int64_t(STRIDE)) : "memory")
#define TILE_PRODUCT(SUM, LEFT, RIGHT) asm volatile("tdpbf16ps %%tmm" #RIGHT ", %%tmm" #LEFT ", %%tmm" #SUM ::)

typedef uint32_t pair;

// Two vectors of numbers as one of pairs, rounded to bfloats, halves to even.
INLINE void write_pairs(pair* to, vec even, vec odd) {
    typedef Raw<short, 32>::type Shorts;
    const Shorts places = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    auto rounded = bits_as<Shorts>(__builtin_ia32_cvtne2ps2bf16_v32hi(bits_as<Raw<float, 16>::type>(odd),
                                                                      bits_as<Raw<float, 16>::type>(even)));
    *(vec*)to = bits_as<vec>(__builtin_ia32_permvarhi512_mask(rounded, places, rounded, -1));
}

// Two rows of 16 bfloats as one of pairs.
INLINE vec zipped(const bfloat* even, const bfloat* odd) {
    Lanes<uint16_t> low = load((const uint16_t*)even), high = load((const uint16_t*)odd);
    auto wide = lanes_as<uint32_t>(low) | lanes_as<uint32_t>(high) << Lanes<uint32_t>(16u);
    return bits_as<vec>(wide.part[0]);
}

struct MatrixProducts {
    static constexpr int GRAIN = 32;
    static constexpr int WIDE = 2;
    static constexpr int DEPTH = (HEAD_DIM + 31) / 32 * 32;
    static constexpr int V_ROWS = (V_HEAD_DIM + 15) / 16 * 16;
    static constexpr int ROW = BLOCK_M * 4;

    alignas(64) pair q[DEPTH / 2 * BLOCK_M];
    alignas(64) real s[BLOCK_N * BLOCK_M];
    alignas(64) real more[TERMS > 1 ? (TERMS - 1) * BLOCK_N * BLOCK_M : 1];
    alignas(64) pair p[BLOCK_N / 2 * BLOCK_M];
    alignas(64) real acc[TERMS * V_ROWS * BLOCK_M];
    alignas(64) bfloat k[BLOCK_N * DEPTH];
    alignas(64) bfloat v[BLOCK_N * V_ROWS];
    alignas(64) bfloat v_columns[V_ROWS * BLOCK_N];

    // Asks the system for the matrix registers; false where it grants none.
    static bool ready() {
        long result = 158;
        asm volatile("syscall" : "+a"(result) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
        return result == 0;
    }

    // Queries of a tile in pairs, transposed; rows past the end are 0.
    void queries(const element* from, int64_t stride, int64_t stride_d, int rows) {
        struct { uint8_t palette = 1, start = 0, reserved[14] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } shape;
        for (int t = 0; t < 8; t++) shape.bytes[t] = 64, shape.rows[t] = 16;
        asm volatile("ldtilecfg %0" ::"m"(shape));
        for (pair& both : q) both = 0;
        for (real& sum : acc) sum = 0;
        int d = 0;
        if (stride_d == 1)
            for (; d + 32 <= HEAD_DIM; d += 32)
                for (int i = 0; i < VECTORS; i++) {
                    vec lines[LANES] = {};
                    for (int e = 0, m = i * LANES; e < LANES && m < rows; e++, m++)
                        __builtin_memcpy(&lines[e], from + m * stride + d, sizeof(vec));
                    transpose(lines);
                    for (int e = 0; e < LANES; e++) *(vec*)(q + (d / 2 + e) * BLOCK_M + i * LANES) = lines[e];
                }
        for (; d < HEAD_DIM; d++)
            for (int m = 0; m < rows; m++)
                q[d / 2 * BLOCK_M + m] |= pair(from[m * stride + d * stride_d].bits) << d % 2 * 16;
    }

    // Keys as they lie in memory where whole registers can be read there, else a copy with zeros beyond the ends.
    void scores(const element* from, int64_t stride, int64_t stride_d, int keys, const Spans& spans) {
        const bfloat* left = from;
        if (stride_d != 1 || HEAD_DIM % 32 || keys < BLOCK_N) {
            copy<DEPTH>(k, from, stride, stride_d, keys, HEAD_DIM, nullptr);
            left = k, stride = DEPTH;
        }
        for (int i = 0; i < spans.vectors;) {
            const int first = spans.first[i], last = spans.last[i];
            if (spans.alike(i, 2)) {
                for (int j = first; j < last; j += 32) {
                    TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
                    for (int d = 0; d < DEPTH; d += 32) {
                        TILE_LOAD(4, left + j * stride + d, stride * 2);
                        TILE_LOAD(5, left + (j + 16) * stride + d, stride * 2);
                        TILE_LOAD(6, q + d / 2 * BLOCK_M + i * LANES, ROW);
                        TILE_LOAD(7, q + d / 2 * BLOCK_M + i * LANES + LANES, ROW);
                        TILE_PRODUCT(0, 4, 6); TILE_PRODUCT(1, 4, 7); TILE_PRODUCT(2, 5, 6); TILE_PRODUCT(3, 5, 7);
                    }
                    real* out = s + j * BLOCK_M + i * LANES;
                    TILE_STORE(0, out, ROW);
                    TILE_STORE(1, out + LANES, ROW);
                    TILE_STORE(2, out + 16 * BLOCK_M, ROW);
                    TILE_STORE(3, out + 16 * BLOCK_M + LANES, ROW);
                }
                i += 2;
            } else {
                for (int j = first; j < last; j += 32) {
                    TILE_ZERO(0); TILE_ZERO(2);
                    for (int d = 0; d < DEPTH; d += 32) {
                        TILE_LOAD(4, left + j * stride + d, stride * 2);
                        TILE_LOAD(5, left + (j + 16) * stride + d, stride * 2);
                        TILE_LOAD(6, q + d / 2 * BLOCK_M + i * LANES, ROW);
                        TILE_PRODUCT(0, 4, 6); TILE_PRODUCT(2, 5, 6);
                    }
                    real* out = s + j * BLOCK_M + i * LANES;
                    TILE_STORE(0, out, ROW);
                    TILE_STORE(2, out + 16 * BLOCK_M, ROW);
                }
                i++;
            }
        }
    }

    // The weights of a key, for one of the terms of the output; those of the first take the place of the scores.
    MEMBER real* weights(int term, int key, int i) {
        return (term ? more + (term - 1) * BLOCK_N * BLOCK_M : s) + key * BLOCK_M + i * LANES;
    }

    void rescale(int term, int i, vreal alpha) {
        real* column = acc + term * V_ROWS * BLOCK_M + i * LANES;
        for (int d = 0; d < V_HEAD_DIM; d++) write(column + d * BLOCK_M, read(column + d * BLOCK_M) * alpha.part[0]);
    }

    // Adds the values times their weights. Of keys that no query of the tile sees, values are not read.
    void values(const element* from, int64_t stride, int64_t stride_d, int keys, const Spans& spans, const bool* seen) {
        if (stride_d != 1 || V_HEAD_DIM % 16 || keys < BLOCK_N || seen) {
            copy<V_ROWS>(v, from, stride, stride_d, keys, V_HEAD_DIM, seen);
            from = v, stride = V_ROWS;
        }
        int low = BLOCK_N, high = 0;
        for (int i = 0; i < spans.vectors; i++) {
            if (spans.last[i] && spans.first[i] < low) low = spans.first[i];
            if (spans.last[i] > high) high = spans.last[i];
        }
        for (int j = low; j < high; j += 32)
            for (int d = 0; d < V_ROWS; d += 16) {
                vec lines[LANES];
                for (int e = 0; e < LANES; e++)
                    lines[e] = zipped(from + (j + 2 * e) * stride + d, from + (j + 2 * e + 1) * stride + d);
                transpose(lines);
                for (int e = 0; e < LANES; e++) *(vec*)(v_columns + (d + e) * BLOCK_N + j) = lines[e];
            }
        for (int term = 0; term < TERMS; term++) {
            for (int i = 0; i < spans.vectors; i++)
                for (int j = spans.first[i]; j < spans.last[i]; j += 2)
                    write_pairs(p + j / 2 * BLOCK_M + i * LANES, read(weights(term, j, i)), read(weights(term, j + 1, i)));
            for (int i = 0; i < spans.vectors;) {
                const bool both = spans.alike(i, 2);
                for (int d = 0; d < V_ROWS; d += 16)
                    both ? sums<true>(term, i, d, spans) : sums<false>(term, i, d, spans);
                i += both ? 2 : 1;
            }
        }
    }

    template<bool BOTH> void sums(int term, int i, int d, const Spans& spans) {
        real* out = acc + (term * V_ROWS + d) * BLOCK_M + i * LANES;
        TILE_LOAD(0, out, ROW);
        if (BOTH) TILE_LOAD(1, out + LANES, ROW);
        for (int j = spans.first[i]; j < spans.last[i]; j += 32) {
            TILE_LOAD(4, v_columns + d * BLOCK_N + j, BLOCK_N * 2);
            TILE_LOAD(6, p + j / 2 * BLOCK_M + i * LANES, ROW);
            TILE_PRODUCT(0, 4, 6);
            if (BOTH) {
                TILE_LOAD(7, p + j / 2 * BLOCK_M + i * LANES + LANES, ROW);
                TILE_PRODUCT(1, 4, 7);
            }
        }
        TILE_STORE(0, out, ROW);
        if (BOTH) TILE_STORE(1, out + LANES, ROW);
    }

    template<int WIDTH>
    static void copy(bfloat* to, const bfloat* from, int64_t stride, int64_t stride_d, int keys, int width, const bool* seen) {
        for (int n = 0; n < BLOCK_N; n++)
            for (int d = 0; d < WIDTH; d++)
                to[n * WIDTH + d] = n < keys && d < width && (!seen || seen[n]) ? from[n * stride + d * stride_d] : bfloat{0};
    }

    void done() { asm volatile("tilerelease" ::); }

    // One element of the unfinished output, for a vector of queries.
    MEMBER vreal sum(int term, int d, int i) const {
        return vreal(Lanes<real>::Part(read(acc + (term * V_ROWS + d) * BLOCK_M + i * LANES)));
    }
};
#endif

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

// 16 bfloats and 16 more as pairs of one of each.
INLINE vec in_pairs(Raw<short, 32>::type both) {
    const Raw<short, 32>::type places = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return bits_as<vec>(__builtin_ia32_permvarhi512_mask(both, places, both, -1));
}

// Two vectors of numbers as one of pairs, rounded to the nearest bfloats: half of their last place is added, then the
// rest cut off. Fewer operations than the processor's own conversion takes.
INLINE vec rounded(vreal even, vreal odd) {
    typedef Raw<uint32_t, 16>::type Bits;
    const Bits low = bits_as<Bits>(even.part[0]) + 0x8000, high = bits_as<Bits>(odd.part[0]) + 0x8000;
    return bits_as<vec>(low >> 16 | (high & 0xffff0000));
}

// Two rows of 16 bfloats as one of pairs.
INLINE vec zipped(const bfloat* even, const bfloat* odd) {
    typedef Raw<short, 16>::type Half;
    Half low, high;
    __builtin_memcpy(&low, even, sizeof(low));
    __builtin_memcpy(&high, odd, sizeof(high));
    Raw<short, 32>::type both;
    __builtin_memcpy(&both, &low, sizeof(low));
    __builtin_memcpy((char*)&both + sizeof(low), &high, sizeof(high));
    return in_pairs(both);
}

struct MatrixProducts {
    static constexpr int GRAIN = 32;
    static constexpr int WIDE = 2;
    static constexpr int STEP = 2;
    // So many vectors of queries are taken through a tile at a time: their scores and weights stay in the nearest cache.
    static constexpr int GROUP = 2;
    static constexpr int DEPTH = (HEAD_DIM + 31) / 32 * 32;
    static constexpr int V_ROWS = (V_HEAD_DIM + 15) / 16 * 16;
    static constexpr int ROW = LANES * 4;

    alignas(64) pair q[DEPTH / 2 * BLOCK_M];
    alignas(64) real s[GROUP * BLOCK_N * LANES];
    alignas(64) pair p[TERMS * GROUP * BLOCK_N / 2 * LANES];
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

    FewQueries few;

    // Panels of the vectors of queries, side by side; groups share theirs of scores and weights.
    MEMBER pair* query(int d, int i) { return q + (i * DEPTH + d) / 2 * LANES; }
    MEMBER real* score(int key, int i) { return s + (i % GROUP * BLOCK_N + key) * LANES; }
    MEMBER pair* weight(int term, int key, int i) { return p + ((term * GROUP + i % GROUP) * BLOCK_N + key) / 2 * LANES; }
    MEMBER real* sum_at(int term, int d, int i) { return acc + ((term * VECTORS + i) * V_ROWS + d) * LANES; }

    // Queries of a tile in pairs, transposed; rows past the end are 0.
    void queries(const element* from, int64_t stride, int64_t stride_d, int rows, bool is_along) {
        few.queries(from, stride, stride_d, rows, is_along);
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
                    for (int e = 0; e < LANES; e++) *(vec*)(query(d, i) + e * LANES) = lines[e];
                }
        for (; d < HEAD_DIM; d++)
            for (int m = 0; m < rows; m++)
                query(d, m / LANES)[m % LANES] |= pair(from[m * stride + d * stride_d].bits) << d % 2 * 16;
    }

    // Scores of the vectors of queries from `begin` to `end`, a group; the first one starts at 0. Keys as they lie in memory
    // where whole registers can be read there, else a copy with zeros beyond the ends.
    void scores(const element* from, int64_t stride, int64_t stride_d, int keys, const Spans& spans, int begin, int end) {
        if (few.rows)
            return few.scores(from, stride, spans.first[0], spans.last[0] < keys ? spans.last[0] : keys, s);
        const bfloat* left = from;
        if (stride_d != 1 || HEAD_DIM % 32 || keys < BLOCK_N) {
            if (begin == 0) copy<DEPTH>(k, from, stride, stride_d, keys, HEAD_DIM, nullptr);
            left = k, stride = DEPTH;
        }
        for (int i = begin; i < end;) {
            const int first = spans.first[i], last = spans.last[i];
            if (spans.alike(i, 2)) {
                for (int j = first; j < last; j += 32) {
                    TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
                    for (int d = 0; d < DEPTH; d += 32) {
                        TILE_LOAD(4, left + j * stride + d, stride * 2);
                        TILE_LOAD(5, left + (j + 16) * stride + d, stride * 2);
                        TILE_LOAD(6, query(d, i), ROW);
                        TILE_LOAD(7, query(d, i + 1), ROW);
                        TILE_PRODUCT(0, 4, 6); TILE_PRODUCT(1, 4, 7); TILE_PRODUCT(2, 5, 6); TILE_PRODUCT(3, 5, 7);
                    }
                    TILE_STORE(0, score(j, i), ROW);
                    TILE_STORE(1, score(j, i + 1), ROW);
                    TILE_STORE(2, score(j + 16, i), ROW);
                    TILE_STORE(3, score(j + 16, i + 1), ROW);
                }
                i += 2;
            } else {
                for (int j = first; j < last; j += 32) {
                    TILE_ZERO(0); TILE_ZERO(2);
                    for (int d = 0; d < DEPTH; d += 32) {
                        TILE_LOAD(4, left + j * stride + d, stride * 2);
                        TILE_LOAD(5, left + (j + 16) * stride + d, stride * 2);
                        TILE_LOAD(6, query(d, i), ROW);
                        TILE_PRODUCT(0, 4, 6); TILE_PRODUCT(2, 5, 6);
                    }
                    TILE_STORE(0, score(j, i), ROW);
                    TILE_STORE(2, score(j + 16, i), ROW);
                }
                i++;
            }
        }
    }

    // The weights of two keys, for one of the terms of the output.
    MEMBER void put(int term, int key, int i, const vreal (&both)[STEP]) {
        if (few.rows) {
            for (int e = 0; e < STEP; e++) store(few.weights[term][key + e], both[e]);
        } else {
            *(vec*)weight(term, key, i) = rounded(both[0], both[1]);
        }
    }

    void rescale(int term, int i, vreal alpha) {
        if (few.rows) return few.rescale(term, alpha);
        real* sums = sum_at(term, 0, i);
        for (int d = 0; d < V_HEAD_DIM; d++) write(sums + d * LANES, read(sums + d * LANES) * alpha.part[0]);
    }

    // Values with a row for each of their elements, as the products read them.
    static void turn(bfloat* to, const bfloat* from, int64_t stride, int low, int high) {
        for (int j = low; j < high; j += 32)
            for (int d = 0; d < V_ROWS; d += 16) {
                vec lines[LANES];
                for (int e = 0; e < LANES; e++)
                    lines[e] = zipped(from + (j + 2 * e) * stride + d, from + (j + 2 * e + 1) * stride + d);
                transpose(lines);
                for (int e = 0; e < LANES; e++) *(vec*)(to + (d + e) * BLOCK_N + j) = lines[e];
            }
    }
    void turned(bfloat* to, const element* from, int64_t stride, int64_t stride_d, int keys, const bool* seen, int low, int high) {
        if (stride_d != 1 || V_HEAD_DIM % 16 || keys < BLOCK_N || seen) {
            copy<V_ROWS>(v, from, stride, stride_d, keys, V_HEAD_DIM, seen);
            from = v, stride = V_ROWS;
        }
        turn(to, from, stride, low, high);
    }

    // The values of a key tile, turned once for all queries; false where they hold infinities or NaN.
    static constexpr bool PACKS = true;
    static constexpr int64_t PACKED = V_ROWS * BLOCK_N;
    bool pack(bfloat* to, const element* from, int64_t stride, int64_t stride_d, int keys) {
        turned(to, from, stride, stride_d, keys, nullptr, 0, BLOCK_N);
        int special = 0;
        for (int n = 0; n < PACKED; n++) special |= (to[n].bits & 0x7f80) == 0x7f80;
        return !special;
    }

    // Adds the values times their weights, for a group. Of keys that are not `seen`, values are not read.
    void values(const element* from, int64_t stride, int64_t stride_d, int keys, const Spans& spans, const bool* seen,
                const bfloat* packed, int begin, int end) {
        if (few.rows)
            return few.values(from, stride, spans.first[0], spans.last[0] < keys ? spans.last[0] : keys, seen);
        const bfloat* columns = packed ? packed : v_columns;
        if (!packed && (begin == 0 || seen)) {
            int low = BLOCK_N, high = 0;
            for (int i = 0; i < spans.vectors; i++) {
                if (spans.last[i] && spans.first[i] < low) low = spans.first[i];
                if (spans.last[i] > high) high = spans.last[i];
            }
            turned(v_columns, from, stride, stride_d, keys, seen, low, high);
        }
        for (int term = 0; term < TERMS; term++)
            for (int i = begin; i < end;) {
                const bool both = spans.alike(i, 2);
                int d = 0;
                for (; d + 32 <= V_ROWS; d += 32)
                    both ? sums<true, true>(columns, term, i, d, spans) : sums<true, false>(columns, term, i, d, spans);
                if (d < V_ROWS)
                    both ? sums<false, true>(columns, term, i, d, spans) : sums<false, false>(columns, term, i, d, spans);
                i += both ? 2 : 1;
            }
    }

    // 16 or 32 elements of the output, for one or two vectors of queries.
    template<bool HIGH, bool BOTH> void sums(const bfloat* columns, int term, int i, int d, const Spans& spans) {
        const bfloat* left = columns + d * BLOCK_N;
        TILE_LOAD(0, sum_at(term, d, i), ROW);
        if (BOTH) TILE_LOAD(1, sum_at(term, d, i + 1), ROW);
        if (HIGH) TILE_LOAD(2, sum_at(term, d + 16, i), ROW);
        if (HIGH && BOTH) TILE_LOAD(3, sum_at(term, d + 16, i + 1), ROW);
        for (int j = spans.first[i]; j < spans.last[i]; j += 32) {
            TILE_LOAD(4, left + j, BLOCK_N * 2);
            TILE_LOAD(6, weight(term, j, i), ROW);
            TILE_PRODUCT(0, 4, 6);
            if (BOTH) {
                TILE_LOAD(7, weight(term, j, i + 1), ROW);
                TILE_PRODUCT(1, 4, 7);
            }
            if (HIGH) {
                TILE_LOAD(5, left + 16 * BLOCK_N + j, BLOCK_N * 2);
                TILE_PRODUCT(2, 5, 6);
                if (BOTH) TILE_PRODUCT(3, 5, 7);
            }
        }
        TILE_STORE(0, sum_at(term, d, i), ROW);
        if (BOTH) TILE_STORE(1, sum_at(term, d, i + 1), ROW);
        if (HIGH) TILE_STORE(2, sum_at(term, d + 16, i), ROW);
        if (HIGH && BOTH) TILE_STORE(3, sum_at(term, d + 16, i + 1), ROW);
    }

    template<int WIDTH>
    static void copy(bfloat* to, const bfloat* from, int64_t stride, int64_t stride_d, int keys, int width, const bool* seen) {
        for (int n = 0; n < BLOCK_N; n++)
            for (int d = 0; d < WIDTH; d++)
                to[n * WIDTH + d] = n < keys && d < width && (!seen || seen[n]) ? from[n * stride + d * stride_d] : bfloat{0};
    }

    void done() {
        asm volatile("tilerelease" ::);
        turn_few();
    }

    void turn_few() {
        for (int term = 0; term < TERMS; term++)
            for (int m = 0; m < few.rows; m++)
                for (int d = 0; d < V_HEAD_DIM; d++) sum_at(term, d, 0)[m] = few.acc[term][m][FewQueries::place(d)];
    }

    // One element of the unfinished output, for a vector of queries.
    MEMBER vreal sum(int term, int d, int i) const {
        return load(acc + ((term * VECTORS + i) * V_ROWS + d) * LANES);
    }
};
#endif

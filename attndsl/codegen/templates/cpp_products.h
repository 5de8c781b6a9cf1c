// The two products of a tile by fused multiply-adds on vectors of queries: scores = K Q^T, and acc += V^T P.
//
// An element of a product is summed in one order, whatever the shape of the block it is computed in.

constexpr int REGISTERS = VECTOR_BYTES == 32 ? 16 : 32;

// R rows by V vectors of queries: out[r] = start[r] + sum over n of left[r][n] * right[n]. A vector of queries has panels
// of its own, RIGHT and OUT numbers after those of the vector before.
template<int R, int V, bool FROM_ZERO, int RIGHT, int OUT>
INLINE void block(const real* left, int64_t left_row, int64_t left_step, const real* right, real* out, int count) {
    vec sums[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sums[r][v] = FROM_ZERO ? vec{} : read(out + v * OUT + r * LANES);
#pragma GCC unroll 4
    for (int n = 0; n < count; n++) {
        vec line[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) line[v] = read(right + v * RIGHT + n * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vec factor = splat(left[r * left_row + n * left_step]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sums[r][v] += factor * line[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) write(out + v * OUT + r * LANES, sums[r][v]);
}

// Any number of rows, in blocks as high as registers allow.
template<int V, bool FROM_ZERO, int RIGHT, int OUT>
static void product(const real* left, int64_t left_row, int64_t left_step, const real* right, real* out, int count,
                    int rows) {
    constexpr int HIGH = V == 1 ? 8 : 6;
    int r = 0;
    for (; r + HIGH <= rows; r += HIGH)
        block<HIGH, V, FROM_ZERO, RIGHT, OUT>(left + r * left_row, left_row, left_step, right, out + r * LANES, count);
    if (r + 4 <= rows) {
        block<4, V, FROM_ZERO, RIGHT, OUT>(left + r * left_row, left_row, left_step, right, out + r * LANES, count);
        r += 4;
    }
    for (; r < rows; r++)
        block<1, V, FROM_ZERO, RIGHT, OUT>(left + r * left_row, left_row, left_step, right, out + r * LANES, count);
}

// Rows of elements as rows of numbers: as they lie where they can be read so, else a copy.
struct Lines {
    const real* at;
    int64_t step;
};
template<class E> INLINE Lines lines(const E* from, int64_t stride, int64_t stride_d, int count, int width, real* copy) {
    if constexpr (sizeof(E) == sizeof(real))
        if (stride_d == 1) return {(const real*)from, stride};
    for (int n = 0; n < count; n++) {
        int d = 0;
        if (stride_d == 1)
            for (; d + LANES <= width; d += LANES) store(copy + n * width + d, reals(from + n * stride + d));
        for (; d < width; d++) copy[n * width + d] = to_real(from[n * stride + d * stride_d]);
    }
    return {copy, width};
}

// The same for at most MOST queries against many keys, where reading the keys is most of the work: along the elements of
// a key, as they lie in memory.
struct FewQueries {
    static constexpr int MOST = 4;
    static constexpr bool FITS = HEAD_DIM % LANES == 0 && V_HEAD_DIM % LANES == 0;
    static constexpr bool PAIRED = IsBfloat<element>::value && HEAD_DIM % (2 * LANES) == 0 && V_HEAD_DIM % (2 * LANES) == 0;
    static constexpr int STRETCH = 8;
    static constexpr int WIDTH = V_HEAD_DIM < STRETCH * LANES ? V_HEAD_DIM : STRETCH * LANES;

    int rows;
    alignas(64) real q[MOST][HEAD_DIM];
    alignas(64) real weights[TERMS][BLOCK_N][LANES];
    alignas(64) real acc[TERMS][MOST][V_HEAD_DIM];

    // LANES elements of a row, from d on; of bfloats in pairs, those at even places come before those at odd ones.
    template<class E> MEMBER static vreal numbers(const E* row, int d) {
        if constexpr (PAIRED) return d / LANES % 2 ? odd_reals(row + d - LANES) : even_reals(row + d);
        else return reals(row + d);
    }
    // Where element d stands among them.
    MEMBER static constexpr int place(int d) {
        return PAIRED ? d / (2 * LANES) * (2 * LANES) + d % 2 * LANES + d % (2 * LANES) / 2 : d;
    }

    // `rows` stays 0 where this is not the way.
    void queries(const element* from, int64_t stride, int64_t stride_d, int count, bool is_along) {
        rows = FITS && is_along && count <= MOST ? count : 0;
        for (int m = 0; m < rows; m++)
            for (int d = 0; d < HEAD_DIM; d++) q[m][place(d)] = to_real(from[m * stride + d * stride_d]);
        for (int term = 0; term < TERMS; term++)
            for (int m = 0; m < rows; m++)
                for (real& sum : acc[term][m]) sum = 0;
    }

    void scores(const element* from, int64_t stride, int first, int last, real* s) const {
        for (int j = first; j < last; j++) {
            fetch(from + (j + BLOCK_N) * stride, 0, HEAD_DIM, 1);
            store(s + j * LANES, vreal(0));
            for (int m = 0; m < rows; m++) {
                vreal sums[2] = {vreal(0), vreal(0)};
#pragma GCC unroll 8
                for (int d = 0; d + LANES <= HEAD_DIM; d += LANES)
                    sums[d / LANES % 2] = sums[d / LANES % 2] + numbers(from + j * stride, d) * load(q[m] + d);
                s[j * LANES + m] = sum_of(sums[0] + sums[1]);
            }
        }
    }

    void rescale(int term, vreal alpha) {
        for (int m = 0; m < rows; m++)
            for (real& sum : acc[term][m]) sum *= alpha[m];
    }

    void values(const element* from, int64_t stride, int first, int last, const bool* seen) {
        for (int term = 0; term < TERMS; term++)
            for (int m = 0; m < rows; m++)
                for (int d = 0; d < V_HEAD_DIM; d += STRETCH * LANES) {
                    vreal sums[STRETCH];
#pragma GCC unroll 8
                    for (int e = 0; e < STRETCH; e++)
                        if (d + e * LANES < V_HEAD_DIM) sums[e] = load(acc[term][m] + d + e * LANES);
                    for (int j = first; j < last; j++) {
                        if (m == 0) fetch(from + (j + BLOCK_N) * stride + d, 0, WIDTH, 1);
                        if (seen && !seen[j]) continue;
                        const vreal weight(weights[term][j][m]);
#pragma GCC unroll 8
                        for (int e = 0; e < STRETCH; e++)
                            if (d + e * LANES < V_HEAD_DIM)
                                sums[e] = sums[e] + weight * numbers(from + j * stride, d + e * LANES);
                    }
#pragma GCC unroll 8
                    for (int e = 0; e < STRETCH; e++)
                        if (d + e * LANES < V_HEAD_DIM) store(acc[term][m] + d + e * LANES, sums[e]);
                }
    }
};

// Rows of a query tile transposed: a panel for each vector of them, with a vector for each element. Rows past the end
// are 0.
template<int WIDTH> static void turn_rows(real* to, const element* from, int64_t stride, int64_t stride_d, int rows) {
    int d = 0;
    if (stride_d == 1)
        for (; d + LANES <= WIDTH; d += LANES)
            for (int i = 0; i < VECTORS; i++) {
                vec lines[LANES];
                for (int e = 0, m = i * LANES; e < LANES; e++, m++)
                    lines[e] = m < rows ? reals(from + m * stride + d).part[0] : vreal(0).part[0];
                transpose(lines);
                for (int e = 0; e < LANES; e++) write(to + (i * WIDTH + d + e) * LANES, lines[e]);
            }
    for (; d < WIDTH; d++)
        for (int m = 0; m < BLOCK_M; m++)
            to[(m / LANES * WIDTH + d) * LANES + m % LANES] = m < rows ? to_real(from[m * stride + d * stride_d]) : real(0);
}

struct ExactProducts {
    // Keys come in multiples of GRAIN, their weights STEP at a time; WIDE vectors of queries share a block of registers.
    static constexpr int GRAIN = 1;
    static constexpr int STEP = 1;
    static constexpr int WIDE = REGISTERS == 16 ? 2 : 4;
    // All vectors of queries are taken through a tile together.
    static constexpr int GROUP = VECTORS;

    alignas(64) real q[HEAD_DIM * BLOCK_M];
    alignas(64) real s[BLOCK_N * BLOCK_M];
    alignas(64) real more[TERMS > 1 ? (TERMS - 1) * BLOCK_N * BLOCK_M : 1];
    alignas(64) real acc[TERMS * V_HEAD_DIM * BLOCK_M];
    alignas(64) real copy[BLOCK_N * (HEAD_DIM > V_HEAD_DIM ? HEAD_DIM : V_HEAD_DIM)];

    FewQueries few;

    // Panels of the vectors of queries, side by side.
    MEMBER real* score(int key, int i) { return s + (i * BLOCK_N + key) * LANES; }
    MEMBER real* sum_at(int term, int d, int i) { return acc + ((term * VECTORS + i) * V_HEAD_DIM + d) * LANES; }

    // Queries of a tile, transposed.
    void queries(const element* from, int64_t stride, int64_t stride_d, int rows, bool is_along) {
        few.queries(from, stride, stride_d, rows, is_along);
        turn_rows<HEAD_DIM>(q, from, stride, stride_d, rows);
        for (real& sum : acc) sum = 0;
    }

    // Scores of the vectors of queries from `begin` to `end`, a group.
    void scores(const element* from, int64_t stride, int64_t stride_d, int keys, const Spans& spans, int begin, int end) {
        if (few.rows)
            return few.scores(from, stride, spans.first[0], spans.last[0] < keys ? spans.last[0] : keys, s);
        Lines k = lines(from, stride, stride_d, keys, HEAD_DIM, copy);
        for (int i = begin; i < end;) {
            const int first = spans.first[i], rows = spans.last[i] - first;
            const real* left = k.at + first * k.step;
            const real* right = q + i * HEAD_DIM * LANES;
            real* out = score(first, i);
            if (spans.alike(i, WIDE)) {
                product<WIDE, true, HEAD_DIM * LANES, BLOCK_N * LANES>(left, k.step, 1, right, out, HEAD_DIM, rows);
                i += WIDE;
            } else {
                product<1, true, 0, 0>(left, k.step, 1, right, out, HEAD_DIM, rows);
                i++;
            }
        }
    }

    // The weights of a key, for one of the terms of the output; those of the first take the place of the scores.
    MEMBER real* weights(int term, int key, int i) {
        return term ? more + ((term - 1) * VECTORS + i) * BLOCK_N * LANES + key * LANES : score(key, i);
    }
    MEMBER void put(int term, int key, int i, const vreal (&weight)[STEP]) {
        store(few.rows ? few.weights[term][key] : weights(term, key, i), weight[0]);
    }

    void rescale(int term, int i, vreal alpha) {
        if (few.rows) return few.rescale(term, alpha);
        real* sums = sum_at(term, 0, i);
        for (int d = 0; d < V_HEAD_DIM; d++) write(sums + d * LANES, read(sums + d * LANES) * alpha.part[0]);
    }

    // Values are read as they lie.
    static constexpr bool PACKS = false;
    static constexpr int64_t PACKED = 0;
    bool pack(element*, const element*, int64_t, int64_t, int) { return false; }

    // Adds the values times their weights, for a group. Of keys that are not `seen`, values are not read.
    void values(const element* from, int64_t stride, int64_t stride_d, int keys, const Spans& spans, const bool* seen,
                const element*, int begin, int end) {
        if (few.rows)
            return few.values(from, stride, spans.first[0], spans.last[0] < keys ? spans.last[0] : keys, seen);
        Lines v = lines(from, stride, stride_d, keys, V_HEAD_DIM, copy);
        if (seen) v = without(v, keys, seen);
        for (int term = 0; term < TERMS; term++)
            for (int i = begin; i < end;) {
                const int first = spans.first[i], count = spans.last[i] - first;
                const real* left = v.at + first * v.step;
                const real* right = weights(term, first, i);
                real* out = sum_at(term, 0, i);
                if (spans.alike(i, WIDE)) {
                    product<WIDE, false, BLOCK_N * LANES, V_HEAD_DIM * LANES>(left, 1, v.step, right, out, count, V_HEAD_DIM);
                    i += WIDE;
                } else {
                    product<1, false, 0, 0>(left, 1, v.step, right, out, count, V_HEAD_DIM);
                    i++;
                }
            }
    }

    Lines without(Lines v, int keys, const bool* seen) {
        for (int n = 0; n < keys; n++)
            for (int d = 0; d < V_HEAD_DIM; d++)
                copy[n * V_HEAD_DIM + d] = seen[n] ? v.at[n * v.step + d] : real(0);
        return {copy, V_HEAD_DIM};
    }

    void done() { turn_few(); }
    static bool ready() { return true; }

    void turn_few() {
        for (int term = 0; term < TERMS; term++)
            for (int m = 0; m < few.rows; m++)
                for (int d = 0; d < V_HEAD_DIM; d++) sum_at(term, d, 0)[m] = few.acc[term][m][FewQueries::place(d)];
    }

    // One element of the unfinished output, for a vector of queries.
    MEMBER vreal sum(int term, int d, int i) const {
        return load(acc + ((term * VECTORS + i) * V_HEAD_DIM + d) * LANES);
    }
};

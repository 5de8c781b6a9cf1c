// What gradients are made of: products over the keys of a tile, one sum for each query, and over its queries, one sum for
// each key. Values of pairs stand in panels for the former, in lines for the latter.
//
// An element of a product is summed in one order, whatever the shape of the block it is computed in.

// How many tasks a call is split into, where it has few key heads: each has sums for all keys of its own, so not too many.
constexpr int64_t TASKS = 32;
constexpr int64_t MOST_SHARES = 8;

// The values of a tile: a panel for each vector of queries, with a vector for each key.
struct Panels {
    alignas(64) real at[BLOCK_N * BLOCK_M];
    MEMBER real* place(int key, int i) { return at + (i * BLOCK_N + key) * LANES; }
};
// The same with a line for each key, on which all queries stand side by side.
struct KeyLines {
    alignas(64) real at[BLOCK_N * BLOCK_M];
    MEMBER real* place(int key, int i) { return at + key * BLOCK_M + i * LANES; }
};

// Rows of elements in panels that hold LANES elements of every row; the last panel is filled up with zeros.
template<int WIDTH> constexpr int PANELS_OF = (WIDTH + LANES - 1) / LANES;

template<int WIDTH> struct OwnRows {
    alignas(64) real at[PANELS_OF<WIDTH> * BLOCK_M * LANES];
    alignas(64) real some[PANELS_OF<WIDTH> * BLOCK_M * LANES];
    bool finite;

    // Rows past the end are 0.
    void read(const element* from, int64_t stride, int64_t stride_d, int rows) {
        for (int panel = 0; panel < PANELS_OF<WIDTH>; panel++)
            for (int m = 0; m < BLOCK_M; m++) {
                real* to = at + (panel * BLOCK_M + m) * LANES;
                const int d = panel * LANES, width = WIDTH - d < LANES ? WIDTH - d : LANES;
                if (m < rows && stride_d == 1 && width == LANES) {
                    store(to, reals(from + m * stride + d));
                } else {
                    store(to, vreal(0));
                    for (int e = 0; m < rows && e < width; e++) to[e] = to_real(from[m * stride + (d + e) * stride_d]);
                }
            }
        vreal sum(0);
        for (int n = 0; n < PANELS_OF<WIDTH> * BLOCK_M; n++) sum = sum + load(at + n * LANES) * vreal(0);
        finite = sum_of(sum) == 0;
    }

    // The rows that met a key of a tile; others hold what products must not see.
    const real* those_met(const LaneBits* met, int vectors) {
        bool all_met = true;
        for (int i = 0; i < vectors; i++) all_met &= met[i] == ALL_LANES;
        if (finite || all_met) return at;
        for (int panel = 0; panel < PANELS_OF<WIDTH>; panel++)
            for (int m = 0; m < vectors * LANES; m++) {
                const int place = (panel * BLOCK_M + m) * LANES;
                store(some + place, met[m / LANES] >> m % LANES & 1 ? load(at + place) : vreal(0));
            }
        return some;
    }
};

// Rows of a query tile, transposed.
template<int WIDTH> struct TurnedRows {
    alignas(64) real at[WIDTH * BLOCK_M];

    void read(const element* from, int64_t stride, int64_t stride_d, int rows) {
        turn_rows<WIDTH>(at, from, stride, stride_d, rows);
    }

    // The products of the rows with those of a key tile.
    void times(Lines keys, int count, const Spans& spans, Panels& out) const {
        for (int i = 0; i < spans.vectors;) {
            const int first = spans.first[i], last = spans.last[i] < count ? spans.last[i] : count;
            const real* left = keys.at + first * keys.step;
            const real* right = at + i * WIDTH * LANES;
            if (spans.alike(i, ExactProducts::WIDE)) {
                product<ExactProducts::WIDE, true, WIDTH * LANES, BLOCK_N * LANES>(left, keys.step, 1, right, out.place(first, i),
                                                                                  WIDTH, last - first);
                i += ExactProducts::WIDE;
            } else {
                product<1, true, 0, 0>(left, keys.step, 1, right, out.place(first, i), WIDTH, last - first);
                i++;
            }
        }
    }
};

// A sum for each query of a tile: its values times the rows of the keys.
template<int WIDTH> struct RowSums {
    alignas(64) real at[WIDTH * BLOCK_M];

    void clear() {
        for (real& sum : at) sum = 0;
    }
    MEMBER vreal sum(int d, int i) const { return load(at + (i * WIDTH + d) * LANES); }

    void add(Panels& values, Lines keys, int count, const Spans& spans) {
        for (int i = 0; i < spans.vectors;) {
            const int first = spans.first[i], last = spans.last[i] < count ? spans.last[i] : count;
            const real* left = keys.at + first * keys.step;
            real* out = at + i * WIDTH * LANES;
            if (spans.alike(i, ExactProducts::WIDE)) {
                product<ExactProducts::WIDE, false, BLOCK_N * LANES, WIDTH * LANES>(left, 1, keys.step, values.place(first, i), out,
                                                                                   last - first, WIDTH);
                i += ExactProducts::WIDE;
            } else {
                product<1, false, 0, 0>(left, 1, keys.step, values.place(first, i), out, last - first, WIDTH);
                i++;
            }
        }
    }
};

// A sum for each key of a tile, in panels like those of `OwnRows`: its values times the rows of the queries.
template<int WIDTH> struct ColumnSums {
    static constexpr int64_t SIZE = PANELS_OF<WIDTH> * BLOCK_N * LANES;

    static void add(real* sums, KeyLines& values, const real* queries, int rows, int low, int high) {
        int panel = 0;
        for (; panel + ExactProducts::WIDE <= PANELS_OF<WIDTH>; panel += ExactProducts::WIDE)
            add_panels<ExactProducts::WIDE>(sums, values, queries, rows, low, high, panel);
        for (; panel < PANELS_OF<WIDTH>; panel++) add_panels<1>(sums, values, queries, rows, low, high, panel);
    }
    template<int V>
    static void add_panels(real* sums, KeyLines& values, const real* queries, int rows, int low, int high, int panel) {
        product<V, false, BLOCK_M * LANES, BLOCK_N * LANES>(values.place(low, 0), BLOCK_M, 1, queries + panel * BLOCK_M * LANES,
                                                            sums + (panel * BLOCK_N + low) * LANES, rows, high - low);
    }

    // Stores the sums of a key tile as rows of elements.
    static void finish(const real* sums, real scale, element* to, int64_t stride, int64_t stride_d, int keys) {
        for (int panel = 0; panel < PANELS_OF<WIDTH>; panel++)
            for (int j = 0; j < keys; j++) {
                const vreal line = load(sums + (panel * BLOCK_N + j) * LANES) * vreal(scale);
                const int d = panel * LANES, width = WIDTH - d < LANES ? WIDTH - d : LANES;
                if (stride_d == 1 && width == LANES) {
                    put_all(to + j * stride + d, line);
                } else {
                    for (int e = 0; e < width; e++) put(to + j * stride + (d + e) * stride_d, line[e]);
                }
            }
    }
};

// Rows of a key tile without those no query sees, which may hold anything.
INLINE Lines of_seen(Lines rows, int count, int width, const bool* seen, real* copy) {
    for (int n = 0; n < count; n++)
        for (int d = 0; d < width; d++) copy[n * width + d] = seen[n] ? rows.at[n * rows.step + d] : real(0);
    return {copy, width};
}

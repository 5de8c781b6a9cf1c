// Tiles of scores, kept transposed: vectors run along the queries, and a panel of them holds a vector for each key. Row
// statistics are then elementwise, and keys are read as they lie in memory.

constexpr int VECTORS = BLOCK_M / LANES;
constexpr real LOG2E = 1.4426950408889634;

typedef real vec __attribute__((vector_size(VECTOR_BYTES), may_alias));

template<bool B> struct Flag { static constexpr bool value = B; };

INLINE vec read(const real* from) { return *(const vec*)from; }
INLINE void write(real* to, vec x) { *(vec*)to = x; }
INLINE vec splat(real x) { return x - vec{}; }
// The larger; a NaN on the right is passed over.
INLINE vreal larger(vreal a, vreal b) { return vreal(b.part[0] > a.part[0] ? b.part[0] : a.part[0]); }

// LANES rows of LANES numbers exchanged for their columns: halves, quarters and so on change sides.
template<int... I> struct Places {};
template<int N, int... I> struct UpTo : UpTo<N - 1, N - 1, I...> {};
template<int... I> struct UpTo<0, I...> { typedef Places<I...> type; };
typedef Raw<truth, LANES>::type Order;

template<int SIZE, int... I> INLINE void exchange(vec& a, vec& b, Places<I...>) {
#if defined(__clang__)
    vec first = __builtin_shufflevector(a, b, (I & SIZE ? LANES + I - SIZE : I)...);
    b = __builtin_shufflevector(a, b, (I & SIZE ? LANES + I : I + SIZE)...);
#else
    vec first = __builtin_shuffle(a, b, Order{(I & SIZE ? LANES + I - SIZE : I)...});
    b = __builtin_shuffle(a, b, Order{(I & SIZE ? LANES + I : I + SIZE)...});
#endif
    a = first;
}
template<int SIZE = LANES / 2> INLINE void transpose(vec (&rows)[LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & SIZE)) exchange<SIZE>(rows[i], rows[i + SIZE], typename UpTo<LANES>::type());
    if constexpr (SIZE > 1) transpose<SIZE / 2>(rows);
}

// Rows of elements from columns of numbers: `column(d)` holds element d of LANES rows.
template<class E, class F>
INLINE void put_rows(E* to, int64_t stride, int64_t stride_d, int rows, int width, F column) {
    int d = 0;
    if (stride_d == 1)
        for (; d + LANES <= width; d += LANES) {
            vec lines[LANES];
            for (int e = 0; e < LANES; e++) lines[e] = column(d + e).part[0];
            transpose(lines);
            for (int m = 0; m < rows; m++) put_all(to + m * stride + d, vreal(Lanes<real>::Part(lines[m])));
        }
    for (; d < width; d++) {
        const vreal numbers = column(d);
        for (int m = 0; m < rows; m++) put(to + m * stride + d * stride_d, numbers[m]);
    }
}

// The largest of a vector of queries' scores, in four strands: one after the other, each would wait for the last.
INLINE vreal tallest(const real* scores, int keys) {
    vreal strands[4] = {vreal(-INF), vreal(-INF), vreal(-INF), vreal(-INF)};
    int j = 0;
    for (; j + 4 <= keys; j += 4)
#pragma GCC unroll 4
        for (int e = 0; e < 4; e++) strands[e] = larger(strands[e], load(scores + (j + e) * LANES));
    for (; j < keys; j++) strands[0] = larger(strands[0], load(scores + j * LANES));
    return larger(larger(strands[0], strands[1]), larger(strands[2], strands[3]));
}

// One bit for each lane.
#if defined(__AVX512DQ__) && defined(__AVX512BW__)
typedef uint16_t LaneBits;
INLINE LaneBits bits_of(vbool c) {
    if constexpr (sizeof(truth) == 4) return __builtin_ia32_cvtd2mask512(bits_as<Raw<int, 16>::type>(c.part));
    else return __builtin_ia32_cvtq2mask512(bits_as<Raw<long long, 8>::type>(c.part));
}
INLINE vbool lanes_of(LaneBits bits) {
    if constexpr (sizeof(truth) == 4) return vbool(bits_as<vbool::Part>(__builtin_ia32_cvtmask2d512(bits)));
    else return vbool(bits_as<vbool::Part>(__builtin_ia32_cvtmask2q512(bits)));
}
#else
typedef uint16_t LaneBits;
INLINE vbool::Part lane_weights() {
    vbool::Part weights;
    for (int lane = 0; lane < LANES; lane++) weights[lane] = truth(1) << lane;
    return weights;
}
INLINE LaneBits bits_of(vbool c) {
    return folded<LANES, truth>(vbool::Part(c.part & lane_weights()), [](auto a, auto b) { return a | b; });
}
INLINE vbool lanes_of(LaneBits bits) { return vbool(vbool::Part((lane_weights() & truth(bits)) != 0)); }
#endif
constexpr LaneBits ALL_LANES = LaneBits((1u << LANES) - 1);

// The keys of a tile that each vector of queries has to do with: first, and one past the last.
struct Spans {
    int vectors;
    int first[VECTORS];
    int last[VECTORS];

    static Spans whole(int vectors) {
        Spans spans = {vectors, {}, {}};
        for (int i = 0; i < vectors; i++) spans.last[i] = BLOCK_N;
        return spans;
    }
    static Spans none(int vectors) {
        Spans spans = {vectors, {}, {}};
        for (int i = 0; i < vectors; i++) spans.first[i] = BLOCK_N;
        return spans;
    }
    MEMBER void see(int i, int key, LaneBits bits) {
        first[i] = bits && key < first[i] ? key : first[i];
        last[i] = bits ? key + 1 : last[i];
    }
    bool empty() const {
        for (int i = 0; i < vectors; i++)
            if (last[i]) return false;
        return true;
    }
    // Ends moved outward to multiples of `grain`; neighbours that have most keys in common are given the same ones, so
    // that one wide product serves them.
    void settle(int grain, int wide) {
        for (int i = 0; i < vectors; i++) {
            if (!last[i]) first[i] = 0;
            first[i] = first[i] / grain * grain;
            last[i] = (last[i] + grain - 1) / grain * grain;
        }
        for (int i = 0; i + wide <= vectors; i += wide) {
            int low = BLOCK_N, high = 0, sum = 0;
            for (int e = i; e < i + wide; e++) {
                if (last[e] && first[e] < low) low = first[e];
                if (last[e] > high) high = last[e];
                sum += last[e] - first[e];
            }
            if (!sum || 4 * sum < 3 * wide * (high - low)) continue;
            for (int e = i; e < i + wide; e++) first[e] = low, last[e] = high;
        }
    }
    // Whether a key some vector has to do with is not among those seen.
    bool skips(const bool* seen) const {
        int low = BLOCK_N, high = 0, sum = 0;
        for (int i = 0; i < vectors; i++) {
            if (last[i] && first[i] < low) low = first[i];
            if (last[i] > high) high = last[i];
        }
        for (int j = low; j < high; j++) sum += seen[j];
        return sum < high - low;
    }
    // Whether `wide` vectors from i on share their keys.
    bool alike(int i, int wide) const {
        if (i + wide > vectors) return false;
        for (int e = i + 1; e < i + wide; e++)
            if (first[e] != first[i] || last[e] != last[i]) return false;
        return true;
    }
};

// Keys as a query tile walks them: partial tiles from lo, full ones from full_lo to full_hi, partial ones to hi.
struct Stretch { integer lo, full_lo, full_hi, hi; };

template<int N> INLINE void in_order(Stretch (&parts)[N]) {
    for (int last = N - 1; last > 0; last--)
        for (int at = 0; at < last; at++)
            if (parts[at].lo > parts[at + 1].lo) {
                Stretch late = parts[at];
                parts[at] = parts[at + 1];
                parts[at + 1] = late;
            }
}

// The least and the greatest of a value over the rows of a tile, and whether a condition holds for some or all of them.
template<class R, class F> INLINE integer least(const R* rows, int vectors, F value) {
    vint found = value(rows[0]);
    for (int i = 1; i < vectors; i++) found = min(found, vint(value(rows[i])));
    integer result = found[0];
    for (int lane = 1; lane < LANES; lane++) result = min(result, found[lane]);
    return result;
}
template<class R, class F> INLINE integer greatest(const R* rows, int vectors, F value) {
    return -least(rows, vectors, [&](const R& row) { return -vint(value(row)); });
}
template<class R, class F> INLINE bool any_row(const R* rows, int vectors, F value) {
    for (int i = 0; i < vectors; i++)
        if (any(vbool(value(rows[i])))) return true;
    return false;
}
template<class R, class F> INLINE bool every_row(const R* rows, int vectors, F value) {
    for (int i = 0; i < vectors; i++)
        if (!all(vbool(value(rows[i])))) return false;
    return true;
}

// What a sum is divided by may be 0: then the weight is 0, and not infinite.
INLINE vreal unless_infinite(vreal factor) { return select(fabs(factor) == vreal(INF), vreal(0), factor); }

// Asks for rows of elements long before they are read: into the second cache, which waits for more of them at a time.
template<class E> INLINE void fetch(const E* from, int64_t stride, int width, int rows) {
    for (int n = 0; n < rows; n++)
        for (int d = 0; d < width; d += 64 / sizeof(E)) __builtin_prefetch(from + n * stride + d, 0, 2);
}

// Roots of rows: the threshold at which a sum over the keys falls to a total, looked for among scores that are kept.

// Floats as integers in the same order, and such integers as floats.
constexpr truth SIGN = truth(1) << (sizeof(truth) * 8 - 1);
INLINE Order turned_below_zero(Order bits) { return bits < 0 ? bits ^ ~SIGN : bits; }
INLINE Order ordered(vreal x) { return turned_below_zero(bits_as<Order>(x.part[0])); }
INLINE vreal number(Order n) { return vreal(bits_as<vec>(turned_below_zero(n))); }

// The least float from `lower` to `upper` at which `sum`, which never rises, is at most `total`; `upper` where none less
// will do. Of rows that are not `asked` for, any.
template<class F> INLINE vreal root(vreal total, vreal lower, vreal upper, vbool asked, F sum) {
    Order high = ordered(upper), low = asked.part ? ordered(lower) : high;
    for (Order open = low < high; any(vbool(open)); open = low < high) {
        // The mean, rounded down, of integers whose sum may not fit.
        const Order middle = (low & high) + ((low ^ high) >> 1);
        const Order fits = (sum(number(middle)) <= total).part;
        high = open & fits ? middle : high;
        low = open & ~fits ? middle + 1 : low;
    }
    const vbool known = (total == total) & (lower == lower) & (upper == upper);
    return select(known, number(high), vreal(NAN));
}

// The scores of a query tile, for each vector of queries one after the other, so that a step of a search reads nothing
// else. They are kept in stretches of keys that follow each other, in whole groups of STRANDS; -inf fills the last one.
struct Kept {
    static constexpr int STRANDS = 4;
    struct Stretch { integer first, last; };

    real* scores;
    Stretch* stretches;
    int64_t key_tiles;
    int count[VECTORS];

    static int64_t bytes(int64_t key_tiles, int64_t vectors) {
        return (vectors * key_tiles * (BLOCK_N * LANES * sizeof(real) + sizeof(Stretch)) / 64 + 1) * 64;
    }
    void place(char* memory, int64_t tiles, int64_t vectors) {
        key_tiles = tiles;
        scores = (real*)memory;
        stretches = (Stretch*)(scores + vectors * tiles * BLOCK_N * LANES);
    }
    void clear() {
        for (int& some : count) some = 0;
    }
    // The next key tile: `keys` scores of the i-th vector, that of `first` and those after it.
    void add(int i, integer first, int keys, const real* from) {
        const int64_t at = i * key_tiles + count[i]++;
        stretches[at] = {first, integer(first + keys - 1)};
        real* to = scores + at * BLOCK_N * LANES;
        __builtin_memcpy(to, from, keys * LANES * sizeof(real));
        for (int j = keys; j % STRANDS; j++) store(to + j * LANES, vreal(-INF));
    }
    // The sum of `value(kv_idx, s)` over the keys of the i-th vector.
    template<class F> MEMBER vreal sum(int i, F value) const {
        vreal total(0);
        for (int n = 0; n < count[i]; n++) {
            const auto [first, last] = stretches[i * key_tiles + n];
            const real* from = scores + (i * key_tiles + n) * BLOCK_N * LANES;
            vreal strands[STRANDS] = {vreal(0), vreal(0), vreal(0), vreal(0)};
            for (integer j = 0; first + j <= last; j += STRANDS)
#pragma GCC unroll 4
                for (int e = 0; e < STRANDS; e++)
                    strands[e] = strands[e] + value(min(first + j + e, last), load(from + (j + e) * LANES));
            total = total + (strands[0] + strands[1] + (strands[2] + strands[3]));
        }
        return total;
    }
};

struct Arguments {
    const float* Q;
    const float* K;
    const float* Row_tau_i;
    float* Row_entropy;
    int64_t stride_qb;
    int64_t stride_qh;
    int64_t stride_qm;
    int64_t stride_qd;
    int64_t stride_kb;
    int64_t stride_kh;
    int64_t stride_kn;
    int64_t stride_kd;
    int64_t batch;
    int64_t heads;
    int64_t group;
    int64_t q_len;
    int64_t kv_len;
    int64_t q_offset;
    double sm_scale;
};

// What a vector of queries has of its own, and what a key has.
struct Row {
    vint q_idx;
    vreal tau_i;
};
struct Column {
};

// What a query tile is computed in.
struct Work {
    Products products;
    alignas(64) real copy[2][BLOCK_N * (HEAD_DIM > V_HEAD_DIM ? HEAD_DIM : V_HEAD_DIM)];
    Row rows[VECTORS];
    Column columns[BLOCK_N];
    LaneBits inside[VECTORS];
    LaneBits live[BLOCK_N][VECTORS];
    vreal entropy[VECTORS];
};

struct Launch {
    const Arguments& args;
    Work* work;
    int64_t tiles;
    int64_t key_tiles;
    int64_t kv_heads;
    // Into how many tasks the query tiles of a key head are shared out, and what each of them sums for keys.
    int64_t shares;
    int64_t area;
    real* areas;
};

// One query tile against all keys; what belongs to keys is added to `area`.
static void query_tile(const Launch& launch, int64_t b, int64_t h, integer tile, real* area, Work& w) {
    const Arguments& args = launch.args;
    const integer q_len = args.q_len;
    const integer kv_len = args.kv_len;
    const integer q_offset = args.q_offset;
    const real sm_scale = args.sm_scale;
    const int64_t kv_h = h / args.group;
    const element* Q = args.Q + b * args.stride_qb + h * args.stride_qh + tile * BLOCK_M * args.stride_qm;
    const element* K = args.K + b * args.stride_kb + kv_h * args.stride_kh;
    const int rows = min(integer(BLOCK_M), integer(q_len - tile * BLOCK_M));
    const int vectors = (rows + LANES - 1) / LANES;
    const int64_t first_row = (b * args.heads + h) * q_len + tile * BLOCK_M;
    for (int i = 0; i < vectors; i++) {
        // Rows past the end repeat the last one and take part in nothing.
        const int lanes = min(LANES, rows - i * LANES);
        w.inside[i] = LaneBits((1u << lanes) - 1);
        const vint q_idx = min(vint(tile * BLOCK_M + i * LANES) + iota(), vint(q_len - 1)) + vint(q_offset);
        const vreal tau_i = row_values(args.Row_tau_i + first_row + i * LANES, lanes);
        w.rows[i] = {q_idx, tau_i};
        w.entropy[i] = vreal(0);
    }
    w.products.queries(Q, args.stride_qm, args.stride_qd, rows, args.stride_kd == 1 && true);

    // Calls `visit` for every key tile, in ascending order, and says which of them need the mask.
    auto walk = [&](auto visit) {
        auto over = [&](integer lo, integer hi, auto partial) {
            for (integer start_n = lo; start_n < hi; start_n += BLOCK_N) visit(start_n, partial);
        };
        auto stretch = [&](integer lo, integer full_lo, integer full_hi, integer hi) {
            over(lo, min(full_lo, hi), Flag<true>());
            if (rows == BLOCK_M) over(full_lo, full_hi, Flag<false>());
            else over(full_lo, full_hi, Flag<true>());
            over(full_hi, hi, Flag<true>());
        };
        const integer q_first = q_offset + tile * BLOCK_M;
        const integer q_last = q_offset + min(integer(tile * BLOCK_M + BLOCK_M), q_len) - 1;
        // Keys that some query of the tile sees.
        integer key_lo = 0;
        integer key_hi = kv_len;
        key_hi = min(key_hi, integer(q_last + 1));
        // Keys that every query of the tile sees, in whole key tiles.
        integer full_lo = 0;
        integer full_hi = kv_len;
        full_hi = min(full_hi, integer(q_first + 1));
        full_hi = max(full_lo, integer(max(full_hi, 0) / BLOCK_N * BLOCK_N));
        stretch(key_lo, full_lo, full_hi, key_hi);
    };
    walk([&](integer start_n, auto partial) {
        constexpr bool PARTIAL = decltype(partial)::value;
        const int keys = PARTIAL ? min(integer(BLOCK_N), integer(kv_len - start_n)) : BLOCK_N;
        Spans spans = Spans::whole(vectors);
        bool seen[BLOCK_N];
        LaneBits met[VECTORS] = {};
        bool has_gaps = false;
        if constexpr (PARTIAL) {
            // Which queries see which keys, before anything is multiplied.
            spans = Spans::none(vectors);
            for (int j = 0; j < keys; j++) {
                const integer kv_idx = start_n + j;
                LaneBits some = 0;
                for (int i = 0; i < vectors; i++) {
                    const auto [q_idx, tau_i] = w.rows[i];
                    // test_cpp.py:37
                    const LaneBits bits = bits_of(vbool(kv_idx <= q_idx)) & w.inside[i];
                    w.live[j][i] = bits;
                    met[i] |= bits;
                    some |= bits;
                    spans.see(i, j, bits);
                }
                seen[j] = some;
            }
            if (spans.empty()) return;
            for (int j = keys; j < BLOCK_N; j++) {
                seen[j] = false;
                for (int i = 0; i < vectors; i++) w.live[j][i] = 0;
            }
            spans.settle(Products::GRAIN, Products::WIDE);
            has_gaps = spans.skips(seen);
        } else {
            for (int i = 0; i < vectors; i++) met[i] = ALL_LANES;
        }
        w.products.scores(K + start_n * args.stride_kn, args.stride_kn, args.stride_kd, keys, spans, 0, vectors);
        for (int i = 0; i < vectors; i++) {
            if (spans.first[i] == spans.last[i]) continue;
            const auto [q_idx, tau_i] = w.rows[i];
            vreal entropy = w.entropy[i];
            for (int j = spans.first[i]; j < spans.last[i]; j++) {
                vreal s = load(w.products.score(j, i)) * vreal(sm_scale);
                if constexpr (PARTIAL) s = select(lanes_of(w.live[j][i]), s, vreal(-INF));
                const vreal term_ = maximum(s - tau_i, 0.0f);
                vreal p = vreal(select(term_ == 0.0f, vreal(0.0f), -(term_ * log(term_))));
                if constexpr (PARTIAL) p = select(lanes_of(w.live[j][i]), p, vreal(0));
                entropy = entropy + p;
            }
            w.entropy[i] = entropy;
        }
    });
    w.products.done();
    for (int m = 0; m < rows; m++) args.Row_entropy[first_row + m] = w.entropy[m / LANES][m % LANES];
}

static void run_task(void* context, int64_t task, int thread) {
    const Launch& launch = *(const Launch*)context;
    const Arguments& args = launch.args;
    const int64_t pair = task / launch.shares, units = args.group * launch.tiles;
    real* area = launch.areas + task * launch.area;
    for (int64_t n = 0; n < launch.area; n += LANES) store(area + n, vreal(0));
    for (int64_t unit = task % launch.shares; unit < units; unit += launch.shares)
        query_tile(launch, pair / launch.kv_heads, pair % launch.kv_heads * args.group + unit / launch.tiles,
                   unit % launch.tiles, area, launch.work[thread]);
}

}

extern "C" void* aligned_alloc(__SIZE_TYPE__, __SIZE_TYPE__);
extern "C" void free(void*);

extern "C" __attribute__((visibility("default"))) int row_outputs(const attndsl::Arguments* args, attndsl::Parallel parallel,
                                                              int threads) {
    using namespace attndsl;
    if (!Products::ready()) return 2;
    const int64_t tiles = (args->q_len + BLOCK_M - 1) / BLOCK_M, key_tiles = (args->kv_len + BLOCK_N - 1) / BLOCK_N;
    const int64_t pairs = args->batch * args->heads / args->group, units = args->group * tiles;
    const int64_t shares = units, area = 0;
    real* areas = nullptr;
    Work* work = (Work*)aligned_alloc(64, threads * sizeof(Work));
    if (work) {
        Launch launch = {*args, work, tiles, key_tiles, pairs / args->batch, shares, area, areas};
        parallel(run_task, &launch, pairs * shares, threads);
    }
    free(work);
    free(areas);
    return work ? 0 : 1;
}

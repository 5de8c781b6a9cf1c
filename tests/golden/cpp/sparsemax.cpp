struct Arguments {
    const float* Q;
    const float* K;
    const float* V;
    float* Out;
    float* Max_score;
    float* Row_tau_i;
    int64_t stride_qb;
    int64_t stride_qh;
    int64_t stride_qm;
    int64_t stride_qd;
    int64_t stride_kb;
    int64_t stride_kh;
    int64_t stride_kn;
    int64_t stride_kd;
    int64_t stride_vb;
    int64_t stride_vh;
    int64_t stride_vn;
    int64_t stride_vd;
    int64_t stride_ob;
    int64_t stride_oh;
    int64_t stride_om;
    int64_t stride_od;
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
};
struct Column {
};

extern "C" void* aligned_alloc(__SIZE_TYPE__, __SIZE_TYPE__);
extern "C" void free(void*);

// What a query tile is computed in.
struct Work {
    Products products;
    Row rows[VECTORS];
    Column columns[BLOCK_N];
    LaneBits live[BLOCK_N][VECTORS];
    LaneBits alive[VECTORS];
    vreal m_i[VECTORS], tau_i[VECTORS] ;
    Kept kept;
};

struct Launch {
    const Arguments& args;
    Work* work;
    int64_t tiles;
    int64_t key_tiles;
    // The values of every key tile as products read them, and whether they are all finite; null where they are not kept.
    element* packed;
    bool* finite;
};

// One query tile against the keys from `from` to `to`: leaves row statistics and unfinished sums in `w`.
static void query_tile(const Launch& launch, int64_t b, int64_t h, integer tile, integer from,
                       integer to, Work& w) {
    const Arguments& args = launch.args;
    const integer q_len = args.q_len;
    const integer kv_len = args.kv_len;
    const integer q_offset = args.q_offset;
    const real sm_scale = args.sm_scale;
    const int64_t kv_h = h / args.group;
    const element* Q = args.Q + b * args.stride_qb + h * args.stride_qh + tile * BLOCK_M * args.stride_qm;
    const element* K = args.K + b * args.stride_kb + kv_h * args.stride_kh;
    const element* V = args.V + b * args.stride_vb + kv_h * args.stride_vh;
    const int rows = min(integer(BLOCK_M), integer(q_len - tile * BLOCK_M));
    const int vectors = (rows + LANES - 1) / LANES;
    for (int i = 0; i < vectors; i++) {
        // Rows past the end repeat the last one and are not stored.
        const vint q_idx = min(vint(tile * BLOCK_M + i * LANES) + iota(), vint(q_len - 1)) + vint(q_offset);
        w.rows[i] = {q_idx};
        w.alive[i] = 0;
        w.m_i[i] = vreal(-INF);
        w.tau_i[i] = vreal(0);
    }

    // Calls `visit` for every key tile, in ascending order, and says which of them need the mask.
    auto walk = [&](auto visit) {
        auto over = [&](integer lo, integer hi, auto partial) {
            for (integer start_n = max(lo, from); start_n < min(hi, to); start_n += BLOCK_N) visit(start_n, partial);
        };
        auto stretch = [&](integer lo, integer full_lo, integer full_hi, integer hi) {
            over(lo, min(full_lo, hi), Flag<true>());
            over(full_lo, full_hi, Flag<false>());
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
    w.products.queries(Q, args.stride_qm, args.stride_qd, rows, args.stride_kd == 1 && args.stride_vd == 1);

    // Row statistics.
    w.kept.clear();
    walk([&](integer start_n, auto partial) {
        constexpr bool PARTIAL = decltype(partial)::value;
        const int keys = PARTIAL ? min(integer(BLOCK_N), integer(kv_len - start_n)) : BLOCK_N;
        if (vectors == 1 && rows > FewQueries::MOST) {
            // With few queries there is little to compute before the next keys are needed.
            fetch(K + (start_n + BLOCK_N) * args.stride_kn, args.stride_kn, HEAD_DIM, BLOCK_N);
            fetch(V + (start_n + BLOCK_N) * args.stride_vn, args.stride_vn, V_HEAD_DIM, BLOCK_N);
        }
        Spans spans = Spans::whole(vectors);
        bool seen[BLOCK_N];
        bool has_gaps = false;
        if constexpr (PARTIAL) {
            // Which queries see which keys, before anything is multiplied.
            spans = Spans::none(vectors);
            for (int j = 0; j < keys; j++) {
                const integer kv_idx = start_n + j;
                LaneBits some = 0;
                for (int i = 0; i < vectors; i++) {
                    const auto [q_idx] = w.rows[i];
                    // test_cpp.py:37
                    const LaneBits bits = bits_of(vbool(kv_idx <= q_idx));
                    w.live[j][i] = bits;
                    w.alive[i] |= bits;
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
        }
        else {
            for (int i = 0; i < vectors; i++) w.alive[i] = ALL_LANES;
        }
        for (int group = 0; group < vectors; group += Products::GROUP) {
            const int end = min(group + Products::GROUP, vectors);
            w.products.scores(K + start_n * args.stride_kn, args.stride_kn, args.stride_kd, keys, spans, group, end);
            for (int i = group; i < end; i++) {
                if (spans.first[i] == spans.last[i]) continue;
                const auto [q_idx] = w.rows[i];
                const vreal m_i = w.m_i[i];
                const vreal tau_i = w.tau_i[i];
                vreal largest(-INF);
                for (int j = spans.first[i]; j < spans.last[i]; j++) {
                    real* place = w.products.score(j, i);
                    vreal s = load(place) * sm_scale;
                    if constexpr (PARTIAL) s = select(lanes_of(w.live[j][i]), s, vreal(-INF));
                    store(place, s);
                    largest = larger(largest, s);
                }
                w.kept.add(i, start_n + spans.first[i], min(spans.last[i], keys) - spans.first[i],
                           w.products.score(spans.first[i], i));
                const vreal m_new = larger(m_i, largest);
                const vreal shift = select(m_new == vreal(-INF), vreal(0), m_new);
                w.m_i[i] = m_new;
            }
        }
    });

    // The root tau_i of each row, among the scores that were kept.
    for (int i = 0; i < vectors; i++) {
        const auto [q_idx] = w.rows[i];
        const vreal m_i = w.m_i[i];
        const vreal total_i = vreal(1.0f);
        const vreal lower_i = vreal(m_i - 1.0f);
        const vreal upper_i = vreal(m_i);
        w.tau_i[i] = root(total_i, lower_i, upper_i, rows_of(rows, i), [&](vreal t_i) {
            return w.kept.sum(i, [&](integer kv_idx, vreal s) {
                const auto [q_idx] = w.rows[i];
                return select(s == vreal(-INF), vreal(0), vreal(maximum(s - t_i, 0.0f)));
            });
        });
    }

    // Row statistics and the output.
    walk([&](integer start_n, auto partial) {
        constexpr bool PARTIAL = decltype(partial)::value;
        const int keys = PARTIAL ? min(integer(BLOCK_N), integer(kv_len - start_n)) : BLOCK_N;
        if (vectors == 1 && rows > FewQueries::MOST) {
            // With few queries there is little to compute before the next keys are needed.
            fetch(K + (start_n + BLOCK_N) * args.stride_kn, args.stride_kn, HEAD_DIM, BLOCK_N);
            fetch(V + (start_n + BLOCK_N) * args.stride_vn, args.stride_vn, V_HEAD_DIM, BLOCK_N);
        }
        Spans spans = Spans::whole(vectors);
        bool seen[BLOCK_N];
        bool has_gaps = false;
        if constexpr (PARTIAL) {
            // Which queries see which keys, before anything is multiplied.
            spans = Spans::none(vectors);
            for (int j = 0; j < keys; j++) {
                const integer kv_idx = start_n + j;
                LaneBits some = 0;
                for (int i = 0; i < vectors; i++) {
                    const auto [q_idx] = w.rows[i];
                    // test_cpp.py:37
                    const LaneBits bits = bits_of(vbool(kv_idx <= q_idx));
                    w.live[j][i] = bits;
                    w.alive[i] |= bits;
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
        }
        else {
            for (int i = 0; i < vectors; i++) w.alive[i] = ALL_LANES;
        }
        for (int group = 0; group < vectors; group += Products::GROUP) {
            const int end = min(group + Products::GROUP, vectors);
            w.products.scores(K + start_n * args.stride_kn, args.stride_kn, args.stride_kd, keys, spans, group, end);
            bool is_used = false;
            for (int i = group; i < end; i++) {
                if (spans.first[i] == spans.last[i]) continue;
                const auto [q_idx] = w.rows[i];
                const vreal m_i = w.m_i[i];
                const vreal tau_i = w.tau_i[i];
                for (int j = spans.first[i]; j < spans.last[i]; j++) {
                    real* place = w.products.score(j, i);
                    vreal s = load(place) * sm_scale;
                    if constexpr (PARTIAL) s = select(lanes_of(w.live[j][i]), s, vreal(-INF));
                    store(place, s);
                }
                vbool used(false);
                for (int step = spans.first[i]; step < spans.last[i]; step += Products::STEP) {
                    vreal weights[TERMS][Products::STEP];
#pragma GCC unroll 2
                    for (int e = 0, j = step; e < Products::STEP; e++, j++) {
                        const integer kv_idx = PARTIAL ? min(integer(start_n + j), integer(kv_len - 1)) : start_n + j;
                        const vreal s = load(w.products.score(j, i));
                        const vreal p = select(s == vreal(-INF), vreal(0), vreal(maximum(s - tau_i, 0.0f)));
                        weights[0][e] = p;
                        used = used | (p != vreal(0));
                    }
                    for (int term = 0; term < TERMS; term++) w.products.put(term, step, i, weights[term]);
                }
                is_used |= any(used & rows_of(rows, i));
            }
            // Scores below the thresholds of all rows: a tile that adds nothing.
            if (!is_used) continue;
            const int64_t key_tile = (b * (args.heads / args.group) + kv_h) * launch.key_tiles + start_n / BLOCK_N;
            const bool is_packed = launch.packed && (!has_gaps || launch.finite[key_tile]);
            w.products.values(V + start_n * args.stride_vn, args.stride_vn, args.stride_vd, keys, spans,
                              has_gaps ? seen : nullptr, is_packed ? launch.packed + key_tile * Products::PACKED : nullptr, group, end);
        }
    });
    w.products.done();
}

// Finishes the rows of a query tile and stores them.
static void finish(const Arguments& args, int64_t b, int64_t h, integer tile, Work& w) {
    const integer q_len = args.q_len;
    const integer kv_len = args.kv_len;
    const integer q_offset = args.q_offset;
    const real sm_scale = args.sm_scale;
    const int rows = min(integer(BLOCK_M), integer(q_len - tile * BLOCK_M));
    const int64_t first_row = (b * args.heads + h) * q_len + tile * BLOCK_M;
    element* Out = args.Out + b * args.stride_ob + h * args.stride_oh + tile * BLOCK_M * args.stride_om;
    for (int i = 0; i * LANES < rows; i++) {
        const int lanes = min(LANES, rows - i * LANES);
        const vint q_idx = min(vint(tile * BLOCK_M + i * LANES) + iota(), vint(q_len - 1)) + vint(q_offset);
        vreal m_i = w.m_i[i];
        vreal tau_i = w.tau_i[i];
        const vreal max_score = m_i;
        const vreal factor = unless_infinite(vreal(1));
        for (int lane = 0; lane < lanes; lane++) {
            const int64_t row = first_row + i * LANES + lane;
            args.Max_score[row] = max_score[lane];
            args.Row_tau_i[row] = tau_i[lane];
        }
        put_rows(Out + i * LANES * args.stride_om, args.stride_om, args.stride_od, lanes, V_HEAD_DIM,
                 [&](int d) { return factor * w.products.sum(0, d, i); });
    }
}

static void pack_task(void* context, int64_t task, int thread) {
    const Launch& launch = *(const Launch*)context;
    const Arguments& args = launch.args;
    const int64_t kv_heads = args.heads / args.group, pair = task / launch.key_tiles;
    const int64_t start_n = task % launch.key_tiles * BLOCK_N;
    const element* V = args.V + pair / kv_heads * args.stride_vb + pair % kv_heads * args.stride_vh;
    const int keys = args.kv_len - start_n < BLOCK_N ? args.kv_len - start_n : BLOCK_N;
    launch.finite[task] = launch.work[thread].products.pack(launch.packed + task * Products::PACKED,
                                                            V + start_n * args.stride_vn, args.stride_vn, args.stride_vd, keys);
}

static void run_task(void* context, int64_t task, int thread) {
    const Launch& launch = *(const Launch*)context;
    const Arguments& args = launch.args;
    // Tiles of one head follow one another: its keys and values are still near.
    const int64_t pair = task / launch.tiles;
    // Later query tiles see more keys: they start first.
    const integer tile = launch.tiles - 1 - task % launch.tiles;
    Work& w = launch.work[thread];
    query_tile(launch, pair / args.heads, pair % args.heads, tile, 0, args.kv_len, w);
    finish(args, pair / args.heads, pair % args.heads, tile, w);
}

}

extern "C" __attribute__((visibility("default"))) int forward(
    const attndsl::Arguments* args, attndsl::Parallel parallel, int threads) {
    using namespace attndsl;
    if (!Products::ready()) return 2;
    const int64_t tiles = (args->q_len + BLOCK_M - 1) / BLOCK_M, key_tiles = (args->kv_len + BLOCK_N - 1) / BLOCK_N;
    Work* work = (Work*)aligned_alloc(64, threads * sizeof(Work));
    if (!work) return 1;
    const int64_t vectors = args->q_len < BLOCK_M ? (args->q_len + LANES - 1) / LANES : VECTORS;
    const int64_t room = Kept::bytes(key_tiles, vectors);
    char* scores = (char*)aligned_alloc(64, threads * room);
    if (!scores) {
        free(work);
        return 1;
    }
    for (int thread = 0; thread < threads; thread++) work[thread].kept.place(scores + thread * room, key_tiles, vectors);
    // Without memory for them, each query tile turns the values it needs.
    const int64_t packed = Products::PACKS && tiles * args->group > 1 ? args->batch * args->heads / args->group * key_tiles : 0;
    char* memory = packed ? (char*)aligned_alloc(64, packed * (Products::PACKED * sizeof(element) + 64)) : nullptr;
    element* values = (element*)memory;
    Launch launch = {*args, work, tiles, key_tiles, values, (bool*)(values + packed * Products::PACKED)};
    if (memory) parallel(pack_task, &launch, packed, threads);
    parallel(run_task, &launch, tiles * args->batch * args->heads, threads);
    free(memory);
    free(scores);
    free(work);
    return 0;
}

// Keys and values that lie in pages of a pool: a tile of them as it lies in memory, or copied side by side.

struct Place {
    const element* at;
    int64_t stride, stride_d;
};

// The pages of a sequence, how many keys each holds, and how many keys there are: beyond them no page is looked at.
struct PageTable {
    const int32_t* pages;
    int64_t size, count;

    template<int WIDTH>
    Place tile(const element* pool, int64_t stride_page, int64_t stride, int64_t stride_d, int64_t start, element* copy) const {
        const int64_t keys = count - start < BLOCK_N ? count - start : BLOCK_N;
        if (start % size + BLOCK_N <= size && keys == BLOCK_N)
            return {pool + pages[start / size] * stride_page + start % size * stride, stride, stride_d};
        runs(start, start + keys, [&](int64_t page, int64_t slot, int64_t from, int64_t length) {
            const element* row = pool + page * stride_page + slot * stride;
            element* to = copy + (from - start) * WIDTH;
            for (int64_t n = 0; n < length; n++, row += stride, to += WIDTH)
                if (stride_d == 1) __builtin_memcpy(to, row, WIDTH * sizeof(element));
                else for (int d = 0; d < WIDTH; d++) to[d] = row[d * stride_d];
        });
        // What stands beyond the last key takes part in nothing, but must be a number.
        const int64_t there = keys > 0 ? keys : 0;
        __builtin_memset(copy + there * WIDTH, 0, (BLOCK_N - there) * WIDTH * sizeof(element));
        const int64_t next = start + BLOCK_N;
        runs(next, next + BLOCK_N < count ? next + BLOCK_N : count, [&](int64_t page, int64_t slot, int64_t, int64_t length) {
            fetch(pool + page * stride_page + slot * stride, stride, WIDTH, length);
        });
        return {copy, WIDTH, 1};
    }

    // Calls `visit` with the page, the first slot, the first key and the number of keys of every stretch within a page.
    template<class F> void runs(int64_t from, int64_t to, F visit) const {
        for (int64_t key = from; key < to;) {
            const int64_t slot = key % size, length = size - slot < to - key ? size - slot : to - key;
            visit(int64_t(pages[key / size]), slot, key, length);
            key += length;
        }
    }
};

// Values of the rows of a query tile, a vector of queries at a time.

// The lanes of the i-th vector of a tile of `rows` queries that are queries: those past the end are none.
INLINE vbool rows_of(int rows, int i) {
    const int lanes = rows - i * LANES;
    return lanes_of(lanes >= LANES ? ALL_LANES : LaneBits((1u << lanes) - 1));
}

// As many values as there are lanes that are queries, 0 in the others.
INLINE vreal row_values(const real* from, int lanes) {
    vreal result(0);
    __builtin_memcpy(&result, from, (lanes < LANES ? lanes : LANES) * sizeof(real));
    return result;
}

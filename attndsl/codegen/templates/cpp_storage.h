// Elements as they are stored, and as they are computed: half floats, 8-bit truths, integers of any width.

// Halves and their bits, for one number (V = uint32_t) or for vectors. Subnormal halves are numbers like others.
template<class F, class U> INLINE F float_of_half(U bits) {
    U magnitude = (bits & 0x7fff) << 13;
    U scaled = bits_as<U>(bits_as<F>(magnitude) * 0x1p112f);
    U special = magnitude | 0x7f800000;
    return bits_as<F>((magnitude >= 0x7c00 << 13 ? special : scaled) | (bits & 0x8000) << 16);
}
template<class F, class U> INLINE U half_of_float(F x) {
    U sign = bits_as<U>(x) & 0x80000000;
    U magnitude = bits_as<U>(x) ^ sign;
    // Adding a number whose last bit is worth that of a subnormal half rounds to one; larger numbers round in the bits.
    U small = bits_as<U>(bits_as<F>(magnitude) + 0.5f) - 0x3f000000;
    U usual = (magnitude + 0xc8000fff + (magnitude >> 13 & 1)) >> 13;
    U large = magnitude > 0x7f800000 ? U(magnitude ^ magnitude) + 0x7e00 : U(magnitude ^ magnitude) + 0x7c00;
    U found = magnitude >= 0x477ff000 ? large : (magnitude < 0x38800000 ? small : usual);
    return found | sign >> 16;
}
template<class F, class U> INLINE F float_of_bfloat(U bits) { return bits_as<F>(bits << 16); }
template<class F, class U> INLINE U bfloat_of_float(F x) {
    U bits = bits_as<U>(x);
    U rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    U quiet = bits >> 16 | 0x40;
    return (bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded;
}

// One element.
INLINE float to_float(half x) { return float_of_half<float>(uint32_t(x.bits)); }
INLINE float to_float(bfloat x) { return float_of_bfloat<float>(uint32_t(x.bits)); }
INLINE real to_real(half x) { return to_float(x); }
INLINE real to_real(bfloat x) { return to_float(x); }
template<class T> INLINE real to_real(T x) { return real(x); }
template<class T> INLINE integer to_integer(T x) { return integer(x); }
template<class T> INLINE bool to_bool(T x) { return x != 0; }
INLINE bool to_bool(bool_t x) { return x.bits != 0; }
INLINE void put(float* to, real x) { *to = float(x); }
INLINE void put(double* to, real x) { *to = double(x); }
INLINE void put(half* to, real x) { to->bits = uint16_t(half_of_float<float, uint32_t>(float(x))); }
INLINE void put(bfloat* to, real x) { to->bits = uint16_t(bfloat_of_float<float, uint32_t>(float(x))); }

// LANES elements as numbers to compute with.
template<class T> INLINE vreal reals(const T* from) { return lanes_as<real>(load(from)); }
INLINE vreal reals(const half* from) {
    auto bits = lanes_as<uint32_t>(load((const uint16_t*)from));
    return lanes_as<real>(Lanes<float>(float_of_half<Lanes<float>::Part>(bits.part[0])));
}
INLINE vreal reals(const bfloat* from) {
    auto bits = lanes_as<uint32_t>(load((const uint16_t*)from));
    return lanes_as<real>(Lanes<float>(float_of_bfloat<Lanes<float>::Part>(bits.part[0])));
}
// Of 2 * LANES bfloats those at even places, and those at odd ones: read as pairs, they take an operation each.
INLINE vreal even_reals(const bfloat* from) {
    return lanes_as<real>(bits_as<Lanes<float>>(load((const uint32_t*)from) << Lanes<uint32_t>(16)));
}
INLINE vreal odd_reals(const bfloat* from) {
    return lanes_as<real>(bits_as<Lanes<float>>(load((const uint32_t*)from) & Lanes<uint32_t>(0xffff0000)));
}
template<class T> struct IsBfloat { static constexpr bool value = false; };
template<> struct IsBfloat<bfloat> { static constexpr bool value = true; };
template<class T> INLINE vint integers(const T* from) { return lanes_as<integer>(load(from)); }
INLINE vbool bools(const bool_t* from) { return load((const uint8_t*)from) != Lanes<uint8_t>(uint8_t(0)); }

// LANES numbers rounded to elements, halves to even.
template<class T> INLINE void put_all(T* to, vreal x) { store(to, lanes_as<T>(x)); }
INLINE void put_all(half* to, vreal x) {
    Lanes<uint32_t> bits(half_of_float<Lanes<float>::Part, Lanes<uint32_t>::Part>(lanes_as<float>(x).part[0]));
    store((uint16_t*)to, lanes_as<uint16_t>(bits));
}
INLINE void put_all(bfloat* to, vreal x) {
    Lanes<uint32_t> bits(bfloat_of_float<Lanes<float>::Part, Lanes<uint32_t>::Part>(lanes_as<float>(x).part[0]));
    store((uint16_t*)to, lanes_as<uint16_t>(bits));
}

// Elements of a captured tensor, one for each lane.

INLINE integer clamped(integer index, integer size) { return index < 0 ? 0 : index < size ? index : size - 1; }
INLINE vint clamped(vint index, integer size) {
    index = select(index < vint(0), vint(0), index);
    return select(index < vint(size), index, vint(size - 1));
}

// Where each lane reads: index times stride, over all dimensions along which the index varies.
INLINE Lanes<int64_t> offsets(vint index, int64_t stride) { return lanes_as<int64_t>(index) * Lanes<int64_t>(stride); }
template<class... Rest> INLINE Lanes<int64_t> offsets(vint index, int64_t stride, Rest... rest) {
    return offsets(index, stride) + offsets(rest...);
}
template<class T> struct Elements { T of[LANES]; };
template<class T> INLINE Elements<T> gathered(const T* from, Lanes<int64_t> where) {
    Elements<T> found;
    int64_t at[LANES];
    __builtin_memcpy(at, &where, sizeof(at));
    for (int lane = 0; lane < LANES; lane++) found.of[lane] = from[at[lane]];
    return found;
}
template<class T, class... Where> INLINE vreal reals_at(const T* from, Where... where) {
    return reals(gathered(from, offsets(where...)).of);
}
template<class T, class... Where> INLINE vint integers_at(const T* from, Where... where) {
    return integers(gathered(from, offsets(where...)).of);
}
template<class T, class... Where> INLINE vbool bools_at(const T* from, Where... where) {
    return bools(gathered(from, offsets(where...)).of);
}

// The same where indices rise by one from lane to lane, unless they are held back at an end of the tensor.
INLINE bool side_by_side(vint index, int64_t stride) {
    return stride == 1 && index[LANES - 1] - index[0] == LANES - 1;
}
template<class T> INLINE vreal reals_along(const T* from, vint index, int64_t stride) {
    return side_by_side(index, stride) ? reals(from + index[0]) : reals_at(from, index, stride);
}
template<class T> INLINE vint integers_along(const T* from, vint index, int64_t stride) {
    return side_by_side(index, stride) ? integers(from + index[0]) : integers_at(from, index, stride);
}
template<class T> INLINE vbool bools_along(const T* from, vint index, int64_t stride) {
    return side_by_side(index, stride) ? bools(from + index[0]) : bools_at(from, index, stride);
}

// And where they fall by one.
template<class T> INLINE Elements<T> reversed(const T* last) {
    Elements<T> found;
    for (int lane = 0; lane < LANES; lane++) found.of[lane] = last[-lane];
    return found;
}
template<class T> INLINE vreal reals_against(const T* from, vint index, int64_t stride) {
    return side_by_side(-index, stride) ? reals(reversed(from + index[0]).of) : reals_at(from, index, stride);
}
template<class T> INLINE vint integers_against(const T* from, vint index, int64_t stride) {
    return side_by_side(-index, stride) ? integers(reversed(from + index[0]).of) : integers_at(from, index, stride);
}
template<class T> INLINE vbool bools_against(const T* from, vint index, int64_t stride) {
    return side_by_side(-index, stride) ? bools(reversed(from + index[0]).of) : bools_at(from, index, stride);
}

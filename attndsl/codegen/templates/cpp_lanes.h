// Vectors of lanes: `vreal`, `vint` and `vbool` have LANES elements each, `real`, `integer` and `bool` are one.
// Written in the compiler's vector extensions, no header included: nothing here shares a name with a standard one.

typedef __INT8_TYPE__ int8_t;
typedef __INT16_TYPE__ int16_t;
typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef ATTNDSL_REAL real;
typedef ATTNDSL_INTEGER integer;

typedef void (*Task)(void* context, int64_t task, int thread);
typedef void (*Parallel)(Task body, void* context, int64_t tasks, int threads);

#define INLINE static inline __attribute__((always_inline))
#define MEMBER inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANES = VECTOR_BYTES / sizeof(real);

constexpr real INF = __builtin_inff();
constexpr real NAN = __builtin_nanf("");

// How elements are stored that are computed in `real`, `integer` and `bool`.
struct half { uint16_t bits; };
struct bfloat { uint16_t bits; };
struct bool_t { uint8_t bits; };

template<class T, int N> struct Raw { typedef T type __attribute__((vector_size(N * sizeof(T)))); };
template<int BYTES> struct IntegerOf;
template<> struct IntegerOf<1> { typedef int8_t type; };
template<> struct IntegerOf<2> { typedef int16_t type; };
template<> struct IntegerOf<4> { typedef int32_t type; };
template<> struct IntegerOf<8> { typedef int64_t type; };
typedef IntegerOf<sizeof(real)>::type truth;

// The same bits as another type.
template<class To, class From> INLINE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same number of bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}

// Values of one type as another, lane by lane.
template<class To, int N, class From> INLINE typename Raw<To, N>::type converted(From from) {
    return __builtin_convertvector(from, typename Raw<To, N>::type);
}

// A condition for each lane: all ones where it holds.
struct vbool {
    typedef Raw<truth, LANES>::type Part;
    Part part;

    vbool() = default;
    MEMBER vbool(bool all) : part(Part{} - truth(all)) {}
    MEMBER explicit vbool(Part raw) : part(raw) {}
    MEMBER bool operator[](int lane) const { return part[lane] != 0; }

    friend MEMBER vbool operator&(vbool a, vbool b) { return vbool(a.part & b.part); }
    friend MEMBER vbool operator|(vbool a, vbool b) { return vbool(a.part | b.part); }
    friend MEMBER vbool operator^(vbool a, vbool b) { return vbool(a.part ^ b.part); }
    friend MEMBER vbool operator!(vbool a) { return vbool(~a.part); }
    friend MEMBER vbool operator==(vbool a, vbool b) { return vbool(~(a.part ^ b.part)); }
    friend MEMBER vbool operator!=(vbool a, vbool b) { return vbool(a.part ^ b.part); }
    friend MEMBER vbool select(vbool c, vbool a, vbool b) { return vbool((c.part & a.part) | (~c.part & b.part)); }
};

// A vector folded in halves down to one element.
template<int N, class T, class F> INLINE T folded(typename Raw<T, N>::type v, F both) {
    if constexpr (N == 1) {
        return v[0];
    } else {
        typename Raw<T, N / 2>::type low, high;
        __builtin_memcpy(&low, &v, sizeof(low));
        __builtin_memcpy(&high, (const char*)&v + sizeof(low), sizeof(high));
        return folded<N / 2, T>(both(low, high), both);
    }
}

INLINE bool any(vbool c) {
    return folded<LANES, truth>(c.part, [](auto a, auto b) { return a | b; }) != 0;
}
INLINE bool all(vbool c) { return !any(!c); }

// LANES numbers of a type, in as many native vectors as they take.
template<class T> struct Lanes {
    static constexpr int PARTS = LANES * sizeof(T) > VECTOR_BYTES ? LANES * sizeof(T) / VECTOR_BYTES : 1;
    static constexpr int WIDTH = LANES / PARTS;
    typedef typename Raw<T, WIDTH>::type Part;
    typedef typename IntegerOf<sizeof(T)>::type Truth;
    Part part[PARTS];

    Lanes() = default;
    MEMBER Lanes(T all) { for (Part& p : part) p = all - Part{}; }
    MEMBER explicit Lanes(Part raw) { static_assert(PARTS == 1, "one part"); part[0] = raw; }
    MEMBER T operator[](int lane) const { return part[lane / WIDTH][lane % WIDTH]; }
    MEMBER void set(int lane, T value) { part[lane / WIDTH][lane % WIDTH] = value; }

#define ATTNDSL_OPERATOR(SYMBOL)                                          \
    friend MEMBER Lanes operator SYMBOL(Lanes a, Lanes b) {               \
        Lanes result;                                                     \
        for (int i = 0; i < PARTS; i++) result.part[i] = a.part[i] SYMBOL b.part[i]; \
        return result;                                                    \
    }
    ATTNDSL_OPERATOR(+)
    ATTNDSL_OPERATOR(-)
    ATTNDSL_OPERATOR(*)
    ATTNDSL_OPERATOR(/)
    ATTNDSL_OPERATOR(&)
    ATTNDSL_OPERATOR(|)
    ATTNDSL_OPERATOR(^)
    ATTNDSL_OPERATOR(<<)
    ATTNDSL_OPERATOR(>>)
#undef ATTNDSL_OPERATOR

#define ATTNDSL_COMPARISON(SYMBOL)                                        \
    friend MEMBER vbool operator SYMBOL(Lanes a, Lanes b) {               \
        vbool result;                                                     \
        char* lanes = (char*)&result.part;                                \
        for (int i = 0; i < PARTS; i++) {                                 \
            auto found = converted<truth, WIDTH>(typename Raw<Truth, WIDTH>::type(a.part[i] SYMBOL b.part[i])); \
            __builtin_memcpy(lanes + i * sizeof(found), &found, sizeof(found));\
        }                                                                 \
        return result;                                                    \
    }
    ATTNDSL_COMPARISON(<)
    ATTNDSL_COMPARISON(<=)
    ATTNDSL_COMPARISON(>)
    ATTNDSL_COMPARISON(>=)
    ATTNDSL_COMPARISON(==)
    ATTNDSL_COMPARISON(!=)
#undef ATTNDSL_COMPARISON

    friend MEMBER Lanes operator-(Lanes a) {
        for (Part& p : a.part) p = -p;
        return a;
    }
    friend MEMBER Lanes operator~(Lanes a) {
        for (Part& p : a.part) p = ~p;
        return a;
    }
    // a where c holds, else b.
    friend MEMBER Lanes select(vbool c, Lanes a, Lanes b) {
        Lanes result;
        const char* lanes = (const char*)&c.part;
        for (int i = 0; i < PARTS; i++) {
            typename Raw<truth, WIDTH>::type some;
            __builtin_memcpy(&some, lanes + i * sizeof(some), sizeof(some));
            result.part[i] = converted<Truth, WIDTH>(some) ? a.part[i] : b.part[i];
        }
        return result;
    }
};

typedef Lanes<real> vreal;
typedef Lanes<integer> vint;

// A function of each lane. Over arrays, which compilers turn into vector code where there is any.
template<class R, class T, class F> INLINE Lanes<R> each(Lanes<T> x, F function) {
    T from[LANES];
    R to[LANES];
    Lanes<R> result;
    __builtin_memcpy(from, &x, sizeof(from));
    for (int lane = 0; lane < LANES; lane++) to[lane] = function(from[lane]);
    __builtin_memcpy(&result, to, sizeof(to));
    return result;
}
template<class R, class T, class F> INLINE Lanes<R> each(Lanes<T> x, Lanes<T> y, F function) {
    T left[LANES], right[LANES];
    R to[LANES];
    Lanes<R> result;
    __builtin_memcpy(left, &x, sizeof(left));
    __builtin_memcpy(right, &y, sizeof(right));
    for (int lane = 0; lane < LANES; lane++) to[lane] = function(left[lane], right[lane]);
    __builtin_memcpy(&result, to, sizeof(to));
    return result;
}

// 0, 1, 2 to LANES - 1.
INLINE vint iota() {
    vint result;
    for (int lane = 0; lane < LANES; lane++) result.set(lane, lane);
    return result;
}

template<class To, class From> INLINE Lanes<To> lanes_as(Lanes<From> from) {
    Lanes<To> result;
    if constexpr (Lanes<To>::PARTS == Lanes<From>::PARTS) {
        for (int i = 0; i < Lanes<To>::PARTS; i++)
            result.part[i] = __builtin_convertvector(from.part[i], typename Lanes<To>::Part);
    } else if constexpr (Lanes<From>::PARTS == 1) {
        const char* lanes = (const char*)&from;
        for (int i = 0; i < Lanes<To>::PARTS; i++) {
            typename Raw<From, Lanes<To>::WIDTH>::type some;
            __builtin_memcpy(&some, lanes + i * sizeof(some), sizeof(some));
            result.part[i] = __builtin_convertvector(some, typename Lanes<To>::Part);
        }
    } else {
        char* lanes = (char*)&result;
        for (int i = 0; i < Lanes<From>::PARTS; i++) {
            auto some = converted<To, Lanes<From>::WIDTH>(from.part[i]);
            __builtin_memcpy(lanes + i * sizeof(some), &some, sizeof(some));
        }
    }
    return result;
}

// Conversions between the types of a program. A number too large for an integer gives any.
INLINE vreal to_real(vint x) { return lanes_as<real>(x); }
INLINE vreal to_real(vbool x) { return select(x, vreal(1), vreal(0)); }
INLINE vreal to_real(vreal x) { return x; }
INLINE vint to_integer(vreal x) { return lanes_as<integer>(x); }
INLINE vint to_integer(vbool x) { return select(x, vint(1), vint(0)); }
INLINE vint to_integer(vint x) { return x; }

// LANES elements that stand side by side, anywhere. As vectors: compilers copy bytes in pieces, which a load waits for.
template<class T, int N> struct Anywhere {
    typedef T type __attribute__((vector_size(N * sizeof(T)), aligned(1), may_alias));
};
template<class T> INLINE Lanes<T> load(const T* from) {
    constexpr int WIDTH = Lanes<T>::WIDTH;
    Lanes<T> result;
    for (int i = 0; i < Lanes<T>::PARTS; i++)
        result.part[i] = *(const typename Anywhere<T, WIDTH>::type*)(from + i * WIDTH);
    return result;
}
template<class T> INLINE void store(T* to, Lanes<T> values) {
    constexpr int WIDTH = Lanes<T>::WIDTH;
    for (int i = 0; i < Lanes<T>::PARTS; i++)
        *(typename Anywhere<T, WIDTH>::type*)(to + i * WIDTH) = values.part[i];
}

// The sum of the lanes, and the largest of them.
INLINE real sum_of(vreal x) {
    return folded<LANES, real>(x.part[0], [](auto a, auto b) { return a + b; });
}
INLINE real largest_of(vreal x) {
    return folded<LANES, real>(x.part[0], [](auto a, auto b) { return a > b ? a : b; });
}

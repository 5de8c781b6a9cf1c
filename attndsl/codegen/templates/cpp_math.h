// Mathematics on one number and on LANES of them: the same formulas, so the same results.
//
// Errors in float32 are given in units of the last place, largest over all floats, and are one unit more where a CPU
// cannot multiply and add in one rounding. NaN stays NaN, infinities give the limits, subnormal numbers count. In double
// precision a function is libm's, lane by lane, unless it says otherwise.

template<class T> INLINE T select(bool c, T a, T b) { return c ? a : b; }

// Integers.

INLINE integer min(integer a, integer b) { return a < b ? a : b; }
INLINE integer max(integer a, integer b) { return a > b ? a : b; }
INLINE vint min(vint a, vint b) { return select(a < b, a, b); }
INLINE vint max(vint a, vint b) { return select(a > b, a, b); }
INLINE integer abs(integer x) { return x < 0 ? -x : x; }
INLINE vint abs(vint x) { return select(x < vint(0), -x, x); }

// Rounded down, as Python's. A division by 0, which only a dead pair makes, is some number and no trap.
INLINE integer floor_divide(integer a, integer b) {
    if (b == 0 || b == -1) return -a;
    integer quotient = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}
INLINE integer floor_mod(integer a, integer b) { return a - floor_divide(a, b) * b; }
// 53 bits hold the quotient of 32-bit integers near enough to round it down.
INLINE vint floor_divide(vint a, vint b) {
    if constexpr (sizeof(integer) == 4) {
        auto quotient = lanes_as<double>(a) / lanes_as<double>(b);
        auto cut = lanes_as<integer>(quotient);
        return select(lanes_as<double>(cut) > quotient, cut - vint(1), cut);
    } else {
        return each<integer>(a, b, [](integer x, integer y) { return floor_divide(x, y); });
    }
}
INLINE vint floor_mod(vint a, vint b) { return a - floor_divide(a, b) * b; }

// Shifts by any count, as if integers had endless digits.
INLINE integer shift_left(integer a, integer count) {
    const integer bits = 8 * sizeof(integer);
    return count < 0 || count >= bits ? 0 : a << count;
}
INLINE integer shift_right(integer a, integer count) {
    const integer last = 8 * sizeof(integer) - 1;
    return a >> (count < 0 || count > last ? last : count);
}
INLINE vint shift_left(vint a, vint count) {
    const vint last(8 * sizeof(integer) - 1);
    vbool inside = (count >= vint(0)) & (count <= last);
    return select(inside, a << select(inside, count, vint(0)), vint(0));
}
INLINE vint shift_right(vint a, vint count) {
    const vint last(8 * sizeof(integer) - 1);
    return a >> select((count >= vint(0)) & (count <= last), count, last);
}

// The digits of |x| in base 2.
INLINE integer bit_length(integer x) {
    uint64_t size = x < 0 ? -uint64_t(x) : uint64_t(x);
    return size == 0 ? 0 : 64 - __builtin_clzll(size);
}
INLINE vint bit_length(vint x) {
    return each<integer>(x, [](integer one) { return bit_length(one); });
}

// Floats: exact functions.

// The smaller and the larger; NaN where either is.
template<class T> INLINE Lanes<T> minimum(Lanes<T> a, Lanes<T> b) { return select((a < b) | (a != a), a, b); }
template<class T> INLINE Lanes<T> maximum(Lanes<T> a, Lanes<T> b) { return select((a > b) | (a != a), a, b); }
INLINE real minimum(real a, real b) { return a < b || a != a ? a : b; }
INLINE real maximum(real a, real b) { return a > b || a != a ? a : b; }
INLINE vreal minimum(vreal a, real b) { return minimum(a, vreal(b)); }
INLINE vreal minimum(real a, vreal b) { return minimum(vreal(a), b); }
INLINE vreal maximum(vreal a, real b) { return maximum(a, vreal(b)); }
INLINE vreal maximum(real a, vreal b) { return maximum(vreal(a), b); }

#define ATTNDSL_SCALARS(NAME, ...)                                                                                 \
    INLINE float NAME(float x) { return __VA_ARGS__##f(x); }                                                       \
    INLINE double NAME(double x) { return __VA_ARGS__(x); }
#define ATTNDSL_LANE_BY_LANE(NAME, T)                                                                              \
    INLINE Lanes<T> NAME(Lanes<T> x) {                                                                             \
        return each<T>(x, [](T one) { return NAME(one); });                                                        \
    }
#define ATTNDSL_LIBM(NAME, LIBM)                                                                                   \
    ATTNDSL_SCALARS(NAME, __builtin_##LIBM)                                                                        \
    ATTNDSL_LANE_BY_LANE(NAME, float)                                                                              \
    ATTNDSL_LANE_BY_LANE(NAME, double)
ATTNDSL_SCALARS(fabs, __builtin_fabs)
template<class T> INLINE Lanes<T> fabs(Lanes<T> x) {
    typedef typename IntegerOf<sizeof(T)>::type Bits;
    Lanes<Bits> bits = bits_as<Lanes<Bits>>(x);
    return bits_as<Lanes<T>>(bits & Lanes<Bits>(Bits(~(uint64_t(1) << (8 * sizeof(T) - 1)))));
}
ATTNDSL_LIBM(floor, floor)
ATTNDSL_LIBM(ceil, ceil)
ATTNDSL_LIBM(round, rint)
ATTNDSL_LIBM(sqrt, sqrt)

INLINE real rsqrt(real x) { return 1 / sqrt(x); }
INLINE vreal rsqrt(vreal x) { return vreal(1) / sqrt(x); }

// Rounded down, and the rest with the sign of b, as Python's.
INLINE real modulo(real a, real b) {
    real rest = sizeof(real) == 4 ? real(__builtin_fmodf(a, b)) : real(__builtin_fmod(a, b));
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
INLINE real divided_down(real a, real b) {
    if (b == 0) return a / b;
    real quotient = round((a - modulo(a, b)) / b);
    return quotient != 0 ? quotient : real(__builtin_copysign(0.0, double(a) * double(b)));
}
INLINE vreal modulo(vreal a, vreal b) {
    return each<real>(a, b, [](real x, real y) { return modulo(x, y); });
}
INLINE vreal divided_down(vreal a, vreal b) {
    return each<real>(a, b, [](real x, real y) { return divided_down(x, y); });
}

// x to the power y, as libm's.
INLINE float pow(float x, float y) { return __builtin_powf(x, y); }
INLINE double pow(double x, double y) { return __builtin_pow(x, y); }
INLINE vreal pow(vreal x, vreal y) {
    return each<real>(x, y, [](real base, real exponent) { return pow(base, exponent); });
}
template<class V> INLINE V pow_2(V x) { return x * x; }
template<class V> INLINE V pow_3(V x) { return x * x * x; }
template<class V> INLINE V pow_4(V x) { return x * x * x * x; }

// Floats in float32: V is float or Lanes<float>, I the integers of the same width.
template<class V> struct IntegersOf { typedef Lanes<int32_t> type; };
template<> struct IntegersOf<float> { typedef int32_t type; };
template<class V> using I = typename IntegersOf<V>::type;

// Added to a number below 2^22 it leaves the nearest integer in the last bits.
constexpr float NEAREST = 0x1.8p23f;

template<class V> INLINE V power_of_two(I<V> exponent) { return bits_as<V>((exponent + 127) << 23); }
// p * 2^n for an integer n, through the subnormal numbers down to 0 and up to infinity.
template<class V> INLINE V scaled(V p, V n) {
    I<V> exponent = bits_as<I<V>>(n + NEAREST) - 0x4b400000;
    I<V> half = exponent >> 1;
    return p * power_of_two<V>(half) * power_of_two<V>(exponent - half);
}
template<class V> INLINE V between(V x, float low, float high) {
    x = select(x < low, V(low), x);
    return select(x > high, V(high), x);
}
// The sign of y on the size of x.
template<class V> INLINE V with_sign_of(V x, V y) {
    return bits_as<V>((bits_as<I<V>>(x) & 0x7fffffff) | (bits_as<I<V>>(y) & I<V>(-0x7fffffff - 1)));
}

// At most 1 ulp.
template<class V> INLINE V exp_formula(V x) {
    x = between(x, -120.0f, 100.0f);
    V n = (x * 1.44269504f + NEAREST) - NEAREST;
    V r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;
    V p = r * 0.000198527617612853646278381f + 0.00139304355252534151077271f;
    p = p * r + 0.00833336077630519866943359f;
    p = p * r + 0.0416664853692054748535156f;
    p = p * r + 0.166666671633720397949219f;
    p = p * r + 0.5f;
    return scaled(r * r * p + r + 1.0f, n);
}

// 2^f for |f| <= 1/2.
template<class V> INLINE V exp2_near_zero(V f) {
    V p = f * 0.1535920892e-3f + 0.1339262701e-2f;
    p = p * f + 0.9618384764e-2f;
    p = p * f + 0.5550347269e-1f;
    p = p * f + 0.2402264476f;
    p = p * f + 0.6931471825f;
    return p * f + 1.0f;
}
// 2^f for 0 <= f <= 1, right at both ends and off by at most 2^-18 of itself between them.
template<class V> INLINE V exp2_below_one(V f) {
    V p = f * 1.35557475e-2f + 5.20323701e-2f;
    p = p * f + 2.41379768e-1f;
    p = p * f + 6.93032086e-1f;
    return p * f + 1.0f;
}

// At most 1 ulp.
template<class V> INLINE V exp2_formula(V x) {
    x = between(x, -160.0f, 130.0f);
    V n = (x + NEAREST) - NEAREST;
    return scaled(exp2_near_zero(x - n), n);
}

// 2^x for x <= 100, from the power of what x has more than the integer below it (DOWN), or than the nearest one. It is 0
// where x is below -100: beside the largest of a row, which is 1, that is nothing, and what is smaller has products that
// are subnormal, which take a hundred times as long. Rows of large scores or with a steep bias are full of them.
constexpr float LEAST_POWER = -100.0f;
#if defined(__AVX512DQ__) && defined(__AVX512VL__)
template<bool DOWN> INLINE float without_whole(float x) {
    asm("vreducess %1, %0, %0, %0" : "+v"(x) : "i"(DOWN));
    return x;
}
template<bool DOWN> INLINE Lanes<float> without_whole(Lanes<float> x) {
    asm("vreduceps %1, %0, %0" : "+v"(x.part[0]) : "i"(DOWN));
    return x;
}
// p * 2^floor(n)
INLINE float times_power(float p, float n) {
    asm("vscalefss %1, %0, %0" : "+v"(p) : "v"(n));
    return n < LEAST_POWER ? 0.0f : p;
}
INLINE Lanes<float> times_power(Lanes<float> p, Lanes<float> n) {
    const Lanes<float> least(LEAST_POWER);
    uint16_t kept;
    asm("vcmpps $5, %2, %1, %0" : "=Yk"(kept) : "v"(n.part[0]), "v"(least.part[0]));
    asm("vscalefps %1, %0, %0%{%2%}%{z%}" : "+v"(p.part[0]) : "v"(n.part[0]), "Yk"(kept));
    return p;
}
template<bool DOWN, class V, class F> INLINE V exp2_by(V x, F power) {
    V f = without_whole<DOWN>(x);
    return times_power(power(f), DOWN ? x : x - f);
}
#else
template<bool DOWN, class V, class F> INLINE V exp2_by(V x, F power) {
    V kept = select(x < LEAST_POWER, V(LEAST_POWER), x);
    V moved = kept - (DOWN ? 0.5f : 0.0f) + (NEAREST + 127.0f);
    V n = moved - (NEAREST + 127.0f);
    return select(x < LEAST_POWER, V(0.0f), power(kept - n) * bits_as<V>(bits_as<I<V>>(moved) << 23));
}
#endif
// At most 1 ulp where it is not 0.
template<class V> INLINE V exp2_flushing(V x) {
    return exp2_by<false>(x, [](V f) { return exp2_near_zero(f); });
}
// Right to 2^-17 of itself: enough where what is multiplied has 8 bits.
template<class V> INLINE V exp2_roughly(V x) {
    return exp2_by<true>(x, [](V f) { return exp2_below_one(f); });
}

// x = 2^e * (1 + m) with m from -1/3 to 1/3, and log(1 + m) to 1 ulp of itself.
template<class V> struct Logarithm { V e, m, log1p; };
template<class V> INLINE Logarithm<V> logarithm(V x) {
    auto subnormal = x < 0x1p-126f;
    V normal = select(subnormal, x * 0x1p23f, x);
    I<V> exponent = (bits_as<I<V>>(normal) - 0x3f2aaaab) & I<V>(-0x800000);
    V m = bits_as<V>(bits_as<I<V>>(normal) - exponent) - 1.0f;
    V s = m * m;
    V odd = s * 0.140869141f + 0.139814854f;
    V even = s * -0.130310059f - 0.121484190f;
    odd = odd * s + 0.200120345f;
    even = even * s - 0.166846052f;
    even = even * s - 0.249996200f;
    V r = odd * m + even;
    r = r * m + 0.333331972f;
    r = r * m - 0.5f;
    V whole = bits_as<V>((exponent >> 23) + 0x4b400000) - NEAREST;
    return {whole + select(subnormal, V(-23.0f), V(0.0f)), m, r * s + m};
}
template<class V> INLINE V where_logarithms_end(V x, V found) {
    found = select(x < 0.0f, V(NAN), found);
    found = select(x == 0.0f, V(-INF), found);
    return select((x == INF) | (x != x), x, found);
}
// At most 1 ulp.
template<class V> INLINE V log_formula(V x) {
    Logarithm<V> of = logarithm(x);
    return where_logarithms_end(x, of.e * 0.693147182f + of.log1p);
}
// At most 2 ulp.
template<class V> INLINE V log2_formula(V x) {
    Logarithm<V> of = logarithm(x);
    return where_logarithms_end(x, of.log1p * 1.44269502f + (of.log1p * 1.925963033e-8f + of.e));
}

// At most 2 ulp.
template<class V> INLINE V tanh_formula(V x) {
    V size = fabs(x), s = x * x;
    V p = s * 1.57394409e-2f - 5.23025580e-2f;
    p = p * s + 1.33152470e-1f;
    p = p * s - 3.33327681e-1f;
    V small = p * s * x + x;
    V e = exp2_flushing(select(size > 10.0f, V(10.0f), size) * 2.88539008f);
    V large = 1.0f - 2.0f / (e + 1.0f);
    return select(size < 0.55f, small, with_sign_of(large, x));
}

// At most 3 ulp.
template<class V> INLINE V sigmoid_formula(V x) {
    V e = exp_formula(-fabs(x));
    return select(x < 0.0f, e, V(1.0f)) / (1.0f + e);
}
// At most 4 ulp where the sigmoid is no subnormal number.
template<class V> INLINE V silu_formula(V x) { return x * sigmoid_formula(x); }

// At most 1 ulp.
template<class V> INLINE V erf_formula(V x) {
    V t = fabs(x), s = x * x;
    V r = t * -1.72853470e-5f + 3.83197126e-4f;
    V u = t * -3.88396438e-3f + 2.42546219e-2f;
    r = r * s + u;
    r = r * t - 1.06777877e-1f;
    r = r * t - 6.34846687e-1f;
    r = r * t - 1.28717512e-1f;
    V large = 1.0f - exp_formula(r * t - t);
    V p = s * -5.96761703e-4f + 4.99119423e-3f;
    p = p * s - 2.67681349e-2f;
    p = p * s + 1.12819925e-1f;
    p = p * s - 3.76125336e-1f;
    p = p * s + 1.28379166e-1f;
    return select(t > 0.927734375f, with_sign_of(large, x), p * x + x);
}
// Off by at most 2^-23 of |x|: a negative x cancels all of it.
template<class V> INLINE V gelu_formula(V x) { return 0.5f * x * (1.0f + erf_formula(x * 0.707106781f)); }

INLINE double sigmoid_formula(double x) {
    double e = __builtin_exp(-__builtin_fabs(x));
    return (x < 0 ? e : 1.0) / (1.0 + e);
}
INLINE double silu_formula(double x) { return x * sigmoid_formula(x); }
INLINE double gelu_formula(double x) { return 0.5 * x * (1.0 + __builtin_erf(x * 0.7071067811865475244)); }
INLINE double exp2_flushing(double x) { return __builtin_exp2(x); }

#define ATTNDSL_FORMULA(NAME)                                                                                      \
    INLINE float NAME(float x) { return NAME##_formula(x); }                                                       \
    INLINE Lanes<float> NAME(Lanes<float> x) { return NAME##_formula(x); }
#define ATTNDSL_WITH_LIBM(NAME)                                                                                    \
    ATTNDSL_FORMULA(NAME)                                                                                          \
    INLINE double NAME(double x) { return __builtin_##NAME(x); }                                                   \
    ATTNDSL_LANE_BY_LANE(NAME, double)
#define ATTNDSL_WITH_DOUBLE(NAME)                                                                                  \
    ATTNDSL_FORMULA(NAME)                                                                                          \
    INLINE double NAME(double x) { return NAME##_formula(x); }                                                     \
    ATTNDSL_LANE_BY_LANE(NAME, double)
ATTNDSL_WITH_LIBM(exp)
ATTNDSL_WITH_LIBM(exp2)
ATTNDSL_WITH_LIBM(log)
ATTNDSL_WITH_LIBM(log2)
ATTNDSL_WITH_LIBM(tanh)
ATTNDSL_WITH_LIBM(erf)
ATTNDSL_WITH_DOUBLE(sigmoid)
ATTNDSL_WITH_DOUBLE(silu)
ATTNDSL_WITH_DOUBLE(gelu)
ATTNDSL_LANE_BY_LANE(exp2_flushing, double)
ATTNDSL_LIBM(sin, sin)
ATTNDSL_LIBM(cos, cos)
ATTNDSL_LIBM(tan, tan)

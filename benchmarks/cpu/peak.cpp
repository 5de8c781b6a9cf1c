// As many operations as the processor can do, on registers alone: tasks of ROUNDS rounds on every thread.
#include <stdint.h>

typedef void (*Task)(void* context, int64_t task, int thread);
typedef void (*Parallel)(Task body, void* context, int64_t tasks, int threads);
constexpr int ROUNDS = 1 << 16;

#if BFLOATS && defined(__AMX_BF16__)
constexpr int64_t OPERATIONS = 4 * 2 * 16 * 16 * 32;
#define PRODUCT(SUM) asm volatile("tdpbf16ps %%tmm7, %%tmm6, %%tmm" #SUM ::);
static void rounds(void*, int64_t, int) {
    struct { uint8_t palette = 1, start = 0, reserved[14] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } shape;
    for (int t = 0; t < 8; t++) shape.bytes[t] = 64, shape.rows[t] = 16;
    asm volatile("ldtilecfg %0" ::"m"(shape));
    for (int n = 0; n < ROUNDS; n++) { PRODUCT(0) PRODUCT(1) PRODUCT(2) PRODUCT(3) }
    asm volatile("tilerelease" ::);
}
static bool ready() {
    long result = 158;
    asm volatile("syscall" : "+a"(result) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return result == 0;
}
#else
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(LANES * 4)));
constexpr int SUMS = 12;
constexpr int64_t OPERATIONS = SUMS * LANES * 2;
static void rounds(void* context, int64_t, int thread) {
    const Vector factor = Vector{} + 0.5f;
    Vector sums[SUMS];
    for (int i = 0; i < SUMS; i++) sums[i] = Vector{} + float(i);
    for (int n = 0; n < ROUNDS; n++)
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) sums[i] = sums[i] * factor + factor;
    for (int i = 0; i < SUMS; i++) ((volatile float*)context)[thread] = sums[i][0];
}
static bool ready() { return true; }
#endif

extern "C" __attribute__((visibility("default"))) int operations(const char*, Parallel, int) { return OPERATIONS; }
extern "C" __attribute__((visibility("default"))) int peak(const char*, Parallel parallel, int threads) {
    if (!ready()) return 2;
    float results[256];
    parallel(rounds, results, threads, threads < 256 ? threads : 256);
    return 0;
}

/* Threads keep numbers in the registers of the floating point and vector units, and nowhere else, while they spin. */
#include "steps.h"
#include <immintrin.h>

#define SPINS 20000000ul

#define R8(M, at) M(at##0) M(at##1) M(at##2) M(at##3) M(at##4) M(at##5) M(at##6) M(at##7)
#define OF_32(M) R8(M, 0) R8(M, 1) R8(M, 2) R8(M, 3)
/* Octal digits make the number of a register: 037 is zmm31. */
#define LOAD_512(n) "vmovdqu64 (0" #n "*64)(%[in]), %%zmm" STRING_##n "\n\t"
#define STORE_512(n) "vmovdqu64 %%zmm" STRING_##n ", (0" #n "*64)(%[out])\n\t"
#define STRING_00 "0"
#define STRING_01 "1"
#define STRING_02 "2"
#define STRING_03 "3"
#define STRING_04 "4"
#define STRING_05 "5"
#define STRING_06 "6"
#define STRING_07 "7"
#define STRING_10 "8"
#define STRING_11 "9"
#define STRING_12 "10"
#define STRING_13 "11"
#define STRING_14 "12"
#define STRING_15 "13"
#define STRING_16 "14"
#define STRING_17 "15"
#define STRING_20 "16"
#define STRING_21 "17"
#define STRING_22 "18"
#define STRING_23 "19"
#define STRING_24 "20"
#define STRING_25 "21"
#define STRING_26 "22"
#define STRING_27 "23"
#define STRING_30 "24"
#define STRING_31 "25"
#define STRING_32 "26"
#define STRING_33 "27"
#define STRING_34 "28"
#define STRING_35 "29"
#define STRING_36 "30"
#define STRING_37 "31"
#define LOAD_256(n) "vmovdqu (0" #n "*32)(%[in]), %%ymm" STRING_##n "\n\t"
#define STORE_256(n) "vmovdqu %%ymm" STRING_##n ", (0" #n "*32)(%[out])\n\t"
#define OF_16(M) R8(M, 0) R8(M, 1)

static void fill(uint64_t *words, size_t count, uint64_t *seed) {
    for (size_t at = 0; at < count; at++) words[at] = next_random(seed);
}

__attribute__((target("avx512f,avx512bw"))) static void spin_512(const uint64_t *in, uint64_t *out, const uint64_t *masks, uint64_t *masks_out) {
    unsigned long spins = SPINS;
    asm volatile(OF_32(LOAD_512)
                 "kmovq 0(%[m]), %%k1\n\t kmovq 8(%[m]), %%k2\n\t kmovq 16(%[m]), %%k3\n\t kmovq 24(%[m]), %%k4\n\t"
                 "kmovq 32(%[m]), %%k5\n\t kmovq 40(%[m]), %%k6\n\t kmovq 48(%[m]), %%k7\n\t"
                 "1: dec %[spins]\n\t jnz 1b\n\t" OF_32(STORE_512)
                 "kmovq %%k1, 0(%[o])\n\t kmovq %%k2, 8(%[o])\n\t kmovq %%k3, 16(%[o])\n\t kmovq %%k4, 24(%[o])\n\t"
                 "kmovq %%k5, 32(%[o])\n\t kmovq %%k6, 40(%[o])\n\t kmovq %%k7, 48(%[o])\n\t vzeroupper\n\t"
                 : [spins] "+r"(spins)
                 : [in] "r"(in), [out] "r"(out), [m] "r"(masks), [o] "r"(masks_out)
                 : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                   "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
                   "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7");
}

__attribute__((target("avx"))) static void spin_256(const uint64_t *in, uint64_t *out) {
    unsigned long spins = SPINS;
    asm volatile(OF_16(LOAD_256) "1: dec %[spins]\n\t jnz 1b\n\t" OF_16(STORE_256) "vzeroupper\n\t"
                 : [spins] "+r"(spins)
                 : [in] "r"(in), [out] "r"(out)
                 : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                   "xmm12", "xmm13", "xmm14", "xmm15");
}

static void *hold_512(void *unused) {
    uint64_t seed = 512, in[256], out[256], masks[7], masks_out[7];
    for (;;) {
        fill(in, 256, &seed), fill(masks, 7, &seed);
        spin_512(in, out, masks, masks_out);
        must(!memcmp(in, out, sizeof in) && !memcmp(masks, masks_out, sizeof masks));
        step("held 512");
    }
    return unused;
}

static void *hold_256(void *unused) {
    uint64_t seed = 256, in[64], out[64];
    for (;;) {
        fill(in, 64, &seed);
        spin_256(in, out);
        must(!memcmp(in, out, sizeof in));
        step("held 256");
    }
    return unused;
}

/* The stack of the old floating point unit, with its way of rounding, and that of the new one. */
static void *hold_stack(void *unused) {
    double in[4], out[4];
    uint64_t seed = 87;
    for (unsigned round = 0;; round++) {
        for (int at = 0; at < 4; at++) in[at] = (double)(next_random(&seed) >> 12) / 3.0;
        unsigned long spins = SPINS;
        uint16_t control = (uint16_t)(0x37f | (round % 4) << 10), control_after = 0;
        unsigned modes = (_mm_getcsr() & ~0x6000u) | (round + 1) % 4 << 13;
        _mm_setcsr(modes);
        asm volatile("fninit\n\t fldcw %[control]\n\t fldl 0(%[in])\n\t fldl 8(%[in])\n\t fldl 16(%[in])\n\t fldl 24(%[in])\n\t"
                     "1: dec %[spins]\n\t jnz 1b\n\t"
                     "fstpl 24(%[out])\n\t fstpl 16(%[out])\n\t fstpl 8(%[out])\n\t fstpl 0(%[out])\n\t fnstcw %[after]\n\t fninit\n\t"
                     : [spins] "+r"(spins), [after] "=m"(control_after)
                     : [in] "r"(in), [out] "r"(out), [control] "m"(control)
                     : "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
        must(!memcmp(in, out, sizeof in) && control == control_after && (_mm_getcsr() & ~0x3fu) == (modes & ~0x3fu));
        step("held 80");
    }
    return unused;
}

int main(int count, char **words) {
    begin_steps(count, words);
    /* The first line says what will be held. */
    int wide = __builtin_cpu_supports("avx512bw"), middle = __builtin_cpu_supports("avx");
    say("0 vectors of %d bits", wide ? 512 : middle ? 256 : 128);
    if (wide) start_thread(hold_512, NULL);
    if (middle) start_thread(hold_256, NULL);
    hold_stack(NULL);
}

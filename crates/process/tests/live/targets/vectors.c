// vectors: keeps a pattern in vector registers (AVX if the processor has it) and general registers
// in a loop that stores none of them, until a flag in memory is set by a line on stdin (read by
// another thread); then prints "same" or "changed".
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static volatile int done;

static void *wait_for_line(void *argument) {
    char line[64];
    if (!fgets(line, sizeof line, stdin)) return argument;
    done = 1;
    return argument;
}

static int spin_sse(void) {
    uint64_t in[2] = {0x0123456789abcdefull, 0xfedcba9876543210ull}, out[2][2];
    uint64_t general = 0;
    __asm__ volatile(
        "movdqu (%[in]), %%xmm3\n movdqu (%[in]), %%xmm14\n mov $0x1122334455667788, %%r12\n"
        "1: pause\n cmpl $0, (%[done])\n je 1b\n"
        "movdqu %%xmm3, (%[out])\n movdqu %%xmm14, 16(%[out])\n mov %%r12, %[general]\n"
        : [general] "=&r"(general)
        : [in] "r"(in), [out] "r"(out), [done] "r"(&done)
        : "xmm3", "xmm14", "r12", "memory", "cc");
    return !memcmp(in, out[0], 16) && !memcmp(in, out[1], 16) && general == 0x1122334455667788ull;
}

__attribute__((target("avx"))) static int spin_avx(void) {
    uint8_t in[32], out[2][32];
    for (int i = 0; i < 32; i++) in[i] = (uint8_t)(i * 7 + 1);
    uint64_t general = 0;
    __asm__ volatile(
        "vmovdqu (%[in]), %%ymm3\n vmovdqu (%[in]), %%ymm14\n mov $0x1122334455667788, %%r12\n"
        "1: pause\n cmpl $0, (%[done])\n je 1b\n"
        "vmovdqu %%ymm3, (%[out])\n vmovdqu %%ymm14, 32(%[out])\n mov %%r12, %[general]\n"
        : [general] "=&r"(general)
        : [in] "r"(in), [out] "r"(out), [done] "r"(&done)
        : "xmm3", "xmm14", "r12", "memory", "cc");
    return !memcmp(in, out[0], 32) && !memcmp(in, out[1], 32) && general == 0x1122334455667788ull;
}

int main(void) {
    pthread_t thread;
    if (pthread_create(&thread, 0, wait_for_line, 0)) return 1;
    puts("ready");
    fflush(stdout);
    int same = __builtin_cpu_supports("avx") ? spin_avx() : spin_sse();
    puts(same ? "same" : "changed");
    return 0;
}

// alone: one thread, no other. Prints "ready", then works for ever, mixing computation, vector
// registers, sleeps and system calls, and checks each result. A result that is not what it has to
// be: prints what, and exits with 9. A line "N" every so often on stdout says that it lives.
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what, long value) {
    printf("wrong: %s %ld errno %d\n", what, value, errno);
    fflush(stdout);
    _exit(9);
}

int main(void) {
    pid_t pid = getpid();
    sigset_t own, now;
    sigemptyset(&own);
    sigaddset(&own, SIGUSR2);
    sigprocmask(SIG_SETMASK, &own, 0);
    struct timespec last;
    clock_gettime(CLOCK_MONOTONIC, &last);
    puts("ready");
    fflush(stdout);
    for (uint64_t round = 1;; round++) {
        __m128i vector = _mm_set1_epi64x((long long)(round * 0x9e3779b97f4a7c15ull));
        uint64_t mix = round, again = round;
        for (int i = 0; i < 2000; i++) {
            mix = mix * 6364136223846793005ull + 1442695040888963407ull;
            again = again * 6364136223846793005ull + 1442695040888963407ull;
            vector = _mm_xor_si128(vector, _mm_set1_epi64x((long long)mix));
            vector = _mm_xor_si128(vector, _mm_set1_epi64x((long long)again));
            __asm__ volatile("" : "+x"(vector), "+r"(mix), "+r"(again));
        }
        if (mix != again) fail("arithmetic", 0);
        if ((uint64_t)_mm_cvtsi128_si64(vector) != round * 0x9e3779b97f4a7c15ull) fail("vector", 0);
        if (getpid() != pid) fail("getpid", getpid());
        struct timespec nap = {0, 200000};
        if (nanosleep(&nap, 0)) fail("nanosleep", -1);
        struct pollfd nothing = {-1, 0, 0};
        int n = poll(&nothing, 1, 1);
        if (n) fail("poll", n);
        struct timespec limit = {0, 100000};
        n = ppoll(&nothing, 1, &limit, &own);
        if (n) fail("ppoll", n);
        if (sigprocmask(SIG_BLOCK, 0, &now) || sigismember(&now, SIGUSR2) != 1 ||
            sigismember(&now, SIGUSR1) != 0 || sigismember(&now, SIGTERM) != 0)
            fail("signal mask", 0);
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        if (time.tv_sec < last.tv_sec) fail("clock", 0);
        last = time;
        if (round % 20 == 0) { printf("%llu\n", (unsigned long long)round); fflush(stdout); }
    }
}

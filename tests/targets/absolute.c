/* A program that remembers points in time, of CLOCK_MONOTONIC and CLOCK_BOOTTIME, and sleeps until them; each step says how long it took. The
 * third word is by how many seconds its clocks are ahead of the machine's, in a time namespace. If the first word is "under", it is no
 * program but executes the words after the second, with clocks that are ahead by that. */
#include "steps.h"
#include <sched.h>

#define MS 1000000ull

static void enter(long ahead) {
    if (!ahead) return;
    if (unshare(0x80)) _exit(94);
    FILE *offsets = fopen("/proc/self/timens_offsets", "we");
    if (!offsets || fprintf(offsets, "monotonic %ld 0\nboottime %ld 0\n", ahead, ahead) < 0 || fclose(offsets)) _exit(93);
    int space = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, 0x80)) _exit(92);
    close(space);
}

int main(int count, char **words) {
    if (count > 3 && !strcmp(words[1], "under")) {
        enter(atol(words[2]));
        execvp(words[3], words + 3);
        return 91;
    }
    long ahead = atol(words[3]);
    enter(ahead);
    begin_steps(count, words);
    uint64_t next[2] = {now_ns(CLOCK_MONOTONIC), now_ns(CLOCK_BOOTTIME)}, last = next[0];
    must(next[0] >= (uint64_t)ahead * 1000 * MS);
    for (;;) {
        const clockid_t clocks[2] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME};
        for (int i = 0; i < 2; i++) {
            next[i] += 10 * MS;
            struct timespec until = {(time_t)(next[i] / 1000000000ull), (long)(next[i] % 1000000000ull)};
            while (clock_nanosleep(clocks[i], TIMER_ABSTIME, &until, NULL)) {}
            next[i] = now_ns(clocks[i]);
        }
        uint64_t now = now_ns(CLOCK_MONOTONIC);
        char took[64];
        snprintf(took, sizeof took, "took %llu ms", (unsigned long long)((now - last) / MS));
        last = now;
        step(took);
    }
}

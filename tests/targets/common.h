/* What all targets share: they die with the tests, may be traced by a sibling, and speak lines. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define MIB (1024ul * 1024ul)

static inline void begin(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

static inline void ready(void) { puts("ready"); }

static inline void die(const char *what) {
    fprintf(stderr, "target: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static inline void *map_anonymous(size_t length) {
    void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) die("mmap");
    return at;
}

/* The next line of standard input without its end, or the end of the process. */
static inline char *next_line(void) {
    static char line[4096];
    if (!fgets(line, sizeof line, stdin)) _exit(0);
    line[strcspn(line, "\n")] = 0;
    return line;
}

/* A small generator (splitmix64), so that a seed means the same everywhere. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

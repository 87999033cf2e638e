/* What all operations of the adversary share: the area, stores that may fail, words and numbers. */
#pragma once
#include "common.h"
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/personality.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#define MOST_WORDS 10
#define AREA 0x1000000000ul

/* Descriptors of fixed numbers. */
enum { OBJECT_FD = 40, OBJECTS = 16, BYTES_FD = 60, QUIET_READ_FD, QUIET_WRITE_FD, PIPE_READ_FD, PIPE_WRITE_FD, TAKEN_READ_FD, TAKEN_WRITE_FD,
       RING_FD = 70, UFFD_FD, PACKETS_FD, MAP_FD, PROGRAM_FD, LINK_FD, MACHINE_FD, PROCESSOR_FD, CHILD_FD = 100, CHILDREN = 4 };

static char **arguments;
static pid_t main_pid;
static __thread sigjmp_buf *escape;

static uint64_t number(const char *word) { return strtoull(word, NULL, 0); }
static char *page(const char *word) { return (char *)AREA + number(word) * PAGE; }
static size_t pages(const char *word) { return number(word) * PAGE; }

static int fails(int error) {
    errno = error;
    return -1;
}

static _Noreturn void unknown(const char *word) {
    fprintf(stderr, "target: an unknown word: %s\n", word);
    _exit(98);
}

static int done(long result) { return result < 0 ? -1 : 0; }

/* A word of a list, by its place; -1 if it is none of them. */
static int place(const char *word, const char *const *list, int count) {
    for (int i = 0; i < count; i++)
        if (!strcmp(word, list[i])) return i;
    return -1;
}

/* The descriptor gets this number, for good. */
static int keep(int fd, int as) {
    if (fd < 0) return -1;
    if (fd == as) return as;
    int kept = dup3(fd, as, O_CLOEXEC);
    close(fd);
    return kept;
}

static void on_fault(int number) {
    if (escape) siglongjmp(*escape, 1);
    signal(number, SIG_DFL);
}

static void own_signal_stack(char *stack, size_t length) {
    stack_t alternative = {.ss_sp = stack, .ss_size = length};
    sigaltstack(&alternative, NULL);
}

static void catch_faults(void) {
    static char stack[65536];
    own_signal_stack(stack, sizeof stack);
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_ONSTACK | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

static void fill(void *to, size_t length, uint64_t seed) {
    unsigned char *at = to;
    for (size_t i = 0; i + 8 <= length; i += 8) {
        uint64_t word = next_random(&seed);
        memcpy(at + i, &word, 8);
    }
}

/* What a store does to a page. */
enum { WHOLE, ZERO, ONE_BYTE, ONE_WORD, PATTERN };

static void store(char *at, uint64_t seed, uint64_t how) {
    switch (how) {
    case WHOLE: fill(at, PAGE, seed); break;
    case ZERO: memset(at, 0, PAGE); break;
    case ONE_BYTE: at[seed % PAGE] ^= 1; break;
    case ONE_WORD: fill(at + seed % 512 * 8, 8, seed); break;
    default: memset(at, (int)(1 + seed % 3), PAGE); break;
    }
}

/* Stores to each of the pages that can be stored to. Fails if there was none. */
static int store_pages(char *at, size_t length, uint64_t seed, uint64_t how) {
    static __thread sigjmp_buf here;
    volatile int stored = 0;
    for (volatile size_t offset = 0; offset < length; offset += PAGE) {
        escape = &here;
        if (sigsetjmp(here, 0) == 0) {
            store(at + offset, seed + offset, how);
            stored = 1;
        }
        escape = NULL;
    }
    return stored ? 0 : fails(EFAULT);
}

static int load_pages(char *at, size_t length) {
    static __thread sigjmp_buf here;
    volatile int loaded = 0;
    for (volatile size_t offset = 0; offset < length; offset += PAGE) {
        escape = &here;
        if (sigsetjmp(here, 0) == 0) {
            (void)*(volatile char *)(at + offset);
            loaded = 1;
        }
        escape = NULL;
    }
    return loaded ? 0 : fails(EFAULT);
}

/* What a process has registered for its memory, by the words after the first two: "barriers" (membarrier(2)), "futexes" (a table of its
 * own of a size of its choice), "future" and "onfault" (mlockall(2): what is mapped from now on is locked), "locked" (mlock(2), and
 * mlock2(2) of pages as they come), "sealed" (mseal(2)). In each step all of it holds. What the kernel has not, is left out, and said as "0 no WORD". */
#include "steps.h"
#include <linux/membarrier.h>

#ifndef MEMBARRIER_CMD_GET_REGISTRATIONS
#define MEMBARRIER_CMD_GET_REGISTRATIONS (1 << 9)
#endif
#define FUTEX_HASH 78
#define SLOTS 128ul
#define PAGES 16ul
#define MSEAL 462

static long barrier(int command) { return syscall(SYS_membarrier, command, 0, 0); }

static const int REGISTER[] = {
    MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED,
    MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
    MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
    MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ,
};
static const int USE[] = {
    MEMBARRIER_CMD_PRIVATE_EXPEDITED,
    MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE,
    MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ,
};
static long registrations;

static int have(const char *word, int count, char **words) {
    for (int i = 3; i < count; i++)
        if (!strcmp(words[i], word)) return 1;
    return 0;
}

/* Locked pages, and those of them that are there, of a mapping. */
static void read_locked(const void *at, long *resident, char *flags, int length) {
    char line[512];
    FILE *maps = fopen("/proc/self/smaps", "re");
    must(maps != NULL);
    int here = 0;
    *resident = -1;
    flags[0] = 0;
    while (fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) here = start == (unsigned long)at;
        if (here) sscanf(line, "Rss: %ld kB", resident);
        if (here && !strncmp(line, "VmFlags:", 8)) snprintf(flags, (size_t)length, "%.200s", line + 8);
    }
    fclose(maps);
}

static char *map_apart(void) {
    char *at = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at != MAP_FAILED && mprotect(at + PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
    return at + PAGE;
}

static char *locked, *as_they_come, *sealed;
static int future;

static void look(void) {
    char flags[256];
    long resident;
    if (registrations) {
        must(barrier(MEMBARRIER_CMD_GET_REGISTRATIONS) == registrations);
        for (size_t i = 0; i < sizeof USE / sizeof *USE; i++) must(barrier(USE[i]) == 0);
    }
    if (future) {
        char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        must(at != MAP_FAILED && mprotect(at, PAGE, PROT_NONE) == 0 && mprotect(at + 3 * PAGE, PAGE, PROT_NONE) == 0);
        read_locked(at + PAGE, &resident, flags, sizeof flags);
        must(strstr(flags, " lo"));
        must(resident == (future & MCL_ONFAULT ? 0 : 8));
        must(munmap(at, 4 * PAGE) == 0);
    }
    if (locked) {
        read_locked(locked, &resident, flags, sizeof flags);
        must(strstr(flags, " lo") && resident == (long)(PAGES * PAGE / 1024));
        read_locked(as_they_come, &resident, flags, sizeof flags);
        must(strstr(flags, " lo") && resident == 4);
    }
    if (sealed) {
        must(mprotect(sealed, PAGE, PROT_NONE) == -1 && errno == EPERM);
        must(munmap(sealed, PAGE) == -1 && errno == EPERM);
        must(sealed[0]++ == sealed[PAGE]++);
    }
}

int main(int count, char **words) {
    begin_steps(count, words);
    if (have("barriers", count, words)) {
        if (barrier(MEMBARRIER_CMD_GET_REGISTRATIONS) < 0) say("0 no barriers");
        else {
            for (size_t i = 0; i < sizeof REGISTER / sizeof *REGISTER; i++) must(barrier(REGISTER[i]) == 0);
            registrations = barrier(MEMBARRIER_CMD_GET_REGISTRATIONS);
        }
    }
    int slots = have("futexes", count, words);
    if (slots && prctl(FUTEX_HASH, 1, SLOTS, 0, 0)) {
        slots = 0;
        say("0 no futexes");
    }
    if (have("locked", count, words)) {
        locked = map_apart();
        as_they_come = map_apart();
        must(mlock(locked, PAGES * PAGE) == 0);
        must(syscall(SYS_mlock2, as_they_come, PAGES * PAGE, 1) == 0);
        as_they_come[3 * PAGE] = 1;
    }
    if (have("sealed", count, words)) {
        sealed = map_apart();
        if (syscall(MSEAL, sealed, PAGES * PAGE, 0)) {
            sealed = NULL;
            say("0 no sealed");
        }
    }
    if (have("future", count, words)) future = MCL_FUTURE;
    if (have("onfault", count, words)) future = MCL_FUTURE | MCL_ONFAULT;
    if (future) must(mlockall(future) == 0);
    for (;;) {
        look();
        if (slots) must(prctl(FUTEX_HASH, 2, 0, 0, 0) == (int)SLOTS);
        sleep_ms(5);
        step("held");
    }
}

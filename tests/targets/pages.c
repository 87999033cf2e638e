/* Holds a mapping of every kind, each with pages in states that are known. `where` tells the addresses. The
   mappings do not touch each other. A child that is forked shares all but what is to be swapped, and stores to some of one. */
#include "common.h"
#include <linux/userfaultfd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define HUGE_PAGE (2 * MIB)

static char where[4096];

static void tell(const char *name, void *at) {
    size_t used = strlen(where);
    snprintf(where + used, sizeof where - used, "%s=%lx ", name, (unsigned long)at);
}

/* A mapping with inaccessible neighbours, so that it is not merged with others. */
static unsigned char *map(const char *name, size_t length, int protection, int flags, int fd) {
    unsigned char *reserve = mmap(NULL, length + 2 * HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserve == MAP_FAILED) die("reserve");
    uintptr_t aligned = ((uintptr_t)reserve + HUGE_PAGE) & ~(HUGE_PAGE - 1);
    unsigned char *at = mmap((void *)aligned, length, protection, flags | MAP_FIXED, fd, 0);
    if (at == MAP_FAILED) return NULL;
    tell(name, at);
    return at;
}

static unsigned char *map_private(const char *name, size_t pages) {
    unsigned char *at = map(name, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    if (!at) die(name);
    madvise(at, pages * PAGE, MADV_NOHUGEPAGE);
    return at;
}

/* Pages from..to of different content, none of them zero. */
static void store(unsigned char *at, size_t from, size_t to) {
    static uint64_t state = 1;
    for (unsigned char *page = at + from * PAGE; page < at + to * PAGE; page += PAGE)
        for (size_t i = 0; i < PAGE; i += 8) {
            uint64_t value = next_random(&state) | 1;
            memcpy(page + i, &value, 8);
        }
}

static void load(unsigned char *at, size_t from, size_t to) {
    for (size_t page = from; page < to; page++) *(volatile unsigned char *)(at + page * PAGE);
}

static int file_of(const char *directory, const char *name, size_t pages) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    unsigned char *bytes = map_anonymous(pages * PAGE);
    store(bytes, 0, pages);
    if (fd < 0 || write(fd, bytes, pages * PAGE) != (ssize_t)(pages * PAGE) || fsync(fd)) die(path);
    munmap(bytes, pages * PAGE);
    return fd;
}

static unsigned char *anonymous, *swapped, *swapped_shared, *mergeable, *family;

/* Shared memory of which one page was stored to by this process, one by its child only, one dropped again, one cleared from
   the page table only; the rest was never touched. */
static void map_shared_states(void) {
    unsigned char *at = map("shared_states", 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    store(at, 0, 1);
    pid_t child = fork();
    if (child == 0) {
        at[1 * PAGE] = 1;
        _exit(0);
    }
    if (child < 0 || waitpid(child, NULL, 0) != child) die("a child");
    store(at, 2, 4);
    if (madvise(at + 2 * PAGE, PAGE, MADV_REMOVE)) die("remove");
    if (madvise(at + 3 * PAGE, PAGE, MADV_DONTNEED)) die("dontneed");
}

/* Reading untouched memory for huge pages shows the huge zero page, if the kernel has it to give. */
static void map_huge_zero(void) {
    unsigned char *at = map("huge_zero", 2 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    madvise(at, 2 * HUGE_PAGE, MADV_HUGEPAGE);
    load(at, 0, 1);
    store(at, HUGE_PAGE / PAGE, HUGE_PAGE / PAGE + 1);
}

static void map_files(const char *directory) {
    int memory = memfd_create("pages", MFD_CLOEXEC);
    if (memory < 0 || ftruncate(memory, 4 * PAGE)) die("memfd");
    unsigned char *first = map("shared", 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory);
    unsigned char *second = map("again", 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory);
    /* A page that is read is mapped together with those around it, so the third comes afterwards. */
    store(first, 0, 2);
    load(second, 0, 2);
    store(first, 2, 3);
    unsigned char *private = map("private_file", 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_of(directory, "private", 8));
    load(private, 0, 8);
    store(private, 1, 3);
    unsigned char *shared = map("shared_file", 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file_of(directory, "shared", 4));
    load(shared, 0, 4);
    store(shared, 0, 1);
}

static void map_huge(void) {
    unsigned char *huge = map("huge", 2 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    madvise(huge, 2 * HUGE_PAGE, MADV_HUGEPAGE);
    store(huge, 0, HUGE_PAGE / PAGE);
    madvise(huge, HUGE_PAGE, MADV_COLLAPSE);
}

static void share_with_a_child(void) {
    family = map_private("family", 8);
    store(family, 0, 8);
    int done[2];
    if (pipe(done)) die("pipe");
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* Pages that several processes map are not paged out for the asking. */
        munmap(swapped, 8 * PAGE);
        munmap(swapped_shared, 4 * PAGE);
        store(family, 6, 8);
        if (write(done[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    char byte;
    if (child < 0 || read(done[0], &byte, 1) != 1) die("fork");
}

/* Makes the second of four pages one that cannot be read: UFFDIO_POISON, which stays when the userfaultfd is closed. */
static int poison(void) {
    unsigned char *at = map_private("poisoned", 4);
    store(at, 0, 1);
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = 1 << 14 /* UFFD_FEATURE_POISON */};
    struct uffdio_register registered = {.range = {(unsigned long)at, 4 * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    struct { struct uffdio_range range; uint64_t mode; int64_t updated; } poisoned = {{(unsigned long)at + PAGE, PAGE}, 0, 0};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &registered)) return -1;
    if (ioctl(fd, _IOWR(UFFDIO, 0x08, poisoned), &poisoned)) return -1;
    return close(fd);
}

int main(int count, char **words) {
    begin();
    if (count != 2) return 2;
    anonymous = map_private("anonymous", 16);
    store(anonymous, 0, 5);
    unsigned char *zero = map_private("zero", 8);
    load(zero, 0, 3);
    store(zero, 7, 8);
    unsigned char *locked = map_private("locked", 4);
    store(locked, 0, 4);
    if (mlock(locked, 4 * PAGE)) tell("unlocked", NULL);
    unsigned char *guarded = map_private("guard", 8);
    store(guarded, 0, 8);
    if (madvise(guarded + 2 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL)) tell("unguarded", NULL);
    swapped = map_private("swapped", 8);
    store(swapped, 0, 8);
    swapped_shared = map("swapped_shared", 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    store(swapped_shared, 0, 3);
    mergeable = map_private("mergeable", 4);
    for (size_t page = 0; page < 4; page++) memset(mergeable + page * PAGE, 0x5a, PAGE);
    map_huge();
    map_huge_zero();
    map_shared_states();
    map_files(words[1]);
    ready();
    for (;;) {
        const char *command = next_line();
        if (!strcmp(command, "where")) {
            puts(where);
        } else if (!strcmp(command, "write")) {
            store(anonymous, 3, 9);
            puts("done");
        } else if (!strcmp(command, "fork")) {
            share_with_a_child();
            puts("done");
        } else if (!strcmp(command, "page_out")) {
            int failed = madvise(swapped, 6 * PAGE, MADV_PAGEOUT) || madvise(swapped_shared, 4 * PAGE, MADV_PAGEOUT);
            puts(failed ? strerror(errno) : "done");
        } else if (!strcmp(command, "merge")) {
            puts(madvise(mergeable, 4 * PAGE, MADV_MERGEABLE) ? strerror(errno) : "done");
        } else if (!strcmp(command, "merge_zeros")) {
            unsigned char *at = map_private("mergeable_zeros", 4);
            store(at, 0, 4);
            memset(at, 0, 4 * PAGE);
            puts(madvise(at, 4 * PAGE, MADV_MERGEABLE) ? strerror(errno) : "done");
        } else if (!strcmp(command, "poison")) {
            puts(poison() ? strerror(errno) : "done");
        } else if (!strcmp(command, "hugetlb")) {
            unsigned char *at = map("hugetlb", 2 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
            if (at) store(at, 0, 1);
            puts(at ? "done" : strerror(errno));
        } else {
            puts("an unknown command");
        }
    }
}

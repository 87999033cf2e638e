/* Memory that changes without any trace in a page table: a dropped huge page, and an io_uring whose
 * rings lie in memory of the process's own. Commands are answered with `done`, or with `cannot` and why. */
#include "common.h"
#include <linux/io_uring.h>

#define HUGE_PAGE (2 * MIB)
#define RING_ENTRIES 256ul
#ifndef IORING_SETUP_NO_MMAP
#define IORING_SETUP_NO_MMAP (1u << 14)
#endif

static unsigned char *huge, *rings, *ordinary;
static struct io_uring_sqe *entries;
static struct io_uring_params parameters;
static int ring = -1;

static const char *map_huge(void) {
    huge = mmap(NULL, 2 * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (huge == MAP_FAILED) return strerror(errno);
    memset(huge, 7, HUGE_PAGE); /* the second one is never touched */
    return NULL;
}

static const char *drop_huge(void) {
    if (madvise(huge, HUGE_PAGE, MADV_DONTNEED)) return strerror(errno);
    return *(volatile unsigned char *)huge == 0 ? NULL : "it was not dropped";
}

static const char *make_ring(void) {
    parameters.flags = IORING_SETUP_NO_MMAP;
    /* The last eight bytes of each, which headers before Linux 6.5 call resv2. */
    uint64_t at[] = {(uintptr_t)rings, (uintptr_t)entries};
    memcpy((char *)(&parameters.cq_off + 1) - 8, &at[0], 8);
    memcpy((char *)(&parameters.sq_off + 1) - 8, &at[1], 8);
    ring = (int)syscall(SYS_io_uring_setup, RING_ENTRIES, &parameters);
    return ring < 0 ? strerror(errno) : NULL;
}

/* Queues one operation that does nothing: the kernel writes its completion into our memory. */
static const char *complete_one(void) {
    unsigned *tail = (unsigned *)(rings + parameters.sq_off.tail);
    unsigned mask = *(unsigned *)(rings + parameters.sq_off.ring_mask);
    unsigned *array = (unsigned *)(rings + parameters.sq_off.array);
    unsigned index = *tail & mask;
    entries[index] = (struct io_uring_sqe){.opcode = IORING_OP_NOP, .user_data = *tail + 1};
    array[index] = index;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    long taken = syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    unsigned *head = (unsigned *)(rings + parameters.cq_off.head);
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return taken == 1 ? NULL : "the operation was not taken";
}

static const char *ordinary_ring(void) {
    struct io_uring_params plain = {0};
    int fd = (int)syscall(SYS_io_uring_setup, 4, &plain);
    if (fd < 0) return strerror(errno);
    size_t length = plain.sq_off.array + plain.sq_entries * 4;
    void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
    return at == MAP_FAILED ? strerror(errno) : NULL;
}

static const char *perform(const char *command) {
    if (!strcmp(command, "huge")) return map_huge();
    if (!strcmp(command, "drop_huge")) return drop_huge();
    if (!strcmp(command, "own_ring")) return make_ring();
    if (!strcmp(command, "complete")) {
        const char *problem = NULL;
        for (int at = 0; at < 200 && !problem; at++) problem = complete_one();
        return problem;
    }
    if (!strcmp(command, "ring")) return ordinary_ring();
    if (!strcmp(command, "write")) {
        for (size_t at = 0; at < MIB; at += PAGE) ordinary[at]++;
        return NULL;
    }
    return "an unknown command";
}

int main(void) {
    begin();
    ordinary = map_anonymous(MIB);
    /* So long that a page of the completions holds nothing that we ever store to. These are there at the first snapshot, and so
     * are tracked: new memory may be compared for a while. */
    rings = map_anonymous(4 * PAGE);
    entries = map_anonymous(RING_ENTRIES * sizeof *entries);
    memset(rings, 0, 4 * PAGE);
    memset(entries, 0, RING_ENTRIES * sizeof *entries);
    ready();
    for (;;) {
        const char *problem = perform(next_line());
        if (problem)
            printf("cannot: %s\n", problem);
        else
            puts("done");
    }
}

/* The rings of writers.c. The numbers are those of linux/io_uring.h, which older headers lack. */
#pragma once
#include "writers.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>

#define ENTRIES 256ul
#define QUEUES_LENGTH (4 * PAGE)
#define BUFFER_PAGES 16ul
enum { GETEVENTS = 1, WAKE_UP = 1 << 1, REGISTERED = 1 << 4, POLLED = 1 << 1, SINGLE_ISSUER = 1 << 12, NO_MMAP = 1 << 14, REGISTERED_ONLY = 1 << 15 };
enum { BUFFERS = 0, BUFFERS2 = 15, BUFFERS_UPDATE = 16, BUFFER_RING = 22, CLONE_BUFFERS = 30, BY_REGISTERED = 1u << 31 };
enum { OP_NOP = 0, OP_READ_FIXED = 4, OP_RECV = 27, BUFFER_SELECT = 1 << 5 };
enum { BUFFERS_BY_KERNEL = 1, BUFFERS_BY_AND_BY = 2 };

struct entry {
    uint8_t operation, flags;
    uint16_t priority;
    int32_t fd;
    uint64_t offset, address;
    uint32_t length, rw_flags;
    uint64_t data;
    uint16_t buffer, personality;
    uint32_t file_index;
    uint64_t more[2];
};
struct parameters {
    uint32_t sq_entries, cq_entries, flags, thread_cpu, thread_idle, features, wq_fd, reserved[3];
    struct {
        uint32_t head, tail, mask, entries, flags, dropped, array, reserved;
        uint64_t address;
    } sq;
    struct {
        uint32_t head, tail, mask, entries, overflow, cqes, flags, reserved;
        uint64_t address;
    } cq;
};
struct buffer_ring {
    uint64_t address;
    uint32_t entries;
    uint16_t group, flags;
    uint64_t reserved[3];
};
struct provided {
    uint64_t address;
    uint32_t length;
    uint16_t number, tail;
};

struct ring {
    int fd;
    unsigned enter_flags;
    unsigned char *queues;
    struct entry *entries;
    struct parameters at;
};
static struct ring ring;
static unsigned char *buffers;
static int data_fd, sockets[2];

/* A ring whose queues lie in own memory, so long that a page of completions is one we never store to. */
static const char *make_own(struct ring *made, unsigned flags) {
    made->queues = from_pool(QUEUES_LENGTH);
    made->entries = from_pool(ENTRIES * sizeof *made->entries);
    memset(made->queues, 0, QUEUES_LENGTH);
    memset(made->entries, 0, ENTRIES * sizeof *made->entries);
    made->at = (struct parameters){.flags = NO_MMAP | flags, .thread_idle = 600000};
    made->at.cq.address = (uintptr_t)made->queues;
    made->at.sq.address = (uintptr_t)made->entries;
    made->fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &made->at);
    made->enter_flags = flags & REGISTERED_ONLY ? REGISTERED : 0;
    return made->fd < 0 ? strerror(errno) : NULL;
}

static const char *make_ordinary(struct ring *made, unsigned flags) {
    made->at = (struct parameters){.flags = flags};
    made->fd = (int)syscall(SYS_io_uring_setup, 8, &made->at);
    if (made->fd < 0) return strerror(errno);
    size_t submission = made->at.sq.array + made->at.sq_entries * 4, completion = made->at.cq.cqes + made->at.cq_entries * 16;
    size_t length = submission > completion ? submission : completion;
    made->queues = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, made->fd, 0);
    length = made->at.sq_entries * sizeof *made->entries;
    made->entries = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, made->fd, 0x10000000);
    return made->queues == MAP_FAILED || (void *)made->entries == MAP_FAILED ? strerror(errno) : NULL;
}

static void unmap(struct ring *of) {
    munmap(of->queues, of->at.cq.cqes + of->at.cq_entries * 16);
    munmap(of->entries, of->at.sq_entries * sizeof *of->entries);
}

static void queue(struct entry entry) {
    unsigned *tail = (unsigned *)(ring.queues + ring.at.sq.tail);
    unsigned index = *tail & (ring.at.sq_entries - 1);
    ring.entries[index] = entry;
    ((unsigned *)(ring.queues + ring.at.sq.array))[index] = index;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
}

static const char *enter(unsigned count) {
    unsigned flags = GETEVENTS | ring.enter_flags;
    long taken = syscall(SYS_io_uring_enter, ring.fd, count, count, flags, NULL, 0);
    return taken == (long)count ? NULL : "it was not taken";
}

/* The result of the next completion. */
static int take(void) {
    unsigned *head = (unsigned *)(ring.queues + ring.at.cq.head);
    if (*head == __atomic_load_n((unsigned *)(ring.queues + ring.at.cq.tail), __ATOMIC_ACQUIRE)) return -1;
    unsigned char *at = ring.queues + ring.at.cq.cqes + (*head & (ring.at.cq_entries - 1)) * 16;
    int result = *(int *)(at + 8);
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

static const char *close_ring(void) {
    /* Queues of the kernel keep it there as long as they are mapped. */
    if (!(ring.at.flags & NO_MMAP)) unmap(&ring);
    return close(ring.fd) ? strerror(errno) : NULL;
}

static const char *make_own_ring(void) { return make_own(&ring, 0); }
static const char *make_registered_ring(void) { return make_own(&ring, REGISTERED_ONLY); }

/* The kernel writes completions into pages that we do not store to. */
static const char *complete_many(void) {
    static uint64_t number;
    for (int i = 0; i < 200; i++) {
        queue((struct entry){.operation = OP_NOP, .data = ++number});
        const char *problem = enter(1);
        if (problem) return problem;
        take();
    }
    return NULL;
}

/* Something of the ring is mapped, and it is not the queues. */
static const char *make_deceiving_ring(void) {
    const char *problem = make_own(&ring, 0);
    if (problem) return problem;
    struct buffer_ring wanted = {.entries = 8, .group = 1, .flags = BUFFERS_BY_KERNEL};
    if (syscall(SYS_io_uring_register, ring.fd, BUFFER_RING, &wanted, 1)) return strerror(errno);
    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, 0x80000000 | 1 << 16);
    return at == MAP_FAILED ? strerror(errno) : NULL;
}

static const char *enter_hundred(void) { return enter(100); }

/* Only a child has the ring; its queues lie in our memory. */
static const char *make_lent_ring(void) {
    const char *problem = make_own(&ring, 0);
    if (!problem) problem = start_child(enter_hundred);
    close(ring.fd);
    return problem;
}

static const char *complete_lent(void) {
    static uint64_t number;
    for (int i = 0; i < 100; i++) queue((struct entry){.operation = OP_NOP, .data = ++number});
    const char *problem = order_child();
    while (take() >= 0);
    return problem;
}

static struct provided *provided;

static const char *provide(unsigned flags) {
    const char *problem = make_ordinary(&ring, flags);
    if (problem) return problem;
    provided = from_pool(PAGE);
    memset(provided, 0, PAGE);
    buffers = from_pool(BUFFER_PAGES * PAGE);
    memset(buffers, 1, BUFFER_PAGES * PAGE);
    struct buffer_ring wanted = {
        .address = (uintptr_t)provided, .entries = 8, .group = 1, .flags = BUFFERS_BY_AND_BY};
    if (syscall(SYS_io_uring_register, ring.fd, BUFFER_RING, &wanted, 1)) return strerror(errno);
    provided[0].address = (uintptr_t)buffers;
    provided[0].length = BUFFER_PAGES * PAGE;
    __atomic_store_n(&provided[0].tail, 1, __ATOMIC_RELEASE);
    return socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) ? strerror(errno) : NULL;
}

/* The kernel takes of a buffer what it needs, and writes into the ring what is left of it. */
static const char *make_buffer_ring(void) { return provide(0); }
static const char *make_lone_buffer_ring(void) { return provide(SINGLE_ISSUER); }

static const char *receive(void) {
    static char sent[2000];
    memset(sent, ++sent[0], sizeof sent);
    if (write(sockets[1], sent, sizeof sent) != sizeof sent) return strerror(errno);
    queue((struct entry){.operation = OP_RECV, .flags = BUFFER_SELECT, .fd = sockets[0], .length = sizeof sent, .buffer = 1});
    const char *problem = enter(1);
    if (problem) return problem;
    return take() == sizeof sent ? NULL : "nothing was received";
}

/* --- registered buffers --- */

static const char *prepare_data(void) {
    buffers = from_pool(BUFFER_PAGES * PAGE);
    memset(buffers, 1, BUFFER_PAGES * PAGE);
    data_fd = (int)syscall(SYS_memfd_create, "data", 1);
    return data_fd < 0 || ftruncate(data_fd, PAGE) ? strerror(errno) : NULL;
}

static const char *register_after_nothing(struct ring *of) {
    struct iovec two[2] = {{NULL, 0}, {buffers, BUFFER_PAGES * PAGE}};
    return syscall(SYS_io_uring_register, of->fd, BUFFERS, two, 2) ? strerror(errno) : NULL;
}

/* The list of buffers begins with an empty slot. */
static const char *make_sparse_buffers(void) {
    const char *problem = make_ordinary(&ring, 0);
    if (!problem) problem = prepare_data();
    return problem ? problem : register_after_nothing(&ring);
}

/* The list is whole. */
static const char *make_fixed_buffers(void) {
    const char *problem = make_ordinary(&ring, 0);
    if (!problem) problem = prepare_data();
    if (problem) return problem;
    struct iovec two[2] = {{from_pool(PAGE), PAGE}, {buffers, BUFFER_PAGES * PAGE}};
    return syscall(SYS_io_uring_register, ring.fd, BUFFERS, two, 2) ? strerror(errno) : NULL;
}

static const char *read_fixed(void) {
    static unsigned char number;
    unsigned char page[PAGE];
    memset(page, ++number + 100, PAGE);
    if (pwrite(data_fd, page, PAGE, 0) != (ssize_t)PAGE) return strerror(errno);
    queue((struct entry){.operation = OP_READ_FIXED, .fd = data_fd, .address = (uintptr_t)(buffers + 5 * PAGE), .length = PAGE, .buffer = 1});
    const char *problem = enter(1);
    if (problem) return problem;
    return take() == (int)PAGE ? NULL : "nothing was read";
}

/* They are moved after they were registered, and something else may come to lie where they were. */
static const char *make_moved_buffers(void) {
    const char *problem = make_sparse_buffers();
    if (problem) return problem;
    size_t length = BUFFER_PAGES * PAGE;
    void *to = from_pool(length);
    return mremap(buffers, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to ? NULL : strerror(errno);
}

static const char *make_moved_and_replaced_buffers(void) {
    unsigned char *before;
    const char *problem = make_moved_buffers();
    if (problem) return problem;
    before = mmap(buffers, BUFFER_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return before == buffers ? NULL : strerror(errno);
}

/* One ring has them from another, which is closed. */
static const char *make_cloned_buffers(void) {
    static struct ring first;
    const char *problem = make_ordinary(&first, 0);
    if (!problem) problem = prepare_data();
    if (!problem) problem = register_after_nothing(&first);
    if (!problem) problem = make_ordinary(&ring, 0);
    if (problem) return problem;
    uint32_t wanted[8] = {(uint32_t)first.fd};
    if (syscall(SYS_io_uring_register, ring.fd, CLONE_BUFFERS, wanted, 1)) return strerror(errno);
    unmap(&first);
    close(first.fd);
    return NULL;
}

/* Only a child has the ring, and reads into our memory. */
static const char *make_lent_buffers(void) {
    const char *problem = make_sparse_buffers();
    if (!problem) problem = start_child(read_fixed);
    close(ring.fd);
    unmap(&ring);
    return problem;
}

static const char *read_lent(void) { return order_child(); }

/* A thread of the kernel takes what is queued, so nobody has to enter the ring any more once that is awake. */
static const char *make_polled(struct ring *made) {
    const char *problem = make_own(made, REGISTERED_ONLY | POLLED);
    if (problem) return problem;
    return syscall(SYS_io_uring_enter, made->fd, 0, 0, WAKE_UP | REGISTERED, NULL, 0) < 0 ? strerror(errno) : NULL;
}

/* And a filter of seccomp ends who does. */
static const char *make_filtered_ring(void) {
    const char *problem = make_polled(&ring);
    if (problem) return problem;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_enter, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) return strerror(errno);
    return NULL;
}

/* The same where the thread diverts its system calls to itself, so that none can be made in it. */
static char diverts;
static const char *make_diverted_ring(void) {
    const char *problem = make_polled(&ring);
    if (problem) return problem;
    /* PR_SET_SYSCALL_USER_DISPATCH, on, for all code but none, and switched off by a byte */
    return prctl(59, 1, 0ul, 0ul, &diverts) ? strerror(errno) : NULL;
}

static const char *complete_polled(void) {
    static uint64_t number;
    unsigned *completed = (unsigned *)(ring.queues + ring.at.cq.tail);
    for (int i = 0; i < 200; i++) {
        unsigned before = *completed;
        queue((struct entry){.operation = OP_NOP, .data = ++number});
        for (int wait = 0; wait < 20000 && __atomic_load_n(completed, __ATOMIC_ACQUIRE) == before; wait++) usleep(100);
        if (*completed == before) return "nobody took it";
        take();
    }
    return NULL;
}

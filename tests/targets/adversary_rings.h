/* io_uring, by its system calls: queues of the kernel or in own memory, with a descriptor or known to the thread alone,
 * registered buffers, buffers from a ring of them. A child that was forked meanwhile has the ring, too. */
#pragma once
#include "adversary_common.h"
#include "adversary_io.h"
#include <linux/io_uring.h>

/* What older headers lack. */
enum { OWN_QUEUES = 1 << 14, BY_THREAD_ALONE = 1 << 15, ENTER_REGISTERED = 1 << 4, REGISTER_BY_NUMBER = 1u << 31,
       UNREGISTER_RINGS = 21, BUFFER_RING = 22, NO_BUFFER_RING = 23, CLONE_BUFFERS = 30, MADE_BY_KERNEL = 1, TAKEN_BY_AND_BY = 2 };

/* Of 0.1 ms each. */
#define COMPLETION_TRIES 20000

static struct io_uring_params parameters;
static unsigned char *queues;
static struct io_uring_sqe *entries;
static size_t queues_length, entries_length; /* 0 where they lie in the area */
static enum { NOTHING, UNDER_WAY, ARRIVED } pending; /* the one read that waits for something to come */
static int known_by = -1; /* the number by which the thread knows a ring that has no descriptor */
static uint16_t buffer_number; /* of the registered buffer */
static void *decoy;

struct buffer_ring {
    uint64_t address;
    uint32_t entries;
    uint16_t group, flags;
    uint64_t reserved[3];
};

static int have_ring(void) { return known_by >= 0 || fcntl(RING_FD, F_GETFD) >= 0; }

static long enter_ring(unsigned count, unsigned flags) {
    int by_number = known_by >= 0;
    if (by_number) flags |= ENTER_REGISTERED;
    return syscall(SYS_io_uring_enter, by_number ? known_by : RING_FD, count, 0, flags, NULL, 0);
}

static long register_with_ring(unsigned operation, void *what, unsigned count) {
    int by_number = known_by >= 0;
    if (by_number) operation |= REGISTER_BY_NUMBER;
    return syscall(SYS_io_uring_register, by_number ? known_by : RING_FD, operation, what, count);
}

static int do_ring_close(char **words) {
    (void)words;
    if (queues_length) munmap(queues, queues_length);
    if (entries_length) munmap(entries, entries_length);
    if (decoy) munmap(decoy, PAGE);
    decoy = NULL;
    queues = NULL;
    queues_length = entries_length = 0;
    pending = NOTHING;
    if (known_by < 0) return close(RING_FD);
    struct {
        uint32_t number, reserved;
        uint64_t data;
    } which = {.number = (uint32_t)known_by};
    long result = register_with_ring(UNREGISTER_RINGS, &which, 1);
    known_by = -1;
    return done(result);
}

/* PAGE HIDDEN: 0 for queues of the kernel; else they lie in the area from there on, and the ring may have no descriptor. */
static int do_ring(char **words) {
    if (have_ring()) return fails(EEXIST);
    int hidden = number(words[2]) != 0;
    memset(&parameters, 0, sizeof parameters);
    char *own = number(words[1]) ? page(words[1]) : NULL;
    if (own) {
        parameters.flags = OWN_QUEUES | (hidden ? BY_THREAD_ALONE : 0);
        /* The last field of both, which some headers do not name: where the queue is to lie. */
        uint64_t at[2] = {(uintptr_t)own, (uintptr_t)own + PAGE};
        memcpy((char *)(&parameters.cq_off + 1) - 8, &at[0], 8);
        memcpy((char *)(&parameters.sq_off + 1) - 8, &at[1], 8);
    }
    int made = (int)syscall(SYS_io_uring_setup, 8, &parameters);
    if (own && hidden && made >= 0) {
        known_by = made;
    } else if (keep(made, RING_FD) < 0) {
        return -1;
    }
    pending = NOTHING;
    queues = (unsigned char *)own;
    entries = (struct io_uring_sqe *)(own + PAGE);
    if (own) return 0;
    size_t submission = parameters.sq_off.array + parameters.sq_entries * 4;
    size_t completion = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
    /* The kernel chooses the place of these. */
    size_t length = submission > completion ? submission : completion;
    int flags = MAP_SHARED | MAP_POPULATE;
    void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, RING_FD, IORING_OFF_SQ_RING);
    if (at == MAP_FAILED) return -1;
    queues = at;
    queues_length = length;
    length = parameters.sq_entries * sizeof *entries;
    at = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, RING_FD, IORING_OFF_SQES);
    if (at == MAP_FAILED) {
        int error = errno;
        do_ring_close(NULL);
        return fails(error);
    }
    entries = at;
    entries_length = length;
    return 0;
}

/* Submits one request; -1 if the queues cannot be reached any more. */
static int submit(struct io_uring_sqe request) {
    static __thread sigjmp_buf here;
    if (!queues || !have_ring()) return fails(EBADF);
    escape = &here;
    if (sigsetjmp(here, 0)) {
        escape = NULL;
        return fails(EFAULT);
    }
    unsigned *tail = (unsigned *)(queues + parameters.sq_off.tail);
    unsigned index = *tail & (parameters.sq_entries - 1);
    entries[index] = request;
    ((unsigned *)(queues + parameters.sq_off.array))[index] = index;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    escape = NULL;
    return done(enter_ring(1, 0));
}

/* Waits for a completion, and takes it or leaves it there. The wait is bounded: what its memory was mapped
 * over stays out. */
static int complete(int take) {
    static __thread sigjmp_buf here;
    volatile int result = -ETIME;
    escape = &here;
    if (sigsetjmp(here, 0) == 0) {
        unsigned *head = (unsigned *)(queues + parameters.cq_off.head);
        unsigned *tail = (unsigned *)(queues + parameters.cq_off.tail);
        struct io_uring_cqe *cqes = (struct io_uring_cqe *)(queues + parameters.cq_off.cqes);
        for (int i = 0; i < COMPLETION_TRIES && result == -ETIME; i++) {
            enter_ring(0, IORING_ENTER_GETEVENTS);
            if (*head != __atomic_load_n(tail, __ATOMIC_ACQUIRE)) {
                result = cqes[*head & (parameters.cq_entries - 1)].res;
                if (take) __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
            } else {
                struct timespec pause = {0, 100000};
                nanosleep(&pause, NULL);
            }
        }
    } else {
        result = -EFAULT;
    }
    escape = NULL;
    return result < 0 ? fails(-result) : 0;
}

/* PAGE PAGES: these are the registered buffer. */
static int do_ring_buffer(char **words) {
    register_with_ring(IORING_UNREGISTER_BUFFERS, NULL, 0);
    struct iovec buffer = {page(words[1]), pages(words[2])};
    buffer_number = 0;
    return done(register_with_ring(IORING_REGISTER_BUFFERS, &buffer, 1));
}

/* The same, behind an empty slot. */
static int do_ring_sparse(char **words) {
    register_with_ring(IORING_UNREGISTER_BUFFERS, NULL, 0);
    struct iovec buffers[2] = {{NULL, 0}, {page(words[1]), pages(words[2])}};
    buffer_number = 1;
    return done(register_with_ring(IORING_REGISTER_BUFFERS, buffers, 2));
}

/* The ring has its buffers from another one, which had them from it and is gone. */
static int do_ring_clone(char **words) {
    (void)words;
    struct io_uring_params other = {0};
    int lent = (int)syscall(SYS_io_uring_setup, 1, &other);
    if (lent < 0) return -1;
    /* By the first flag the number of the source is one that the thread knows. */
    uint32_t out[8] = {(uint32_t)(known_by >= 0 ? known_by : RING_FD), known_by >= 0}, back[8] = {(uint32_t)lent};
    long result = syscall(SYS_io_uring_register, lent, CLONE_BUFFERS, out, 1);
    if (!result) {
        register_with_ring(IORING_UNREGISTER_BUFFERS, NULL, 0);
        result = register_with_ring(CLONE_BUFFERS, back, 1);
    }
    int error = errno;
    close(lent);
    errno = error;
    return done(result);
}

/* What is mapped of the ring besides are not its queues, wherever these lie: a ring of buffers that the kernel made. */
static int do_ring_decoy(char **words) {
    (void)words;
    if (decoy) return fails(EEXIST);
    struct buffer_ring wanted = {.entries = 8, .group = 2, .flags = MADE_BY_KERNEL};
    if (register_with_ring(BUFFER_RING, &wanted, 1)) return -1;
    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, RING_FD, 0x80000000 | 2 << 16);
    if (at != MAP_FAILED) {
        decoy = at;
        return 0;
    }
    int error = errno;
    register_with_ring(NO_BUFFER_RING, &wanted, 1);
    return fails(error);
}

static int do_ring_no_buffer(char **words) {
    (void)words;
    return done(register_with_ring(IORING_UNREGISTER_BUFFERS, NULL, 0));
}

static int ring_read(uint8_t operation, int fd, char *at, size_t length) {
    uint16_t number = operation == IORING_OP_READ_FIXED ? buffer_number : 0;
    return submit((struct io_uring_sqe){.opcode = operation, .fd = fd, .addr = (uintptr_t)at, .len = (uint32_t)length, .buf_index = number});
}

/* PAGE SEED. Only without reads under way, as completions are not told apart. */
static int do_ring_read(char **words) {
    if (pending) return fails(EBUSY);
    int fd = bytes_of(number(words[2]));
    return ring_read(IORING_OP_READ, fd, page(words[1]), length_of(number(words[2]))) ? -1 : complete(1);
}

static int do_ring_read_fixed(char **words) {
    if (pending) return fails(EBUSY);
    int fd = bytes_of(number(words[2]));
    return ring_read(IORING_OP_READ_FIXED, fd, page(words[1]), length_of(number(words[2]))) ? -1 : complete(1);
}

/* A read that is under way until something comes: PAGE FIXED */
static int do_ring_wait(char **words) {
    if (pending || have_pipe(QUIET_READ_FD, QUIET_WRITE_FD)) return fails(EBUSY);
    uint8_t operation = number(words[2]) ? IORING_OP_READ_FIXED : IORING_OP_READ;
    if (ring_read(operation, QUIET_READ_FD, page(words[1]), PAGE)) return -1;
    pending = UNDER_WAY;
    return 0;
}

/* SEED TAKE: something comes. Its completion is taken, or it is left there until the next call. */
static int do_ring_arrive(char **words) {
    if (pending == NOTHING) return fails(ENOENT);
    if (pending == ARRIVED) {
        pending = NOTHING;
        return complete(1);
    }
    int take = number(words[2]) != 0;
    char bytes[PAGE];
    fill(bytes, PAGE, number(words[1]));
    pending = take ? NOTHING : ARRIVED;
    if (write(QUIET_WRITE_FD, bytes, length_of(number(words[1]))) < 0) return -1;
    int result = complete(take), error = errno;
    char rest[PAGE];
    while (read(QUIET_READ_FD, rest, PAGE) > 0);
    errno = error;
    return result;
}

/* PAGE PAGES: a ring of buffers lies in the page, and its only buffer in those that follow. */
static int do_ring_provide(char **words) {
    static __thread sigjmp_buf here;
    struct buffer_ring wanted = {.group = 1};
    struct {
        uint64_t address;
        uint32_t length;
        uint16_t number, tail;
    } *first = (void *)page(words[1]);
    register_with_ring(NO_BUFFER_RING, &wanted, 1);
    wanted.address = (uintptr_t)first;
    wanted.entries = 8;
    wanted.flags = TAKEN_BY_AND_BY;
    if (register_with_ring(BUFFER_RING, &wanted, 1)) return -1;
    escape = &here;
    if (sigsetjmp(here, 0)) {
        escape = NULL;
        return fails(EFAULT);
    }
    memset(first, 0, PAGE);
    first->address = (uintptr_t)first + PAGE;
    first->length = (uint32_t)pages(words[2]);
    __atomic_store_n(&first->tail, 1, __ATOMIC_RELEASE);
    escape = NULL;
    return 0;
}

/* SEED: something comes into what is next of that buffer. */
static int do_ring_take(char **words) {
    if (pending || have_pipe(TAKEN_READ_FD, TAKEN_WRITE_FD)) return fails(EBUSY);
    char bytes[PAGE];
    fill(bytes, PAGE, number(words[1]));
    if (write(TAKEN_WRITE_FD, bytes, length_of(number(words[1]))) < 0) return -1;
    struct io_uring_sqe request = {.opcode = IORING_OP_READ, .fd = TAKEN_READ_FD, .off = (uint64_t)-1, .len = PAGE,
                                   .flags = IOSQE_BUFFER_SELECT, .buf_group = 1};
    int result = submit(request) ? -1 : complete(1), error = errno;
    while (read(TAKEN_READ_FD, bytes, PAGE) > 0);
    errno = error;
    return result;
}

#define RING_VERBS \
    {"ring", do_ring}, {"ring_close", do_ring_close}, {"ring_buffer", do_ring_buffer}, \
    {"ring_sparse", do_ring_sparse}, {"ring_clone", do_ring_clone}, {"ring_decoy", do_ring_decoy}, \
    {"ring_no_buffer", do_ring_no_buffer}, {"ring_read", do_ring_read}, {"ring_read_fixed", do_ring_read_fixed}, \
    {"ring_wait", do_ring_wait}, {"ring_arrive", do_ring_arrive}, {"ring_provide", do_ring_provide}, \
    {"ring_take", do_ring_take},

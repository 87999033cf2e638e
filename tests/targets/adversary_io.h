/* The kernel stores: reads of all kinds, pipes, io_uring, aio, other processes' memory. */
#pragma once
#include "adversary_common.h"
#include <linux/aio_abi.h>
#include <linux/io_uring.h>

#ifndef IORING_SETUP_NO_MMAP
#define IORING_SETUP_NO_MMAP (1U << 14)
#endif

/* A file whose first page holds what follows from the seed. */
static int bytes_of(uint64_t seed) {
    if (fcntl(BYTES_FD, F_GETFD) < 0 && keep(memfd_create("bytes", MFD_CLOEXEC), BYTES_FD) < 0) return -1;
    char bytes[PAGE];
    fill(bytes, PAGE, seed);
    return pwrite(BYTES_FD, bytes, PAGE, 0) < 0 ? -1 : BYTES_FD;
}

static size_t length_of(uint64_t seed) { return 1 + seed % PAGE; }

/* PAGE SEED */
static int do_pread(char **words) {
    int fd = bytes_of(number(words[2]));
    return done(pread(fd, page(words[1]), length_of(number(words[2])), 0));
}

static int do_preadv(char **words) {
    int fd = bytes_of(number(words[2]));
    struct iovec pieces[2] = {{page(words[1]) + 100, 700}, {page(words[1]) + 2000, 1500}};
    return done(preadv(fd, pieces, 2, 0));
}

/* Direct reads: PAGE OBJECT OBJECT-PAGE */
static int do_read_direct(char **words) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", OBJECT_FD + (int)(number(words[2]) % OBJECTS));
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return -1;
    int result = done(pread(fd, page(words[1]), PAGE, (off_t)pages(words[3])));
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

/* Linux aio: PAGE OBJECT OBJECT-PAGE */
static int do_aio(char **words) {
    static aio_context_t context;
    if (!context && syscall(SYS_io_setup, 4, &context)) return -1;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", OBJECT_FD + (int)(number(words[2]) % OBJECTS));
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return -1;
    struct iocb block = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)fd, .aio_nbytes = PAGE,
                         .aio_buf = (uintptr_t)page(words[1]), .aio_offset = (int64_t)pages(words[3])};
    struct iocb *blocks[1] = {&block};
    struct io_event event = {0};
    struct timespec patience = {5, 0};
    long result = syscall(SYS_io_submit, context, 1ul, blocks);
    if (result == 1) result = syscall(SYS_io_getevents, context, 1ul, 1ul, &event, &patience);
    int error = errno;
    close(fd);
    if (result == 1 && (int64_t)event.res < 0) {
        error = -(int)(int64_t)event.res;
        result = -1;
    }
    errno = error;
    return done(result);
}

/* The memory of the first process: from a child, another's. PAGE SEED */
static int do_vm_write(char **words) {
    char bytes[PAGE];
    fill(bytes, PAGE, number(words[2]));
    size_t length = length_of(number(words[2]));
    struct iovec from = {bytes, length}, to = {page(words[1]), length};
    return done(process_vm_writev(main_pid, &from, 1, &to, 1, 0));
}

static int do_mem_write(char **words) {
    char path[64], bytes[PAGE];
    snprintf(path, sizeof path, "/proc/%d/mem", main_pid);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return -1;
    fill(bytes, PAGE, number(words[2]));
    int result = done(pwrite(fd, bytes, length_of(number(words[2])), (off_t)(uintptr_t)page(words[1])));
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

static int have_pipe(int read_fd, int write_fd) {
    if (fcntl(read_fd, F_GETFD) >= 0) return 0;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK)) return -1;
    return keep(ends[0], read_fd) < 0 || keep(ends[1], write_fd) < 0 ? -1 : 0;
}

/* Pages go into a pipe without a copy and stay there. PAGE PAGES GIFT */
static int do_vmsplice(char **words) {
    if (have_pipe(PIPE_READ_FD, PIPE_WRITE_FD)) return -1;
    struct iovec range = {page(words[1]), pages(words[2])};
    return done(vmsplice(PIPE_WRITE_FD, &range, 1, SPLICE_F_NONBLOCK | (number(words[3]) ? SPLICE_F_GIFT : 0)));
}

/* From the pipe into an object, perhaps by moving the page. OBJECT OBJECT-PAGE */
static int do_splice(char **words) {
    if (have_pipe(PIPE_READ_FD, PIPE_WRITE_FD)) return -1;
    off_t to = (off_t)pages(words[2]);
    return done(splice(PIPE_READ_FD, NULL, OBJECT_FD + (int)(number(words[1]) % OBJECTS), &to, PAGE,
                       SPLICE_F_MOVE | SPLICE_F_NONBLOCK));
}

/* From the pipe into memory: PAGE SEED */
static int do_unsplice(char **words) {
    if (have_pipe(PIPE_READ_FD, PIPE_WRITE_FD)) return -1;
    char bytes[PAGE];
    fill(bytes, PAGE, number(words[2]));
    done(write(PIPE_WRITE_FD, bytes, length_of(number(words[2]))));
    struct iovec range = {page(words[1]), PAGE};
    return done(vmsplice(PIPE_READ_FD, &range, 1, SPLICE_F_NONBLOCK));
}

static int do_drain(char **words) {
    if (have_pipe(PIPE_READ_FD, PIPE_WRITE_FD)) return -1;
    return done(read(PIPE_READ_FD, page(words[1]), PAGE));
}

/* --- io_uring, by its system calls --- */

static struct io_uring_params parameters;
static unsigned char *queues;
static struct io_uring_sqe *entries;
static size_t queues_length, entries_length; /* 0 where they lie in the area */
static enum { NOTHING, UNDER_WAY, ARRIVED } pending; /* the one read that waits for something to come */

static int do_ring_close(char **words) {
    (void)words;
    if (queues_length) munmap(queues, queues_length);
    if (entries_length) munmap(entries, entries_length);
    queues = NULL;
    queues_length = entries_length = 0;
    pending = NOTHING;
    return close(RING_FD);
}

/* PAGE: 0 for queues of the kernel; else they lie in the area from there on. */
static int do_ring(char **words) {
    if (fcntl(RING_FD, F_GETFD) >= 0) return fails(EEXIST);
    memset(&parameters, 0, sizeof parameters);
    char *own = number(words[1]) ? page(words[1]) : NULL;
    if (own) {
        parameters.flags = IORING_SETUP_NO_MMAP;
        /* The last field of both, which some headers do not name: where the queue is to lie. */
        uint64_t at[2] = {(uintptr_t)own, (uintptr_t)own + PAGE};
        memcpy((char *)(&parameters.cq_off + 1) - 8, &at[0], 8);
        memcpy((char *)(&parameters.sq_off + 1) - 8, &at[1], 8);
    }
    if (keep((int)syscall(SYS_io_uring_setup, 8, &parameters), RING_FD) < 0) return -1;
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
    if (!queues || fcntl(RING_FD, F_GETFD) < 0) return fails(EBADF);
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
    return done(syscall(SYS_io_uring_enter, RING_FD, 1, 0, 0, NULL, 0));
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
        for (int i = 0; i < 200 && result == -ETIME; i++) {
            syscall(SYS_io_uring_enter, RING_FD, 0, 0, IORING_ENTER_GETEVENTS, NULL, 0);
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
    syscall(SYS_io_uring_register, RING_FD, IORING_UNREGISTER_BUFFERS, NULL, 0);
    struct iovec buffer = {page(words[1]), pages(words[2])};
    return done(syscall(SYS_io_uring_register, RING_FD, IORING_REGISTER_BUFFERS, &buffer, 1));
}

static int do_ring_no_buffer(char **words) {
    (void)words;
    return done(syscall(SYS_io_uring_register, RING_FD, IORING_UNREGISTER_BUFFERS, NULL, 0));
}

static int ring_read(uint8_t operation, int fd, char *at, size_t length) {
    return submit((struct io_uring_sqe){.opcode = operation, .fd = fd, .addr = (uintptr_t)at, .len = (uint32_t)length});
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

#define IO_VERBS \
    {"pread", do_pread}, {"preadv", do_preadv}, {"read_direct", do_read_direct}, {"aio", do_aio}, \
    {"vm_write", do_vm_write}, {"mem_write", do_mem_write}, {"vmsplice", do_vmsplice}, {"splice", do_splice}, \
    {"unsplice", do_unsplice}, {"drain", do_drain}, {"ring", do_ring}, {"ring_close", do_ring_close}, \
    {"ring_buffer", do_ring_buffer}, {"ring_no_buffer", do_ring_no_buffer}, {"ring_read", do_ring_read}, \
    {"ring_read_fixed", do_ring_read_fixed}, {"ring_wait", do_ring_wait}, {"ring_arrive", do_ring_arrive},

/* The kernel stores: reads of all kinds, pipes, aio, other processes' memory. Rings are in adversary_rings.h. */
#pragma once
#include "adversary_common.h"
#include <linux/aio_abi.h>
#include <sys/eventfd.h>

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

/* Linux aio: PAGE OBJECT OBJECT-PAGE. It has ended when this returns, whatever interrupts the wait and whatever became of
 * the memory in which the kernel reports it: the descriptor tells. */
static int do_aio(char **words) {
    static aio_context_t context;
    if (!context && syscall(SYS_io_setup, 4, &context)) return -1;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", OBJECT_FD + (int)(number(words[2]) % OBJECTS));
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC), has_ended = eventfd(0, EFD_CLOEXEC);
    if (fd < 0 || has_ended < 0) {
        int error = errno;
        close(fd);
        close(has_ended);
        return fails(error);
    }
    struct iocb block = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)fd, .aio_nbytes = PAGE,
                         .aio_buf = (uintptr_t)page(words[1]), .aio_offset = (int64_t)pages(words[3]),
                         .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)has_ended};
    struct iocb *blocks[1] = {&block};
    struct io_event event = {0};
    struct timespec none = {0, 0};
    uint64_t ended;
    long result = syscall(SYS_io_submit, context, 1ul, blocks);
    if (result == 1) {
        while (read(has_ended, &ended, sizeof ended) < 0 && errno == EINTR);
        result = syscall(SYS_io_getevents, context, 0ul, 1ul, &event, &none);
    }
    int error = errno;
    close(fd);
    close(has_ended);
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

#define IO_VERBS \
    {"pread", do_pread}, {"preadv", do_preadv}, {"read_direct", do_read_direct}, {"aio", do_aio}, \
    {"vm_write", do_vm_write}, {"mem_write", do_mem_write}, {"vmsplice", do_vmsplice}, {"splice", do_splice}, \
    {"unsplice", do_unsplice}, {"drain", do_drain},

/* A userfaultfd of the process's own. Faults are answered by SIGBUS, so that nobody ever waits. */
#pragma once
#include "adversary_common.h"
#include <linux/userfaultfd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* Younger than some headers. */
struct move_request {
    uint64_t to, from, length, mode;
    int64_t moved;
};
#define MOVE_PAGES_REQUEST _IOWR(UFFDIO, 0x05, struct move_request)
#define ALLOW_HOLES 2
struct poison_request {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
#define POISON_REQUEST _IOWR(UFFDIO, 0x08, struct poison_request)

static int do_uffd(char **words) {
    (void)words;
    if (fcntl(UFFD_FD, F_GETFD) >= 0) return fails(EEXIST);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (fd < 0) return -1;
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_SIGBUS};
    if (ioctl(fd, UFFDIO_API, &api)) {
        int error = errno;
        close(fd);
        return fails(error);
    }
    return keep(fd, UFFD_FD) < 0 ? -1 : 0;
}

static int do_uffd_close(char **words) {
    (void)words;
    return close(UFFD_FD);
}

static struct uffdio_range range_of(char **words) {
    return (struct uffdio_range){(uintptr_t)page(words[1]), pages(words[2])};
}

/* PAGE PAGES MODE: 1 missing, 2 write-protect, 3 both */
static int do_uffd_register(char **words) {
    struct uffdio_register request = {.range = range_of(words), .mode = number(words[3])};
    return ioctl(UFFD_FD, UFFDIO_REGISTER, &request);
}

static int do_uffd_unregister(char **words) {
    struct uffdio_range range = range_of(words);
    return ioctl(UFFD_FD, UFFDIO_UNREGISTER, &range);
}

/* PAGE SEED */
static int do_uffd_copy(char **words) {
    static char bytes[PAGE] __attribute__((aligned(4096)));
    fill(bytes, PAGE, number(words[2]));
    struct uffdio_copy request = {.dst = (uintptr_t)page(words[1]), .src = (uintptr_t)bytes, .len = PAGE};
    return ioctl(UFFD_FD, UFFDIO_COPY, &request);
}

static int do_uffd_zero(char **words) {
    struct uffdio_zeropage request = {.range = range_of(words)};
    return ioctl(UFFD_FD, UFFDIO_ZEROPAGE, &request);
}

/* PAGE PAGES ON. The kernel lets any userfaultfd protect what another has registered, and nothing would tell
 * a tracker. So it is registered once more, which the kernel refuses if it is another's. */
static int do_uffd_protect(char **words) {
    struct uffdio_register own = {.range = range_of(words), .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(UFFD_FD, UFFDIO_REGISTER, &own)) return -1;
    struct uffdio_writeprotect request = {.range = range_of(words), .mode = number(words[3]) ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    return ioctl(UFFD_FD, UFFDIO_WRITEPROTECT, &request);
}

/* PAGE PAGES TO: the pages go there, and leave holes. */
static int do_uffd_move(char **words) {
    struct move_request request = {.to = (uintptr_t)page(words[3]), .from = (uintptr_t)page(words[1]),
                                   .length = pages(words[2]), .mode = ALLOW_HOLES};
    return ioctl(UFFD_FD, MOVE_PAGES_REQUEST, &request);
}

static int do_uffd_poison(char **words) {
    struct poison_request request = {.range = range_of(words)};
    return ioctl(UFFD_FD, POISON_REQUEST, &request);
}

#define UFFD_VERBS \
    {"uffd", do_uffd}, {"uffd_close", do_uffd_close}, {"uffd_register", do_uffd_register}, \
    {"uffd_unregister", do_uffd_unregister}, {"uffd_copy", do_uffd_copy}, {"uffd_zero", do_uffd_zero}, \
    {"uffd_protect", do_uffd_protect}, {"uffd_move", do_uffd_move}, {"uffd_poison", do_uffd_poison},

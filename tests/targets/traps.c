/* Argument: a directory for files. Each command changes memory in one way that a tracker may miss, and
 * is answered with `done`, or with `cannot` and why. */
#include "common.h"
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

#define PAGES 64ul
#define LENGTH (PAGES * PAGE)

static unsigned char *anonymous, *memfd_memory, *tmpfs_memory, *private_file, *shared_file, *owned, *pinned, *reserve;
static int memfd, tmpfs, private_fd, shared_fd, random_fd;
static uint64_t state = 42;
static char **arguments;

static void fill(void *at, size_t length) {
    unsigned char *byte = at;
    for (size_t i = 0; i < length; i += 8) {
        uint64_t word = next_random(&state);
        memcpy(byte + i, &word, 8);
    }
}

static int file_in(const char *directory, const char *name) {
    char path[600];
    snprintf(path, sizeof path, "%s/traps-%d-%s", directory, getpid(), name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) die(path);
    unlink(path);
    return fd;
}

static void fill_file(int fd) {
    unsigned char page[PAGE];
    for (size_t at = 0; at < LENGTH; at += PAGE) {
        fill(page, PAGE);
        if (pwrite(fd, page, PAGE, (off_t)at) != (ssize_t)PAGE) die("pwrite");
    }
}

static void *map_file(int fd, int flags) {
    fill_file(fd);
    void *at = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) die("mmap of a file");
    return at;
}

/* --- io_uring, by its system calls --- */

static int ring = -1;
static struct io_uring_params parameters;
static unsigned char *submission, *completion;
static struct io_uring_sqe *entries;

static const char *make_ring(void) {
    ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
    if (ring < 0) return strerror(errno);
    size_t submission_length = parameters.sq_off.array + parameters.sq_entries * 4;
    size_t completion_length = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
    int flags = MAP_SHARED | MAP_POPULATE;
    submission = mmap(NULL, submission_length, PROT_READ | PROT_WRITE, flags, ring, IORING_OFF_SQ_RING);
    completion = mmap(NULL, completion_length, PROT_READ | PROT_WRITE, flags, ring, IORING_OFF_CQ_RING);
    entries = mmap(NULL, parameters.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, flags, ring, IORING_OFF_SQES);
    if (submission == MAP_FAILED || completion == MAP_FAILED || entries == MAP_FAILED) die("mmap of a ring");
    struct iovec buffer = {pinned, 4 * PAGE};
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1)) return strerror(errno);
    return NULL;
}

static const char *read_into_pinned(void) {
    if (ring < 0) return "no ring";
    unsigned *tail = (unsigned *)(submission + parameters.sq_off.tail);
    unsigned mask = *(unsigned *)(submission + parameters.sq_off.ring_mask);
    unsigned *array = (unsigned *)(submission + parameters.sq_off.array);
    unsigned index = *tail & mask;
    entries[index] = (struct io_uring_sqe){
        .opcode = IORING_OP_READ_FIXED, .fd = random_fd, .addr = (uint64_t)(uintptr_t)(pinned + PAGE), .len = 2 * PAGE};
    array[index] = index;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1) return strerror(errno);
    unsigned *head = (unsigned *)(completion + parameters.cq_off.head);
    unsigned completion_mask = *(unsigned *)(completion + parameters.cq_off.ring_mask);
    struct io_uring_cqe *cqes = (struct io_uring_cqe *)(completion + parameters.cq_off.cqes);
    int result = cqes[*head & completion_mask].res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result == 2 * (int)PAGE ? NULL : "a short read";
}

/* --- a userfaultfd of the target's own --- */

static const char *own_userfaultfd(void) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (fd < 0) return strerror(errno);
    struct uffdio_api api = {.api = UFFD_API};
    if (ioctl(fd, UFFDIO_API, &api)) return strerror(errno);
    struct uffdio_register request = {.range = {(uintptr_t)owned, LENGTH}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    memset(owned, 1, LENGTH); /* nothing is missing: no fault will ever wait */
    return ioctl(fd, UFFDIO_REGISTER, &request) ? strerror(errno) : NULL;
}

/* A page that cannot be read any more, as after a failure of the machine, between others that can. */
static const char *poison(void) {
    unsigned char *memory = map_anonymous(4 * PAGE);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (fd < 0) return strerror(errno);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register request = {.range = {(uintptr_t)memory, 4 * PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &request)) return strerror(errno);
    struct { uint64_t start, length, mode; int64_t updated; } page = {(uintptr_t)memory + 2 * PAGE, PAGE, 0, 0};
    if (ioctl(fd, _IOWR(0xAA, 0x08, page), &page)) return strerror(errno);
    close(fd);
    fill(memory, 2 * PAGE);
    fill(memory + 3 * PAGE, PAGE);
    return NULL;
}

static void in_child(void (*act)(void)) {
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        act();
        _exit(0);
    }
    if (waitpid(child, NULL, 0) != child) die("waitpid");
}

static void store_shared(void) {
    state += (uint64_t)getpid();
    fill(memfd_memory + 5 * PAGE, 2 * PAGE);
    fill(shared_file + 9 * PAGE, PAGE);
}

static const char *perform(const char *command) {
    if (!strcmp(command, "nothing")) {
    } else if (!strcmp(command, "write")) {
        fill(anonymous + 3 * PAGE, 2 * PAGE);
        fill(owned + 7 * PAGE, PAGE);
    } else if (!strcmp(command, "map_again")) {
        munmap(anonymous, LENGTH);
        void *at = mmap(anonymous, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (at != anonymous) die("mmap at the same address");
        fill(anonymous + 11 * PAGE, PAGE);
    } else if (!strcmp(command, "move")) {
        fill(anonymous + 20 * PAGE, PAGE);
        void *at = mremap(anonymous, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, reserve);
        if (at == MAP_FAILED) die("mremap");
        reserve = anonymous;
        anonymous = at;
        fill(anonymous + 21 * PAGE, PAGE);
    } else if (!strcmp(command, "discard")) {
        fill(anonymous, LENGTH);
    } else if (!strcmp(command, "discard_now")) {
        if (madvise(anonymous + 2 * PAGE, 6 * PAGE, MADV_DONTNEED)) die("madvise");
        fill(anonymous + 30 * PAGE, PAGE);
    } else if (!strcmp(command, "free")) {
        if (madvise(anonymous + 2 * PAGE, 6 * PAGE, MADV_FREE)) die("madvise");
        madvise(anonymous + 2 * PAGE, 6 * PAGE, 21 /* MADV_PAGEOUT */);
    } else if (!strcmp(command, "guard")) {
        if (madvise(anonymous + 40 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL)) return strerror(errno);
    } else if (!strcmp(command, "private_copies")) {
        fill(private_file + 40 * PAGE, 3 * PAGE);
    } else if (!strcmp(command, "poison")) {
        return poison();
    } else if (!strcmp(command, "punch")) {
        if (madvise(memfd_memory + 8 * PAGE, 4 * PAGE, MADV_REMOVE)) die("MADV_REMOVE");
        if (fallocate(tmpfs, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 16 * PAGE, 5 * PAGE)) die("punch");
    } else if (!strcmp(command, "pwrite")) {
        unsigned char page[PAGE];
        fill(page, PAGE);
        if (pwrite(memfd, page, PAGE, 12 * PAGE) != (ssize_t)PAGE) die("pwrite to a memfd");
        if (pwrite(tmpfs, page, 100, 13 * PAGE + 50) != 100) die("pwrite to tmpfs");
        if (pwrite(shared_fd, page, PAGE, 14 * PAGE) != (ssize_t)PAGE) die("pwrite to a file");
        if (pwrite(private_fd, page, PAGE, 15 * PAGE) != (ssize_t)PAGE) die("pwrite to a file");
    } else if (!strcmp(command, "child_stores")) {
        in_child(store_shared);
        next_random(&state);
    } else if (!strcmp(command, "truncate")) {
        int all[] = {memfd, tmpfs, shared_fd, private_fd};
        for (int i = 0; i < 4; i++)
            if (ftruncate(all[i], (50 - i) * (off_t)PAGE - 100)) die("ftruncate");
    } else if (!strcmp(command, "extend")) {
        int all[] = {memfd, tmpfs, shared_fd, private_fd};
        for (int i = 0; i < 4; i++)
            if (ftruncate(all[i], LENGTH)) die("ftruncate");
        fill(memfd_memory + 60 * PAGE, PAGE);
    } else if (!strcmp(command, "copy")) {
        fill(private_file + 17 * PAGE, 3 * PAGE);
    } else if (!strcmp(command, "drop_copy")) {
        if (madvise(private_file + 17 * PAGE, 2 * PAGE, MADV_DONTNEED)) die("madvise");
    } else if (!strcmp(command, "ring")) {
        return make_ring();
    } else if (!strcmp(command, "ring_read")) {
        return read_into_pinned();
    } else if (!strcmp(command, "userfaultfd")) {
        return own_userfaultfd();
    } else if (!strcmp(command, "fork")) {
        static char answer[40];
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            fill(anonymous + 33 * PAGE, 4 * PAGE);
            for (;;) pause();
        }
        snprintf(answer, sizeof answer, "child %d", child);
        return answer;
    } else if (!strcmp(command, "exec")) {
        execv("/proc/self/exe", arguments);
        die("execv");
    } else {
        return "an unknown command";
    }
    return NULL;
}

int main(int count, char **words) {
    begin();
    if (count != 2) return 2;
    arguments = words;
    state += (uint64_t)getpid();
    anonymous = map_anonymous(LENGTH);
    fill(anonymous, LENGTH);
    owned = map_anonymous(LENGTH);
    pinned = map_anonymous(LENGTH);
    fill(pinned, LENGTH);
    reserve = map_anonymous(LENGTH);
    memfd = memfd_create("traps", MFD_CLOEXEC);
    tmpfs = file_in("/dev/shm", "tmpfs");
    shared_fd = file_in(words[1], "shared");
    private_fd = file_in(words[1], "private");
    random_fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    memfd_memory = map_file(memfd, MAP_SHARED);
    tmpfs_memory = map_file(tmpfs, MAP_SHARED);
    shared_file = map_file(shared_fd, MAP_SHARED);
    private_file = map_file(private_fd, MAP_PRIVATE);
    ready();
    for (;;) {
        const char *problem = perform(next_line());
        if (!problem)
            puts("done");
        else if (!strncmp(problem, "child ", 6))
            puts(problem);
        else
            printf("cannot: %s\n", problem);
    }
}

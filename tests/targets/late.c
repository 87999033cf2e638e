// Memory that is used in all ways while it is still coming in: read in random order by threads, moved, given up, mapped anew,
// passed to system calls, guarded, locked, wiped, read by others, and inherited by children and theirs. Every page has content of
// its own.
//
// Words: a directory, and what to do once there is a file "go" in it: "use" (exit 0 if all was right), "touch" (each page, by
// the main thread), "stay" (the same; then it waits for a file "again", and touches all again), or "sleep" (with a child that
// sleeps, too). It writes "ready" when it is set up, and "begun".
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum { PAGE = 4096, BLOCK = 1 << 20, PAGES = BLOCK / PAGE, BLOCKS = 256, THREADS = 4, KEPT = 16 };

static char *block_at[BLOCKS];
// Where pages of a block are guarded, to the end.
static char *guard_at[BLOCKS];

static uint64_t mixed(uint64_t value)
{
    value ^= value >> 31;
    value *= 0x7fb5d329728ea185;
    value ^= value >> 27;
    value *= 0x81dadef4bc2dd44d;
    return value ^ value >> 33;
}

static void fill(char *page, uint64_t number)
{
    uint64_t *words = (uint64_t *)page;
    for (int i = 0; i < PAGE / 8; i++)
        words[i] = mixed(number * 512 + i + 1);
}

static void wrong(const char *what, int block, int page)
{
    printf("wrong: %s, block %d page %d\n", what, block, page);
    fflush(stdout);
    _exit(1);
}

static void check(const char *what, const char *page, int block, int number)
{
    char expected[PAGE];
    fill(expected, (uint64_t)block * PAGES + number);
    if (memcmp(page, expected, PAGE))
        wrong(what, block, number);
}

static void check_zero(const char *what, const char *page, int block, int number)
{
    static const char zeros[PAGE];
    if (memcmp(page, zeros, PAGE))
        wrong(what, block, number);
}

// The pages from `first` on, in an order that jumps about.
static void check_all(const char *what, int block, int first)
{
    for (int i = 0; i < PAGES; i++) {
        int page = (i * 37 + block) % PAGES;
        if (page >= first)
            check(what, block_at[block] + page * PAGE, block, page);
    }
}

static void move(int block)
{
    char *to = mmap(NULL, BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *moved = mremap(block_at[block], BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    if (moved == MAP_FAILED)
        wrong("mremap", block, 0);
    block_at[block] = moved;
}

static void through_pipe(int block)
{
    int ends[2];
    char page[PAGE];
    if (pipe(ends))
        wrong("pipe", block, 0);
    for (int i = 0; i < PAGES; i += 2) {
        // Out of memory that is missing, and into it.
        char *there = block_at[block] + i * PAGE, *next = there + PAGE;
        if (write(ends[1], there, PAGE) != PAGE || read(ends[0], page, PAGE) != PAGE)
            wrong("write from", block, i);
        check("write from", page, block, i);
        if (write(ends[1], page, 100) != 100 || read(ends[0], next, 100) != 100 || memcmp(next, page, 100))
            wrong("read into", block, i + 1);
        fill(page, (uint64_t)block * PAGES + i + 1);
        if (memcmp(next + 100, page + 100, PAGE - 100))
            wrong("beside what was read", block, i + 1);
    }
    close(ends[0]);
    close(ends[1]);
}

// Guarded pages let nobody in; what was in them is gone.
static int is_guarded(const char *page)
{
    int ends[2];
    if (pipe(ends))
        return 0;
    int refused = write(ends[1], page, 1) == -1 && errno == EFAULT;
    close(ends[0]);
    close(ends[1]);
    return refused;
}

static void guard(int block)
{
    char *at = block_at[block];
    if (madvise(at + 8 * PAGE, 24 * PAGE, MADV_GUARD_INSTALL)) {
        // The kernel has none.
        check_all("without guards", block, 0);
        return;
    }
    check_all("behind guards", block, 32);
    for (int i = 8; i < 32; i++)
        if (!is_guarded(at + i * PAGE))
            wrong("guard", block, i);
    madvise(at + 20 * PAGE, 12 * PAGE, MADV_GUARD_REMOVE);
    for (int i = 20; i < 32; i++)
        check_zero("after a guard", at + i * PAGE, block, i);
    for (int i = 0; i < 8; i++)
        check("before guards", at + i * PAGE, block, i);
    guard_at[block] = at + 8 * PAGE;
}

// A child sees its own of the first half: zeros, or nothing.
static void fork_with(int advice, int block)
{
    char *at = block_at[block];
    if (madvise(at, BLOCK / 2, advice))
        wrong("madvise", block, advice);
    pid_t pid = fork();
    if (!pid) {
        if (advice == MADV_DONTFORK) {
            if (!is_guarded(at))
                wrong("mapped in a child", block, 0);
            if (mmap(at, BLOCK / 2, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
                wrong("mmap in a child", block, 0);
        }
        for (int i = 0; i < PAGES / 2; i++)
            check_zero("not inherited", at + i * PAGE, block, i);
        check_all("beside what is not inherited", block, PAGES / 2);
        _exit(0);
    }
    check_all("kept by the parent", block, 0);
    int status;
    if (waitpid(pid, &status, 0) != pid || status)
        wrong("status of a child that inherits less", block, status);
}

static void leave_behind(int block)
{
    char *at = block_at[block];
    char *moved = mremap(at, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    if (moved == MAP_FAILED)
        wrong("mremap", block, 0);
    block_at[block] = moved;
    check_zero("left behind", at + PAGE, block, 1);
    check_all("moved away", block, 0);
    check_zero("left behind", at, block, 0);
    // Shorter, and longer than it was.
    if (mremap(moved, BLOCK, BLOCK / 2, 0) != moved)
        wrong("shrink", block, 0);
    char *longer = mremap(moved, BLOCK / 2, 2 * BLOCK, MREMAP_MAYMOVE);
    if (longer == MAP_FAILED)
        wrong("grow", block, 0);
    for (int i = 0; i < PAGES / 2; i++)
        check("grown", longer + i * PAGE, block, i);
    check_zero("grown", longer + BLOCK, block, PAGES);
    check_zero("grown", longer + BLOCK / 2, block, PAGES / 2);
}

// Another process reads it.
static void read_by_child(int block)
{
    pid_t parent = getpid(), pid = fork();
    if (!pid) {
        char page[PAGE];
        for (int i = 0; i < PAGES; i++) {
            struct iovec to = {page, PAGE}, from = {block_at[block] + i * PAGE, PAGE};
            if (process_vm_readv(parent, &to, 1, &from, 1, 0) != PAGE)
                wrong("process_vm_readv", block, i);
            check("read by another", page, block, i);
        }
        _exit(0);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid || status)
        wrong("status of a reader", block, status);
    check_all("read by another before", block, 0);
}

static void use(int block)
{
    char *at = block_at[block];
    switch (mixed(block) % 13) {
    case 0:
        move(block);
        check_all("moved", block, 0);
        break;
    case 1:
        madvise(at, BLOCK / 2, MADV_DONTNEED);
        for (int i = 0; i < PAGES / 2; i++)
            check_zero("given up", at + i * PAGE, block, i);
        check_all("beside what was given up", block, PAGES / 2);
        break;
    case 2:
        munmap(at, BLOCK / 2);
        check_all("beside what was unmapped", block, PAGES / 2);
        if (mmap(at, BLOCK / 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at)
            for (int i = 0; i < PAGES / 2; i++)
                check_zero("mapped anew", at + i * PAGE, block, i);
        break;
    case 3:
        through_pipe(block);
        break;
    case 4:
        // Two mappings from now on, and none of them as it was.
        mprotect(at, BLOCK / 4, PROT_READ);
        check_all("protected", block, 0);
        break;
    case 5:
        guard(block);
        break;
    case 6:
        fork_with(MADV_WIPEONFORK, block);
        break;
    case 7:
        fork_with(MADV_DONTFORK, block);
        break;
    case 8:
        leave_behind(block);
        break;
    case 9:
        read_by_child(block);
        break;
    case 10:
        mlock(at, BLOCK / 2);
        check_all("locked", block, 0);
        break;
    default:
        check_all("read", block, 0);
    }
}

static void *thread(void *argument)
{
    for (int i = (int)(intptr_t)argument; i < BLOCKS - KEPT; i += THREADS) {
        // Every block once, far from the one before.
        int block = (i * 91) % (BLOCKS - KEPT);
        use(block);
    }
    return NULL;
}

static void child(int number)
{
    int block = BLOCKS - KEPT + number % KEPT;
    if (number % 3 == 0)
        move(block);
    if (number % 4 == 1) {
        pid_t grandchild = fork();
        if (!grandchild) {
            check_all("grandchild", block, 0);
            _exit(0);
        }
        int status;
        if (waitpid(grandchild, &status, 0) != grandchild || status)
            wrong("status of a grandchild", block, status);
    }
    check_all("child", block, 0);
    for (int i = 0; i < BLOCKS; i += 16)
        if (i >= BLOCKS - KEPT)
            check_all("child", i, PAGES / 2);
    _exit(0);
}

static void use_all(void)
{
    pthread_t threads[THREADS];
    for (intptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, thread, (void *)i);
    for (int i = 0; i < 24; i++) {
        pid_t pid = fork();
        if (!pid)
            child(i);
        int status;
        if (i % 2 && (waitpid(pid, &status, 0) != pid || status))
            wrong("status of a child", i, status);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    int status;
    while (waitpid(-1, &status, 0) > 0)
        if (status)
            wrong("status of a child", -1, status);
    for (int i = BLOCKS - KEPT; i < BLOCKS; i++)
        check_all("kept", i, 0);
    // By now all may have come.
    usleep(300000);
    for (int i = 0; i < BLOCKS; i++)
        for (int page = 0; guard_at[i] && page < 12; page++)
            if (!is_guarded(guard_at[i] + page * PAGE))
                wrong("guard at the end", i, page);
}

static void touch_all(void)
{
    for (int i = BLOCKS - 1; i >= 0; i--)
        check_all("touched", i, 0);
}

// Waits for ever: whoever begins or ends to serve memory must not be seen.
static void *wait_for_ever(void *unused)
{
    struct epoll_event event;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int got = epoll_wait(epoll, &event, 1, -1);
    wrong("epoll_wait", got, errno);
    return unused;
}

int main(int count, char **words)
{
    if (count != 3 || chdir(words[1]))
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    char *memory = mmap(NULL, (size_t)BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 2;
    for (int i = 0; i < BLOCKS; i++) {
        block_at[i] = memory + (size_t)i * BLOCK;
        for (int page = 0; page < PAGES; page++)
            fill(block_at[i] + page * PAGE, (uint64_t)i * PAGES + page);
    }
    pthread_t waiter;
    pthread_create(&waiter, NULL, wait_for_ever, NULL);
    puts("ready");
    while (access("go", F_OK))
        usleep(1000);
    puts("begun");
    if (!strcmp(words[2], "use")) {
        use_all();
    } else if (!strcmp(words[2], "touch")) {
        touch_all();
    } else if (!strcmp(words[2], "stay")) {
        touch_all();
        puts("right so far");
        while (access("again", F_OK))
            usleep(1000);
        touch_all();
    } else {
        fork();
        for (;;)
            sleep(1000);
    }
    puts("right");
    return 0;
}

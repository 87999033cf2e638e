// Memory that is used in all ways while it is still coming in: read in random order by threads, moved, given up, mapped anew,
// passed to system calls, and inherited by children and theirs. Every page has content of its own.
//
// Words: a directory, and what to do once there is a file "go" in it: "use" (exit 0 if all was right), "touch" (each page, by
// the main thread), or "sleep" (with a child that sleeps, too). It writes "ready" when it is set up, and "begun".
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCK = 1 << 20, PAGES = BLOCK / PAGE, BLOCKS = 256, THREADS = 4, KEPT = 16 };

static char *block_at[BLOCKS];

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

static void use(int block)
{
    char *at = block_at[block];
    switch (mixed(block) % 7) {
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
    puts("ready");
    while (access("go", F_OK))
        usleep(1000);
    puts("begun");
    if (!strcmp(words[2], "use")) {
        use_all();
    } else if (!strcmp(words[2], "touch")) {
        for (int i = BLOCKS - 1; i >= 0; i--)
            check_all("touched", i, 0);
    } else {
        fork();
        for (;;)
            sleep(1000);
    }
    puts("right");
    return 0;
}

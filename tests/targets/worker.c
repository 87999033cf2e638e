/* Arguments: how many threads of each kind, how many kinds (1 to 4, 2 without pipes), and perhaps a
 * directory, for mappings that `reshape` changes. Works and checks its own work without end: memory that
 * must hold what was written last, registers that must hold what was loaded, messages through a pipe
 * that must arrive once and in order, calls that nobody may interrupt. Anything wrong ends it with 98.
 *
 * Answers `progress`: waits until every thread has gone on, then prints the rounds of each.
 * `where` prints where the rounds are counted; `reshape`, `share`, `born` and `died` change the layout,
 * a file that is mapped shared, and the threads; `seal` seals a mapping of those that are reshaped; `quit` ends it. */
#include "common.h"
#include <linux/futex.h>
#include <time.h>

#define MOST 16
#define PAGES 256

static atomic_ulong rounds[4 * MOST];
static int kinds = 4, each = 2;
static struct { int ends[2]; } pipes[MOST];

static void bad(const char *what, unsigned long round) {
    fprintf(stderr, "worker: wrong: %s in round %lu: %s\n", what, round, strerror(errno));
    _exit(98);
}

/* Every page holds its number and the round, at a place that depends on both. */
static void *memory_worker(void *argument) {
    unsigned number = (unsigned)(uintptr_t)argument;
    uint64_t *memory = map_anonymous(PAGES * PAGE);
    uint64_t sum = 0, kept = 0;
    for (unsigned long round = 1;; round++) {
        uint64_t state = number;
        for (unsigned page = 0; page < PAGES; page++) {
            uint64_t *word = &memory[page * 512 + next_random(&state) % 512];
            uint64_t expected = round == 1 ? 0 : (round - 1) * 1000003 + page;
            if (*word != expected) bad("memory", round);
            if (round > 1) kept -= *word;
            *word = round * 1000003 + page;
            kept += *word;
        }
        sum = 0;
        for (unsigned at = 0; at < PAGES * 512; at++) sum += memory[at];
        if (sum != kept) bad("the sum of memory", round);
        atomic_fetch_add(&rounds[number], 1);
        struct timespec pause = {0, 500000};
        if (clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL)) bad("a sleep was interrupted", round);
    }
    return NULL;
}

/* All the registers a thread has, loaded, kept through a loop, and compared. */
static void *register_worker(void *argument) {
    unsigned number = (unsigned)(uintptr_t)argument;
    for (unsigned long round = 1;; round++) {
        uint64_t seed = round * 0x1234567 + number, wrong = 1;
        __asm__ volatile(
            "movq %[seed], %%rax\n"
            "leaq 1(%%rax), %%rbx\n leaq 2(%%rax), %%rcx\n leaq 3(%%rax), %%rdx\n leaq 4(%%rax), %%rsi\n"
            "leaq 5(%%rax), %%rdi\n leaq 6(%%rax), %%r8\n leaq 7(%%rax), %%r9\n leaq 8(%%rax), %%r10\n"
            "leaq 9(%%rax), %%r11\n leaq 10(%%rax), %%r12\n leaq 11(%%rax), %%r13\n"
            "movq %%rax, %%xmm0\n movq %%rbx, %%xmm1\n movq %%rcx, %%xmm7\n movq %%rdx, %%xmm8\n movq %%rsi, %%xmm15\n"
            "movl $200000, %%r14d\n"
            "1: decl %%r14d\n jnz 1b\n"
            "xorl %%r14d, %%r14d\n"
            "cmpq %[seed], %%rax\n jne 2f\n"
            "incq %%rax\n cmpq %%rax, %%rbx\n jne 2f\n incq %%rax\n cmpq %%rax, %%rcx\n jne 2f\n"
            "incq %%rax\n cmpq %%rax, %%rdx\n jne 2f\n incq %%rax\n cmpq %%rax, %%rsi\n jne 2f\n"
            "incq %%rax\n cmpq %%rax, %%rdi\n jne 2f\n incq %%rax\n cmpq %%rax, %%r8\n jne 2f\n"
            "incq %%rax\n cmpq %%rax, %%r9\n jne 2f\n incq %%rax\n cmpq %%rax, %%r10\n jne 2f\n"
            "incq %%rax\n cmpq %%rax, %%r11\n jne 2f\n incq %%rax\n cmpq %%rax, %%r12\n jne 2f\n"
            "incq %%rax\n cmpq %%rax, %%r13\n jne 2f\n"
            "movq %%xmm0, %%rax\n cmpq %[seed], %%rax\n jne 2f\n"
            "movq %%xmm1, %%rax\n cmpq %%rax, %%rbx\n jne 2f\n movq %%xmm7, %%rax\n cmpq %%rax, %%rcx\n jne 2f\n"
            "movq %%xmm8, %%rax\n cmpq %%rax, %%rdx\n jne 2f\n movq %%xmm15, %%rax\n cmpq %%rax, %%rsi\n jne 2f\n"
            "jmp 3f\n"
            "2: movl $1, %%r14d\n"
            "3: movq %%r14, %[wrong]\n"
            : [wrong] "=m"(wrong)
            : [seed] "m"(seed)
            : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "xmm0",
              "xmm1", "xmm7", "xmm8", "xmm15", "cc", "memory");
        if (wrong) bad("registers", round);
        atomic_fetch_add(&rounds[number], 1);
        struct timespec pause = {0, 300000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void *sender(void *argument) {
    unsigned number = (unsigned)(uintptr_t)argument;
    for (unsigned long round = 1;; round++) {
        if (write(pipes[number % MOST].ends[1], &round, sizeof round) != sizeof round) bad("write", round);
        atomic_fetch_add(&rounds[number], 1);
        struct timespec pause = {0, 400000};
        if (nanosleep(&pause, NULL)) bad("a sleep was interrupted", round);
    }
    return NULL;
}

static void *receiver(void *argument) {
    unsigned number = (unsigned)(uintptr_t)argument;
    double sum = 0, expected = 0;
    for (unsigned long round = 1;; round++) {
        unsigned long found = 0;
        if (read(pipes[number % MOST].ends[0], &found, sizeof found) != sizeof found) bad("read", round);
        if (found != round) bad("a message was lost or came twice", round);
        sum += (double)round * 0.5;
        expected = (double)round * ((double)round + 1) / 4;
        if (sum != expected) bad("floating point", round);
        static uint32_t never;
        struct timespec pause = {0, 100000};
        long status = syscall(SYS_futex, &never, FUTEX_WAIT_PRIVATE, 0, &pause, NULL, 0);
        if (status != -1 || errno != ETIMEDOUT) bad("a wait was interrupted", round);
        atomic_fetch_add(&rounds[number], 1);
    }
    return NULL;
}

static unsigned char *gone, *grown, *protected, *of_file, *shared;
static pthread_t extra;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static unsigned char *mapped_file(const char *directory, const char *name, int flags) {
    char path[600], page[PAGE];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) die(path);
    for (int i = 0; i < 8; i++) {
        memset(page, 'a' + i, PAGE);
        if (write(fd, page, PAGE) != (ssize_t)PAGE) die("write a file");
    }
    void *at = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) die("mmap a file");
    close(fd);
    return at;
}

static void map_extras(const char *directory) {
    gone = map_anonymous(8 * PAGE);
    grown = map_anonymous(32 * PAGE);
    munmap(grown + 8 * PAGE, 24 * PAGE);
    protected = map_anonymous(8 * PAGE);
    of_file = mapped_file(directory, "private", MAP_PRIVATE);
    shared = mapped_file(directory, "shared", MAP_SHARED);
    memset(gone, 11, 8 * PAGE);
    memset(grown, 12, 8 * PAGE);
    memset(protected, 13, 8 * PAGE);
    memset(of_file + 3 * PAGE, 14, PAGE);
}

static void reshape(void) {
    munmap(gone, 8 * PAGE);
    grown = mremap(grown, 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE);
    if (grown == MAP_FAILED) die("mremap");
    memset(grown + 4 * PAGE, 22, 12 * PAGE);
    memset(protected, 23, 8 * PAGE);
    if (mprotect(protected + 2 * PAGE, 4 * PAGE, PROT_NONE)) die("mprotect");
    munmap(of_file, 8 * PAGE);
    memset(map_anonymous(20 * PAGE), 24, 20 * PAGE);
    memset(sbrk(30 * PAGE), 25, 30 * PAGE);
}

static void *idle(void *argument) {
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    return argument;
}

static unsigned number_of(int kind, int index) { return (unsigned)(kind * MOST + index); }

int main(int count, char **words) {
    begin();
    if (count > 1) each = atoi(words[1]);
    if (count > 2) kinds = atoi(words[2]);
    if (count > 3) map_extras(words[3]);
    void *(*bodies[])(void *) = {memory_worker, register_worker, sender, receiver};
    for (int index = 0; index < each; index++) {
        if (pipe(pipes[index].ends)) die("pipe");
        for (int kind = 0; kind < kinds; kind++) {
            pthread_t id;
            if (pthread_create(&id, NULL, bodies[kind], (void *)(uintptr_t)number_of(kind, index))) die("thread");
        }
    }
    ready();
    for (;;) {
        char *line = next_line();
        if (!strcmp(line, "quit")) return 0;
        if (!strcmp(line, "where")) {
            printf("%p\n", (void *)rounds);
            continue;
        }
        if (!strcmp(line, "reshape")) reshape();
        if (!strcmp(line, "share")) shared[PAGE]++;
        if (!strcmp(line, "seal")) {
            puts(syscall(462 /* mseal */, protected, 8 * PAGE, 0) ? strerror(errno) : "sealed");
            continue;
        }
        if (!strcmp(line, "born")) {
            pthread_mutex_lock(&gate);
            if (pthread_create(&extra, NULL, idle, NULL)) die("thread");
        }
        if (!strcmp(line, "died")) {
            pthread_mutex_unlock(&gate);
            pthread_join(extra, NULL);
        }
        if (!strcmp(line, "progress"))
            for (int kind = 0; kind < kinds; kind++)
                for (int index = 0; index < each; index++) {
                    atomic_ulong *mine = &rounds[number_of(kind, index)];
                    unsigned long before = atomic_load(mine);
                    while (atomic_load(mine) < before + 2) usleep(300);
                }
        for (int kind = 0; kind < kinds; kind++)
            for (int index = 0; index < each; index++) printf("%lu ", atomic_load(&rounds[number_of(kind, index)]));
        puts("");
    }
}

/* A program that has a little of all that a restore makes or opens: threads, a listening Unix socket, a file of memory and a System V
 * segment that are mapped, files that are mapped and open, a working directory of its own. It uses all of it in each round.
 * Words: log, directory, file of memory, then any of `family` (a child that takes turns with us) and `large` (4 GiB of
 * address space). */
#include "steps.h"
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SHARED_PAGES 64
#define FILLED_PAGES 512
#define THREADS 2

static atomic_ulong beats[THREADS];

static void *beat(void *own) {
    for (;;) {
        atomic_fetch_add((atomic_ulong *)own, 1);
        sleep_ms(1);
    }
    return own;
}

static struct sockaddr_un address_of(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    must(strlen(path) < sizeof address.sun_path);
    strcpy(address.sun_path, path);
    return address;
}

static int listen_at(struct sockaddr_un *address) {
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(listener >= 0 && bind(listener, (struct sockaddr *)address, sizeof *address) == 0 && listen(listener, 4) == 0);
    return listener;
}

/* What is connected to by name arrives here. */
static void call_oneself(int listener, struct sockaddr_un *address) {
    int caller = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(caller >= 0 && connect(caller, (struct sockaddr *)address, sizeof *address) == 0);
    int called = accept(listener, NULL, NULL);
    char byte = 0;
    must(called >= 0 && write(caller, "x", 1) == 1 && read(called, &byte, 1) == 1 && byte == 'x');
    close(caller), close(called);
}

static void *map(int flags, int fd, size_t pages) {
    int protection = flags & MAP_SHARED ? PROT_READ | PROT_WRITE : PROT_READ;
    void *at = mmap(NULL, pages * PAGE, protection, flags, fd, 0);
    must(at != MAP_FAILED);
    return at;
}

static uint64_t *file_of_memory(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, SHARED_PAGES * PAGE) == 0);
    uint64_t *shared = map(MAP_SHARED, fd, SHARED_PAGES);
    for (size_t page = 0; page < SHARED_PAGES; page++) shared[page * PAGE / 8 + 1] = page;
    close(fd);
    return shared;
}

static uint64_t *segment(void) {
    int id = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
    uint64_t *at = shmat(id, NULL, 0);
    must(id >= 0 && at != (void *)-1 && shmctl(id, IPC_RMID, NULL) == 0);
    return at;
}

static int has(int count, char **words, const char *word) {
    for (int at = 4; at < count; at++)
        if (!strcmp(words[at], word)) return 1;
    return 0;
}

int main(int count, char **words) {
    /* What whoever runs the tests has open is none of ours. */
    must(close_range(3, ~0u, 0) == 0);
    begin_steps(count, words);
    must(count >= 4);
    char path[4096], work[4096], here[4096];
    int directory = open(words[2], O_PATH | O_DIRECTORY | O_CLOEXEC);
    int data = openat(directory, "data", O_RDONLY | O_CLOEXEC);
    int file = openat(directory, "mapped", O_RDONLY | O_CLOEXEC);
    must(directory >= 0 && data >= 0 && file >= 0 && mkdirat(directory, "work", 0700) == 0);
    snprintf(path, sizeof path, "%s/work", words[2]);
    must(chdir(path) == 0);
    const char *mapped = map(MAP_PRIVATE, file, 1);
    close(file);
    snprintf(path, sizeof path, "%s/socket", words[2]);
    must(getcwd(work, sizeof work) != NULL);
    struct sockaddr_un address = address_of(path);
    int listener = listen_at(&address);
    uint64_t *shared = file_of_memory(words[3]), *attached = segment();
    volatile uint64_t *turn = map(MAP_SHARED | MAP_ANONYMOUS, -1, 1);
    uint64_t seed = 1, *filled = map_anonymous(FILLED_PAGES * PAGE);
    for (size_t at = 0; at < FILLED_PAGES * PAGE / 8; at++) filled[at] = next_random(&seed);
    if (has(count, words, "large"))
        must(mmap(NULL, 4096 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED);
    int family = has(count, words, "family");
    if (family && fork() == 0)
        for (;;) {
            wait_until(turn[0] % 2 == 1);
            turn[0]++;
        }
    for (int at = 0; at < THREADS; at++) start_thread(beat, &beats[at]);
    for (uint64_t round = 1;; round++) {
        unsigned long before[THREADS];
        for (int at = 0; at < THREADS; at++) before[at] = atomic_load(&beats[at]);
        must(shared[0] == round - 1 && attached[0] == round - 1);
        shared[0] = attached[0] = round;
        for (size_t page = 0; page < SHARED_PAGES; page++) must(shared[page * PAGE / 8 + 1] == page);
        seed = 1;
        for (size_t at = 0; at < FILLED_PAGES * PAGE / 8; at++) must(filled[at] == next_random(&seed));
        must(pread(data, here, 4, 0) == 4 && !memcmp(here, "data", 4) && !memcmp(mapped, "mapped", 6));
        must(getcwd(here, sizeof here) != NULL && !strcmp(here, work));
        /* Not always: a call that was not answered yet could not be brought back. */
        if (access("../call", F_OK) == 0) call_oneself(listener, &address);
        if (family) {
            turn[0]++;
            wait_until(turn[0] % 2 == 0);
        }
        for (int at = 0; at < THREADS; at++) wait_until(atomic_load(&beats[at]) > before[at]);
        step("used all");
    }
}

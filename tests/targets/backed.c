/* Memory with all kinds of objects behind it, each page of which is counted up in each round: deleted files, memfd, System V,
 * shared anonymous memory, private copies of files (files mapped shared would have to be what they were); with protections,
 * guards, names and holes. The word `family` adds a child and a grandchild, which count up what they share with us in turn. */
#include "steps.h"
#include <sys/shm.h>

#define PAGES 8
#define KINDS 8

enum kind { ANONYMOUS, SHARED, DELETED_SHARED, PRIVATE_OF_OLD, FILE_PRIVATE, MEMFD, SYSTEM_V, GROWN };
static uint64_t *kinds[KINDS];
static uint64_t *turn;

static void *map(int flags, int fd, size_t pages) {
    void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    must(at != MAP_FAILED);
    return at;
}

static int file(const char *directory, const char *name, int deleted) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0);
    for (uint64_t page = 0; page < PAGES; page++) must(pwrite(fd, &page, sizeof page, (off_t)(page * PAGE + 8)) == sizeof page);
    if (deleted) must(unlink(path) == 0);
    return fd;
}

static void count_up(uint64_t *memory, uint64_t round, int is_of_file) {
    for (uint64_t page = 0; page < PAGES; page++) {
        uint64_t *word = memory + page * PAGE / 8;
        if (*word != round - 1) wrong("%llu instead of %llu in page %llu", (unsigned long long)*word, (unsigned long long)round - 1, (unsigned long long)page);
        if (is_of_file) must(word[1] == page);
        *word = round;
    }
}

/* Process `self` of `all` takes its turn, one after another, for ever. */
static void take_turns(uint64_t self, uint64_t all) {
    for (;;) {
        uint64_t now = __atomic_load_n(turn, __ATOMIC_ACQUIRE);
        if (now % all == self) {
            must(turn[1] == now);
            turn[1] = now + 1;
            uint64_t *own = kinds[ANONYMOUS];
            own[3] += 1;
            must(own[3] == now / all + 1);
            if (self == 0) step("a turn");
            __atomic_store_n(turn, now + 1, __ATOMIC_RELEASE);
        }
        sleep_ms(2);
    }
}

static void be_family(void) {
    for (uint64_t self = 1; self < 3; self++) {
        pid_t child = fork();
        must(child >= 0);
        if (child > 0) take_turns(self - 1, 3);
    }
    take_turns(2, 3);
}

int main(int count, char **words) {
    begin_steps(count, words);
    must(count >= 3);
    const char *directory = words[2];
    kinds[ANONYMOUS] = map(MAP_PRIVATE | MAP_ANONYMOUS, -1, PAGES);
    kinds[SHARED] = map(MAP_SHARED | MAP_ANONYMOUS, -1, PAGES);
    kinds[DELETED_SHARED] = map(MAP_SHARED, file(directory, "deleted", 1), PAGES);
    /* Where only the mapping leads to what was deleted, as with libraries that were replaced by newer ones. */
    int alone = count > 3 && !strcmp(words[3], "alone");
    int private = file(directory, "private-of-old", alone);
    kinds[PRIVATE_OF_OLD] = map(MAP_PRIVATE, private, PAGES);
    if (alone) must(close(private) == 0);
    kinds[FILE_PRIVATE] = map(MAP_PRIVATE, file(directory, "private", 0), PAGES);
    int memory = memfd_create("counted", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(memory >= 0 && ftruncate(memory, PAGES * PAGE) == 0 && fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    kinds[MEMFD] = map(MAP_SHARED, memory, PAGES);
    turn = map(MAP_SHARED | MAP_ANONYMOUS, -1, 1);
    if (count > 3 && !strcmp(words[3], "family")) be_family();
    int segment = shmget(IPC_PRIVATE, PAGES * PAGE, IPC_CREAT | 0600);
    kinds[SYSTEM_V] = shmat(segment, NULL, 0);
    /* It goes when nobody is attached. */
    must(segment >= 0 && kinds[SYSTEM_V] != (void *)-1 && shmctl(segment, IPC_RMID, NULL) == 0);
    kinds[GROWN] = map(MAP_PRIVATE | MAP_ANONYMOUS, -1, PAGES);
    /* Written once, and never again: it stays charged. */
    uint64_t *settled = map(MAP_PRIVATE | MAP_ANONYMOUS, -1, 2);
    settled[0] = settled[PAGE / 8] = 4711;
    must(mprotect(settled, 2 * PAGE, PROT_READ) == 0);
    char *reserved = mmap(NULL, 1024 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(reserved != MAP_FAILED);
    /* Told apart by advice and protection. */
    must(madvise(kinds[GROWN], PAGE, MADV_DONTFORK) == 0 && madvise((char *)kinds[GROWN] + PAGE, PAGE, MADV_WIPEONFORK) == 0);
    must(madvise((char *)kinds[GROWN] + 2 * PAGE, PAGE, MADV_DONTDUMP) == 0);
    for (uint64_t round = 1; round < 1000; round++) {
        for (int kind = 0; kind < KINDS; kind++)
            count_up(kinds[kind], round, kind >= DELETED_SHARED && kind <= FILE_PRIVATE);
        must(settled[0] == 4711 && settled[PAGE / 8] == 4711);
        /* A piece of the reservation becomes memory, and is protected once it is written. */
        uint64_t *piece = (uint64_t *)(reserved + round * PAGE);
        must(mprotect(piece, PAGE, PROT_READ | PROT_WRITE) == 0);
        *piece = round;
        must(mprotect(piece, PAGE, PROT_READ) == 0);
        for (uint64_t old = 1; old <= round; old++) must(*(uint64_t *)(reserved + old * PAGE) == old);
        must(fcntl(memory, F_GET_SEALS) == F_SEAL_SHRINK && ftruncate(memory, PAGE) == -1 && errno == EPERM);
        sleep_ms(10);
        step("counted");
    }
}

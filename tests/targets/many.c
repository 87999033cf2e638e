/* Arguments: how the mappings are made, how many, and a directory for files. A process with so many
 * mappings of a page each, as many as `vm.max_map_count` allows if need be:
 *   protections  one piece of private memory of which every second page may not be written,
 *   nonlinear    a shared file of which each page is shown elsewhere, by remap_file_pages(2),
 *   sharing      a file, by turns shared and private,
 *   limit        as protections, but nothing is stored, and there are as many as the kernel allows.
 * `write SEED COUNT` stores into that many pages and is answered with `done`; `count` is answered with the
 * number of mappings the process has there. */
#include "common.h"

static unsigned char *memory;
static size_t pages, step;

static int file_in(const char *directory) {
    char path[600];
    snprintf(path, sizeof path, "%s/many-%d", directory, getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) die(path);
    unlink(path);
    unsigned char page[PAGE];
    for (size_t at = 0; at < pages; at++) {
        memset(page, (int)(at % 251) + 1, PAGE);
        memcpy(page, &at, sizeof at);
        if (write(fd, page, PAGE) != (ssize_t)PAGE) die("write");
    }
    return fd;
}

static void protections(void) {
    memory = map_anonymous(pages * PAGE);
    madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < pages; at++) memset(memory + at * PAGE, (int)(at % 251) + 1, PAGE);
    for (size_t at = 1; at < pages; at += 2)
        if (mprotect(memory + at * PAGE, PAGE, PROT_READ)) die("mprotect");
    step = 2;
}

static void limit(void) {
    memory = map_anonymous(pages * PAGE);
    size_t at = 1;
    while (at < pages && mprotect(memory + at * PAGE, PAGE, PROT_READ) == 0) at += 2;
    if (at >= pages || errno != ENOMEM) die("mprotect");
    step = 2;
}

static void nonlinear(const char *directory) {
    int fd = file_in(directory);
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) die("mmap");
    /* In large steps, so that no page shows what follows its neighbour's: 7919 is a prime. */
    for (size_t at = 0; at < pages; at++)
        if (syscall(SYS_remap_file_pages, memory + at * PAGE, PAGE, 0, (at * 7919 + 13) % pages, 0)) die("remap_file_pages");
    step = 1;
}

static void sharing(const char *directory) {
    int fd = file_in(directory);
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) die("mmap");
    for (size_t at = 1; at < pages; at += 2) {
        int flags = MAP_PRIVATE | MAP_FIXED;
        if (mmap(memory + at * PAGE, PAGE, PROT_READ | PROT_WRITE, flags, fd, (off_t)(at * PAGE)) == MAP_FAILED)
            die("mmap over");
    }
    step = 1;
}

static size_t count(void) {
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps) die("maps");
    char line[1000];
    size_t found = 0;
    while (fgets(line, sizeof line, maps)) {
        uintptr_t start = strtoul(line, NULL, 16);
        found += start >= (uintptr_t)memory && start < (uintptr_t)memory + pages * PAGE;
    }
    fclose(maps);
    return found;
}

int main(int argc, char **argv) {
    begin();
    if (argc != 4) return 2;
    pages = strtoul(argv[2], NULL, 10);
    if (!strcmp(argv[1], "protections")) protections();
    if (!strcmp(argv[1], "limit")) limit();
    if (!strcmp(argv[1], "nonlinear")) nonlinear(argv[3]);
    if (!strcmp(argv[1], "sharing")) sharing(argv[3]);
    if (!memory) return 2;
    ready();
    for (;;) {
        char *line = next_line();
        uint64_t seed;
        size_t wanted;
        if (sscanf(line, "write %lu %zu", &seed, &wanted) == 2) {
            while (wanted--) {
                size_t page = next_random(&seed) % (pages / step) * step;
                uint64_t word = next_random(&seed);
                memcpy(memory + page * PAGE + 8, &word, sizeof word);
            }
            puts("done");
        } else {
            printf("%zu\n", count());
        }
    }
}

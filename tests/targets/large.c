/* A program with large shared mappings. Words: log, a file of memory, a file on a disk, and how many pages of the first are filled. The
 * first is 3 GiB long, the second half of one, and both are holes but for what is filled. */
#include "steps.h"

static uint64_t *map(const char *path, off_t bytes) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, bytes) == 0);
    uint64_t *at = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    must(at != MAP_FAILED && close(fd) == 0);
    return at;
}

int main(int count, char **words) {
    must(close_range(3, ~0u, 0) == 0);
    begin_steps(count, words);
    must(count == 5);
    size_t pages = strtoul(words[4], NULL, 10);
    uint64_t *memory = map(words[2], 3ll << 30), *disk = map(words[3], 512 << 20);
    for (size_t page = 0; page < pages; page++) memory[page * PAGE / 8] = page * 7 + 1;
    disk[0] = 1;
    for (;;) {
        size_t page = steps_taken * 1000 % pages;
        must(memory[page * PAGE / 8] == page * 7 + 1 && memory[(3ull << 30) / 8 - 1] == 0 && disk[0] == 1);
        step("on");
        sleep_ms(5);
    }
}

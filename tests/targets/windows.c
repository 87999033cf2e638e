/* Nonlinear windows: remap_file_pages(2) over a memfd, a file, a System V segment and shared anonymous memory shows each page
 * elsewhere. In each step every page is looked at through its window, and what is memory is counted up. */
#include "steps.h"
#include <sys/shm.h>

#define PAGES 24ul
#define KINDS 4

enum kind { MEMFD, SEGMENT, SHARED, DISK };

static unsigned long shown(unsigned long window, unsigned long kind) { return (window * 7 + 5 + kind) % PAGES; }

int main(int count, char **words) {
    begin_steps(count, words);
    must(count >= 3);
    unsigned char *memory[KINDS];
    int memfd = memfd_create("windows", MFD_CLOEXEC);
    must(memfd >= 0 && ftruncate(memfd, PAGES * PAGE) == 0);
    memory[MEMFD] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    int segment = shmget(IPC_PRIVATE, PAGES * PAGE, IPC_CREAT | 0600);
    memory[SEGMENT] = shmat(segment, NULL, 0);
    must(memory[SEGMENT] != (void *)-1 && shmctl(segment, IPC_RMID, NULL) == 0);
    memory[SHARED] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char path[4096];
    snprintf(path, sizeof path, "%s/windows", words[2]);
    int disk = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(disk >= 0 && ftruncate(disk, PAGES * PAGE) == 0);
    memory[DISK] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, disk, 0);
    for (unsigned long kind = 0; kind < KINDS; kind++) {
        must(memory[kind] != MAP_FAILED);
        for (unsigned long page = 0; page < PAGES; page++) {
            uint64_t *word = (uint64_t *)(memory[kind] + page * PAGE);
            word[0] = 0;
            word[1] = kind << 8 | page;
        }
        for (unsigned long window = 0; window < PAGES; window++)
            must(syscall(SYS_remap_file_pages, memory[kind] + window * PAGE, PAGE, 0, shown(window, kind), 0) == 0);
    }
    must(fsync(disk) == 0);
    for (uint64_t round = 1;; round++) {
        for (unsigned long kind = 0; kind < KINDS; kind++)
            for (unsigned long window = 0; window < PAGES; window++) {
                uint64_t *word = (uint64_t *)(memory[kind] + window * PAGE);
                must(word[1] == (kind << 8 | shown(window, kind)));
                if (kind == DISK) continue;
                must(word[0] == round - 1);
                word[0] = round;
            }
        sleep_ms(5);
        step("looked through all windows");
    }
}

/* Memory that the kernel may take away at any time (MAP_DROPPABLE, Linux 6.11), with bytes in it that are nowhere else in the process: in
 * each step they are whole, or the page is empty and is written again. Says "0 none" if there is no such memory. */
#include "steps.h"

#define PAGES 8ul

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif

/* The flags of the mapping that begins at an address. */
static void read_flags(const volatile void *at, char *flags, int length) {
    char line[512];
    FILE *maps = fopen("/proc/self/smaps", "re");
    must(maps != NULL);
    int here = 0;
    flags[0] = 0;
    while (fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) here = start == (unsigned long)at;
        if (here && !strncmp(line, "VmFlags:", 8)) snprintf(flags, (size_t)length, "%.200s", line + 8);
    }
    fclose(maps);
}

/* More than the smallest buffer takes, which is so full before and after the droppable memory is copied. */
static void fill_beside(void) {
    unsigned char *memory = map_anonymous(6 * MIB);
    uint64_t seed = (uint64_t)(uintptr_t)memory;
    for (size_t at = 0; at < 6 * MIB; at += 8) *(uint64_t *)(memory + at) = next_random(&seed);
}

int main(int count, char **words) {
    begin_steps(count, words);
    fill_beside();
    volatile unsigned char *memory =
        mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        say("0 none");
        sleep_ms(LIFETIME_SECONDS * 1000);
        return 0;
    }
    fill_beside();
    for (;;) {
        int empty = 0;
        for (unsigned long page = 0; page < PAGES; page++) {
            volatile unsigned char *at = memory + page * PAGE;
            int is_empty = at[0] == 0;
            for (unsigned long i = 0; i < PAGE; i++) {
                unsigned char byte = (unsigned char)((i * 131 + (i >> 5) * 17 + 91) ^ 0xa5) | 1;
                if (!is_empty && at[i] != byte) {
                    /* It was taken away just now. */
                    must(at[i] == 0);
                    is_empty = 1;
                    i = 0;
                    byte = (91 ^ 0xa5) | 1;
                }
                if (is_empty) at[i] = byte;
            }
            empty += is_empty;
        }
        char flags[256];
        read_flags(memory, flags, sizeof flags);
        must(strstr(flags, " dp"));
        must(strstr(flags, " wf") && strstr(flags, " dd"));
        sleep_ms(5);
        step(empty ? "was empty" : "was full");
    }
}

/* Argument: MiB. Commands: `write FIRST COUNT VALUE` fills pages, `noise` with bytes
 * that cannot be compressed; `quit`. One anonymous mapping whose
 * pages all hold something else. Answers carry the address of the mapping. */
#include "common.h"

int main(int count, char **words) {
    begin();
    size_t length = (count > 1 ? strtoul(words[1], NULL, 0) : 8) * MIB;
    unsigned char *memory = map_anonymous(length);
    for (size_t at = 0; at < length; at += 8) {
        uint64_t state = at;
        uint64_t value = next_random(&state);
        memcpy(memory + at, &value, 8);
    }
    ready();
    for (;;) {
        char *line = next_line();
        size_t first, pages;
        unsigned value;
        if (sscanf(line, "write %zu %zu %u", &first, &pages, &value) == 3)
            memset(memory + first * PAGE, (int)value, pages * PAGE);
        else if (sscanf(line, "noise %zu %zu %u", &first, &pages, &value) == 3) {
            uint64_t state = value + 1000003;
            for (size_t at = first * PAGE; at < (first + pages) * PAGE; at += 8) {
                uint64_t word = next_random(&state);
                memcpy(memory + at, &word, 8);
            }
        } else if (!strcmp(line, "quit"))
            return 0;
        printf("%p\n", (void *)memory);
    }
}

/* Mappings with memory policies of their own (mbind(2)), one after the other by the words after the first two: a mode and its
 * nodes, as `2:1` for MPOL_BIND to node 0. The pages of each are counted up in each step. */
#include "steps.h"

#define PAGES 16ul

int main(int count, char **words) {
    begin_steps(count, words);
    unsigned char *memory[16];
    int mappings = 0;
    for (int word = 3; word < count && mappings < 16; word++, mappings++) {
        unsigned long mode, nodes;
        must(sscanf(words[word], "%lu:%lu", &mode, &nodes) == 2);
        unsigned char *at = mmap(NULL, (PAGES + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        must(at != MAP_FAILED && mprotect(at, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
        must(syscall(SYS_mbind, at, PAGES * PAGE, mode, nodes ? &nodes : NULL, nodes ? 65 : 0, 0) == 0);
        memory[mappings] = at;
    }
    for (uint64_t round = 1;; round++) {
        for (int i = 0; i < mappings; i++)
            for (unsigned long page = 0; page < PAGES; page++) {
                uint64_t *word = (uint64_t *)(memory[i] + page * PAGE);
                must(*word == round - 1);
                *word = round;
            }
        sleep_ms(5);
        step("counted");
    }
}

/* A parent and its children, which share its memory since fork(2) until somebody writes.
 *
 *   inheritors LOG DIRECTORY
 *
 * 64 MiB are inherited by two children of the parent, and by two of the second child, which changes a part before it has them: four
 * children share what nobody has written. Each of them has changed a part of its own. In each step all of them look at pages here and
 * there, and at the end of it the parent has a line in its log. */
#include "steps.h"

#define LENGTH (64 * MIB)
#define CHILDREN 4
/* What each process has changed lies at its number, and is so long. */
#define CHANGED (512 * 1024ul)

static unsigned char *memory;
static struct board {
    atomic_ulong round, done[CHILDREN + 1];
    atomic_int born;
} *board;

static uint64_t value_at(size_t at, int changed_by) { return (at + (uint64_t)changed_by * LENGTH) * 0x9e3779b97f4a7c15ull; }

static void change(int number) {
    for (size_t at = (size_t)number * MIB; at < (size_t)number * MIB + CHANGED; at += 8) *(uint64_t *)(memory + at) = value_at(at, number);
}

/* The number of the process whose change process `number` sees at this place; 0 if nobody's. */
static int changed_by(size_t at, int number) {
    int part = (int)(at / MIB);
    if (part > CHILDREN || at % MIB >= CHANGED) return 0;
    /* The last two are children of the second. */
    return part == number || (part == 2 && number > 2) ? part : 0;
}

static void look(int number, uint64_t round) {
    uint64_t seed = round * 31 + (uint64_t)number;
    for (int count = 0; count < 64; count++) {
        size_t at = count < 2 ? (size_t)(number - count % 2) * MIB + round % CHANGED / 8 * 8 : next_random(&seed) % LENGTH / 8 * 8;
        if (at >= LENGTH) continue;
        if (*(uint64_t *)(memory + at) != value_at(at, changed_by(at, number))) {
            say("WRONG process %d at %zx", number, at);
            _exit(97);
        }
    }
}

static void be_child(int number) {
    atomic_fetch_add(&board->born, 1);
    for (uint64_t seen = 0;; sleep_ms(1)) {
        uint64_t round = atomic_load(&board->round);
        if (round == seen) continue;
        look(number, round);
        seen = round;
        atomic_store(&board->done[number], round);
    }
}

static void bear(int number) {
    pid_t pid = fork();
    must(pid >= 0);
    if (pid) return;
    change(number);
    if (number == 2) bear(3), bear(4);
    be_child(number);
}

int main(int count, char **words) {
    begin_steps(count, words);
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memory = map_anonymous(LENGTH);
    for (size_t at = 0; at < LENGTH; at += 8) *(uint64_t *)(memory + at) = value_at(at, 0);
    bear(1);
    bear(2);
    wait_until(atomic_load(&board->born) == CHILDREN);
    for (uint64_t round = 1;; round++) {
        atomic_store(&board->round, round);
        look(0, round);
        for (int child = 1; child <= CHILDREN; child++) wait_until(atomic_load(&board->done[child]) == round);
        step("seen by all");
        sleep_ms(5);
    }
}

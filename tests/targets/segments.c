/* System V segments, a row of the table below each: what was done to all of it, or to its start, middle or end. In each step
 * every page is looked at through the mapping, as far as it may be, and through another one of the whole segment, and
 * pages that may be written to are counted up; what was made readable only is made writable for a moment. */
#include "steps.h"
#include <sys/shm.h>

#define PAGES 9ul
#define WHOLE 0ul, PAGES
#define START 0ul, 3ul
#define MIDDLE 3ul, 3ul
#define END 6ul, 3ul

enum what { ADVISE, PROTECT, LOCK, UNMAP, SHOW, LOCK_OBJECT, READ_ONLY, MOVE, FIVE_THOUSAND };

static const struct row {
    enum what what;
    int is;
    unsigned long first, count;
} rows[] = {
#define EACH_PART(what, is) {what, is, WHOLE}, {what, is, START}, {what, is, MIDDLE}, {what, is, END}
    EACH_PART(ADVISE, MADV_DONTFORK),
    EACH_PART(ADVISE, MADV_DONTDUMP),
    EACH_PART(ADVISE, MADV_SEQUENTIAL),
    EACH_PART(ADVISE, MADV_RANDOM),
    EACH_PART(ADVISE, MADV_HUGEPAGE),
    EACH_PART(ADVISE, MADV_NOHUGEPAGE),
    EACH_PART(PROTECT, PROT_NONE),
    EACH_PART(PROTECT, PROT_READ),
    EACH_PART(PROTECT, PROT_READ | PROT_EXEC),
    EACH_PART(LOCK, 0),
    EACH_PART(UNMAP, 0),
    EACH_PART(SHOW, 0),
    EACH_PART(READ_ONLY, 0),
    EACH_PART(MOVE, 0),
    {LOCK_OBJECT, 0, WHOLE},
    {FIVE_THOUSAND, 0, WHOLE},
};
#define ROWS (sizeof rows / sizeof *rows)

static struct state {
    int id;
    unsigned char *page[PAGES]; /* where it is shown; NULL where it is not */
    int protection[PAGES];
    uint64_t word[PAGES]; /* what each holds */
    unsigned long pages, attached;
} states[ROWS];

static struct shmid_ds status(const struct state *state) {
    struct shmid_ds found;
    must(shmctl(state->id, IPC_STAT, &found) == 0);
    return found;
}

static void treat(const struct row *row, struct state *state, unsigned char *at) {
    unsigned char *part = at + row->first * PAGE;
    size_t length = row->count * PAGE;
    int protection = PROT_READ | PROT_WRITE;
    if (row->what == ADVISE) must(madvise(part, length, row->is) == 0);
    if (row->what == PROTECT) must(mprotect(part, length, protection = row->is) == 0);
    if (row->what == LOCK) must(mlock(part, length) == 0);
    if (row->what == UNMAP) must(munmap(part, length) == 0);
    if (row->what == LOCK_OBJECT) must(shmctl(state->id, SHM_LOCK, NULL) == 0);
    if (row->what == READ_ONLY) must(mprotect(part, length, protection = PROT_NONE) == 0);
    if (row->what == MOVE) {
        unsigned char *to = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        must(to != MAP_FAILED && mremap(part, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        part = to;
    }
    for (unsigned long i = 0; i < row->count; i++) {
        unsigned long page = row->first + i;
        state->page[page] = row->what == UNMAP ? NULL : part + i * PAGE;
        state->protection[page] = protection;
    }
    /* In the reverse order. */
    for (unsigned long i = 0; row->what == SHOW && i < row->count; i++) {
        must(syscall(SYS_remap_file_pages, part + i * PAGE, PAGE, 0, row->first + row->count - 1 - i, 0) == 0);
        state->page[row->first + row->count - 1 - i] = part + i * PAGE;
    }
}

static void make(const struct row *row, struct state *state, unsigned long number) {
    state->pages = row->what == FIVE_THOUSAND ? 2 : PAGES;
    state->id = shmget(IPC_PRIVATE, row->what == FIVE_THOUSAND ? 5000 : PAGES * PAGE, IPC_CREAT | 0600);
    unsigned char *at = shmat(state->id, NULL, 0);
    must(state->id >= 0 && at != (void *)-1);
    for (unsigned long page = 0; page < state->pages; page++) {
        state->word[page] = number << 32 | page << 24;
        *(uint64_t *)(at + page * PAGE) = state->word[page];
    }
    int protection = PROT_READ | PROT_WRITE;
    if (row->what == READ_ONLY) {
        must(shmdt(at) == 0);
        at = shmat(state->id, NULL, SHM_RDONLY);
        must(at != (void *)-1);
        protection = PROT_READ;
    }
    for (unsigned long page = 0; page < state->pages; page++) {
        state->page[page] = at + page * PAGE;
        state->protection[page] = protection;
    }
    treat(row, state, at);
    state->attached = status(state).shm_nattch;
    /* Half of them go when nobody is attached any more. */
    if (number % 2 && state->attached) must(shmctl(state->id, IPC_RMID, NULL) == 0);
}

static void use(const struct row *row, struct state *state) {
    /* What is not mapped is no part of a snapshot, and is as new as it was last. */
    if (!state->attached) return;
    /* Nobody else has it from our first instruction on, not whoever restored us either. */
    must(status(state).shm_nattch == state->attached);
    must(!(status(state).shm_perm.mode & 02000) == (row->what != LOCK_OBJECT));
    volatile unsigned char *whole = shmat(state->id, NULL, 0);
    must(whole != (void *)-1);
    for (unsigned long page = 0; page < state->pages; page++) {
        volatile uint64_t *word = (uint64_t *)(whole + page * PAGE);
        must(*word == state->word[page]);
        unsigned char *at = state->page[page];
        int protection = state->protection[page];
        if (!at || row->what == READ_ONLY) {
            if (at) must(mprotect(at, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
            *word = ++state->word[page];
            continue;
        }
        if (protection & PROT_WRITE) *(uint64_t *)at = ++state->word[page];
        must(*word == state->word[page]);
    }
    if (row->what == PROTECT) {
        /* All at once: what is cut into mappings of one page stays so. */
        unsigned char *part = state->page[row->first];
        must(mprotect(part, row->count * PAGE, PROT_READ | PROT_WRITE) == 0);
        for (unsigned long i = 0; i < row->count; i++) *(uint64_t *)(part + i * PAGE) = ++state->word[row->first + i];
        must(mprotect(part, row->count * PAGE, row->is) == 0);
    }
    must(shmdt((const void *)whole) == 0);
}

int main(int count, char **words) {
    begin_steps(count, words);
    for (unsigned long number = 0; number < ROWS; number++) make(&rows[number], &states[number], number);
    for (;;) {
        for (unsigned long number = 0; number < ROWS; number++) use(&rows[number], &states[number]);
        sleep_ms(5);
        step("looked at all segments");
    }
}

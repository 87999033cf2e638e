/* Handlers run on alternate stacks of several threads, the main stack and the heap grow, thread-local memory stays. */
#include "steps.h"

#define THREADS 3
#define ALTERNATE (64 * 1024ul)
#define LOCALS 20000
#define FRAME (3 * 1024)
#define HEAP_STEP (12 * 1024)
#define ROUNDS_MAX 2000

struct alternate {
    char *memory;
    atomic_uint handled;
    pthread_t thread;
};

static struct alternate alternates[THREADS];
static __thread struct alternate *own;
static __thread uint64_t locals[LOCALS];
static pthread_key_t key;
static atomic_uint begun;

static void on_signal(int signal, siginfo_t *info, void *context) {
    char here;
    (void)signal, (void)info;
    must(own && &here > own->memory && &here < own->memory + ALTERNATE);
    stack_t now;
    must(sigaltstack(NULL, &now) == 0 && (now.ss_flags & SS_ONSTACK) && now.ss_sp == own->memory && now.ss_size == ALTERNATE);
    must(((ucontext_t *)context)->uc_stack.ss_sp == own->memory);
    sleep_ms(5);
    atomic_fetch_add(&own->handled, 1);
}

static void *with_stack(void *which) {
    own = which;
    stack_t stack = {.ss_sp = own->memory, .ss_size = ALTERNATE};
    must(sigaltstack(&stack, NULL) == 0 && pthread_setspecific(key, own) == 0);
    for (size_t at = 0; at < LOCALS; at++) locals[at] = at * (uintptr_t)own;
    atomic_fetch_add(&begun, 1);
    for (;;) {
        stack_t now;
        must(sigaltstack(NULL, &now) == 0 && now.ss_flags == 0 && now.ss_sp == own->memory);
        for (size_t at = 0; at < LOCALS; at++) must(locals[at] == at * (uintptr_t)own);
        must(pthread_getspecific(key) == own);
        struct timespec nap = {0, 2000000};
        nanosleep(&nap, NULL);
    }
    return NULL;
}

/* So deep as never before: the stack grows by pages that were not there. */
static uint64_t __attribute__((noinline)) deep(unsigned depth, uint64_t value) {
    volatile unsigned char frame[FRAME];
    frame[0] = (unsigned char)value, frame[FRAME - 1] = (unsigned char)depth;
    uint64_t below = depth ? deep(depth - 1, value + 1) : value;
    must(frame[0] == (unsigned char)value && frame[FRAME - 1] == (unsigned char)depth);
    return below;
}

int main(int count, char **words) {
    begin_steps(count, words);
    must(pthread_key_create(&key, NULL) == 0);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    must(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int at = 0; at < THREADS; at++) {
        alternates[at].memory = map_anonymous(ALTERNATE);
        alternates[at].thread = start_thread(with_stack, &alternates[at]);
    }
    wait_until(atomic_load(&begun) == THREADS);
    char *heap = sbrk(0), *pieces[ROUNDS_MAX];
    for (unsigned round = 1; round < ROUNDS_MAX; round++) {
        unsigned before[THREADS];
        for (int at = 0; at < THREADS; at++) before[at] = atomic_load(&alternates[at].handled);
        for (int at = 0; at < THREADS; at++) must(pthread_kill(alternates[at].thread, SIGUSR1) == 0);
        must(deep(round, 5) == 5 + round);
        /* The program break itself, and what the C library makes of it. */
        char *piece = sbrk(HEAP_STEP);
        must(piece != (char *)-1 && piece >= heap);
        memset(piece, (int)round, HEAP_STEP);
        must((pieces[round] = malloc(HEAP_STEP)) != NULL);
        memset(pieces[round], (int)(round * 7), HEAP_STEP);
        for (unsigned old = 1; old <= round; old++)
            must(pieces[old][17] == (char)(old * 7) && pieces[old][HEAP_STEP - 1] == (char)(old * 7));
        must(piece[0] == (char)round && piece[HEAP_STEP - 1] == (char)round && (char *)sbrk(0) >= piece + HEAP_STEP);
        for (int at = 0; at < THREADS; at++) wait_until(atomic_load(&alternates[at].handled) != before[at]);
        /* Long enough for all rounds to last longer than a test. */
        sleep_ms(80);
        step("grown");
    }
}

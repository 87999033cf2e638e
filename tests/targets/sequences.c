/* Threads count in restartable sequences, in counters of the processor that they are on: one that is continued after its
 * thread was away loses or doubles a count. */
#include "steps.h"
#include <sched.h>
#include <stddef.h>
#include <sys/rseq.h>

#define THREADS 4
#define PROCESSORS_MAX 1024
#define COUNTS_A_ROUND 30000
#define SPINS "300"

static struct {
    uint64_t count;
    char apart[56];
} counters[PROCESSORS_MAX];
static atomic_ullong restarts;
static pthread_barrier_t begins, ends;

static struct rseq *area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }

/* Adds one to the counter of the processor, or not: then the sequence was left at its abort handler. */
static int count_one(void) {
    struct rseq *here = area();
    unsigned processor = *(volatile uint32_t *)&here->cpu_id_start;
    uint64_t *counter = &counters[processor].count;
    asm volatile goto(
        ".pushsection __rseq_cs, \"aw\"\n\t.balign 32\n\t3: .long 0, 0\n\t.quad 1f, 2f - 1f, 4f\n\t.popsection\n\t"
        "leaq 3b(%%rip), %%rax\n\t movq %%rax, %[current]\n\t"
        "1: cmpl %[processor], %[cpu_id]\n\t jnz 4f\n\t"
        "movq (%[counter]), %%rax\n\t movl $" SPINS ", %%ecx\n\t 5: decl %%ecx\n\t jnz 5b\n\t"
        "addq $1, %%rax\n\t movq %%rax, (%[counter])\n\t"
        "2:\n\t"
        ".pushsection __rseq_failure, \"ax\"\n\t.byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n\t4: jmp %l[aborted]\n\t.popsection\n\t"
        :
        : [current] "m"(here->rseq_cs), [cpu_id] "m"(here->cpu_id), [processor] "r"(processor), [counter] "r"(counter)
        : "rax", "rcx", "memory", "cc"
        : aborted);
    return 1;
aborted:
    atomic_fetch_add(&restarts, 1);
    return 0;
}

static void *count_up(void *unused) {
    for (;;) {
        pthread_barrier_wait(&begins);
        for (int done = 0; done < COUNTS_A_ROUND;) done += count_one();
        pthread_barrier_wait(&ends);
    }
    return unused;
}

int main(int count, char **words) {
    begin_steps(count, words);
    if (__rseq_size == 0) wrong("the C library has registered no sequences");
    pthread_barrier_init(&begins, NULL, THREADS + 1);
    pthread_barrier_init(&ends, NULL, THREADS + 1);
    for (int at = 0; at < THREADS; at++) start_thread(count_up, NULL);
    for (uint64_t round = 1;; round++) {
        pthread_barrier_wait(&begins);
        pthread_barrier_wait(&ends);
        uint64_t sum = 0;
        for (int at = 0; at < PROCESSORS_MAX; at++) sum += counters[at].count;
        if (sum != round * THREADS * COUNTS_A_ROUND) wrong("%llu counted in round %llu", (unsigned long long)sum, (unsigned long long)round);
        must(area()->cpu_id == (uint32_t)sched_getcpu() || area()->cpu_id < PROCESSORS_MAX);
        step("counted");
    }
}

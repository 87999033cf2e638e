/* Locks of all kinds are held, waited for, and left behind by threads that end. */
#include "steps.h"

static pthread_mutex_t robust, inherited, checked, inherited_robust;
static pthread_rwlock_t shared_lock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static unsigned long guarded, under_inherited, readers;
static atomic_int writer_inside;
static atomic_ulong tried;

static void make(pthread_mutex_t *mutex, int type, int robustness, int protocol) {
    pthread_mutexattr_t attributes;
    must(pthread_mutexattr_init(&attributes) == 0 && pthread_mutexattr_settype(&attributes, type) == 0);
    must(pthread_mutexattr_setrobust(&attributes, robustness) == 0 && pthread_mutexattr_setprotocol(&attributes, protocol) == 0);
    must(pthread_mutex_init(mutex, &attributes) == 0);
}

/* Takes both, holds them for a while, and ends. */
static void *leave_behind(void *unused) {
    must(pthread_mutex_lock(&robust) == 0 && pthread_mutex_lock(&inherited_robust) == 0);
    guarded++;
    pthread_barrier_wait(&barrier);
    sleep_ms(20);
    return unused;
}

static void *count_inherited(void *unused) {
    for (;;) {
        must(pthread_mutex_lock(&inherited) == 0);
        unsigned long seen = under_inherited;
        for (volatile int spin = 0; spin < 20000; spin++) {}
        must(seen == under_inherited);
        under_inherited = seen + 1;
        must(pthread_mutex_unlock(&inherited) == 0);
    }
    return unused;
}

static void *read_or_write(void *writes) {
    for (;;) {
        must((writes ? pthread_rwlock_wrlock(&shared_lock) : pthread_rwlock_rdlock(&shared_lock)) == 0);
        must(atomic_load(&writer_inside) == 0);
        if (writes) atomic_store(&writer_inside, 1), readers++;
        sleep_ms(1);
        if (writes) atomic_store(&writer_inside, 0);
        must(pthread_rwlock_unlock(&shared_lock) == 0);
        sleep_ms(1);
    }
    return NULL;
}

/* The main thread holds it for ever. */
static void *try_in_vain(void *unused) {
    for (;;) {
        must(pthread_mutex_trylock(&checked) == EBUSY && pthread_mutex_unlock(&checked) == EPERM);
        atomic_fetch_add(&tried, 1);
        struct timespec end;
        clock_gettime(CLOCK_REALTIME, &end);
        end.tv_nsec = (end.tv_nsec + 3000000) % 1000000000;
        end.tv_sec += end.tv_nsec < 3000000;
        must(pthread_mutex_timedlock(&checked, &end) == ETIMEDOUT);
    }
    return unused;
}

int main(int count, char **words) {
    begin_steps(count, words);
    make(&robust, PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE);
    make(&inherited_robust, PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_INHERIT);
    make(&inherited, PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_INHERIT);
    make(&checked, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_NONE);
    pthread_barrier_init(&barrier, NULL, 2);
    must(pthread_mutex_lock(&checked) == 0);
    for (int at = 0; at < 3; at++) start_thread(count_inherited, NULL);
    for (int at = 0; at < 3; at++) start_thread(read_or_write, at == 0 ? &readers : NULL);
    start_thread(try_in_vain, NULL);
    for (unsigned long round = 1;; round++) {
        unsigned long before = atomic_load(&tried);
        pthread_t thread = start_thread(leave_behind, NULL);
        pthread_barrier_wait(&barrier);
        /* Whoever waits is told that the owner has ended, for each kind. */
        must(pthread_mutex_lock(&robust) == EOWNERDEAD && pthread_mutex_consistent(&robust) == 0);
        must(pthread_mutex_lock(&inherited_robust) == EOWNERDEAD && pthread_mutex_consistent(&inherited_robust) == 0);
        must(guarded == round && pthread_join(thread, NULL) == 0);
        must(pthread_mutex_lock(&checked) == EDEADLK);
        sleep_ms(10);
        must(pthread_mutex_unlock(&robust) == 0 && pthread_mutex_unlock(&inherited_robust) == 0);
        must(pthread_mutex_lock(&inherited) == 0);
        unsigned long seen = under_inherited;
        must(pthread_mutex_unlock(&inherited) == 0);
        wait_until(*(volatile unsigned long *)&under_inherited > seen && atomic_load(&tried) > before);
        step("locked");
    }
}

/* What programs share that are killed and restored: they work in steps, and write a line for each to a log, which is
 * their first word: a number that counts up, and what was done. Whatever is not as it must be is a line that begins with
 * WRONG, and the end. They do not die with the tests, which a restored process could not do, but live for some minutes. */
#include "common.h"
#include <stdarg.h>
#include <time.h>

#define LIFETIME_SECONDS 240
#define PATIENCE_SECONDS 30

static int steps_log = -1;
static uint64_t steps_taken, steps_begun;
static pthread_mutex_t steps_lock = PTHREAD_MUTEX_INITIALIZER;

static inline uint64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static inline void say(const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    line[length] = '\n';
    if (write(steps_log, line, (size_t)length + 1) < 0) _exit(96);
}

#define wrong(...) (say("WRONG " __VA_ARGS__), _exit(97))
#define must(is_so) ((is_so) ? (void)0 : wrong("%s:%d: %s (errno %d)", __FILE_NAME__, __LINE__, #is_so, errno))

/* One more step is done. */
static inline void step(const char *what) {
    pthread_mutex_lock(&steps_lock);
    uint64_t number = ++steps_taken;
    say("%llu %s", (unsigned long long)number, what);
    pthread_mutex_unlock(&steps_lock);
    if (now_ns(CLOCK_MONOTONIC) - steps_begun > LIFETIME_SECONDS * 1000000000ull) _exit(98);
}

static inline void begin_steps(int count, char **words) {
    if (count < 2) _exit(95);
    steps_log = open(words[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (steps_log < 0) _exit(95);
    steps_begun = now_ns(CLOCK_MONOTONIC);
}

static inline void sleep_ms(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    must(clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL) == 0);
}

/* Waits until it is so; a signal handler may run meanwhile. */
#define wait_until(is_so)                                                                                           \
    do {                                                                                                            \
        uint64_t wait_since = now_ns(CLOCK_MONOTONIC);                                                              \
        while (!(is_so)) {                                                                                          \
            if (now_ns(CLOCK_MONOTONIC) - wait_since > PATIENCE_SECONDS * 1000000000ull) wrong("in vain: %s", #is_so); \
            nanosleep(&(struct timespec){0, 500000}, NULL);                                                         \
        }                                                                                                           \
    } while (0)

static inline pthread_t start_thread(void *(*body)(void *), void *argument) {
    pthread_t thread;
    must(pthread_create(&thread, NULL, body, argument) == 0);
    return thread;
}

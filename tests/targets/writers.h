/* What the ways of writers.c share: a child that does something when it is told. */
#pragma once
#include "common.h"
#include <sys/socket.h>
#include <sys/uio.h>

/* Memory that was there at the first snapshot, and so is tracked. What is mapped beside it later may be compared for a while,
 * and then nothing would be missed in it. */
enum { POOL_PAGES = 96 };
static unsigned char *pool;

static void fill_pool(void) {
    pool = map_anonymous(POOL_PAGES * PAGE);
    memset(pool, 9, POOL_PAGES * PAGE);
}

static void *from_pool(size_t length) {
    static size_t used;
    size_t at = used;
    used += (length + PAGE - 1) / PAGE * PAGE;
    if (used > POOL_PAGES * PAGE) die("the pool is too small");
    return pool + at;
}

/* In the child `act` runs for each byte that comes. Answers when it has run. */
static int orders[2], answers[2];

static const char *start_child(const char *(*act)(void)) {
    if (pipe2(orders, O_CLOEXEC) || pipe2(answers, O_CLOEXEC)) return strerror(errno);
    pid_t child = fork();
    if (child < 0) return strerror(errno);
    if (child) return NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    char order;
    while (read(orders[0], &order, 1) == 1) {
        const char *problem = act();
        order = problem ? 'n' : 'y';
        if (write(answers[1], &order, 1) != 1) break;
    }
    _exit(0);
}

static const char *order_child(void) {
    char order = 'o';
    if (write(orders[1], &order, 1) != 1 || read(answers[0], &order, 1) != 1) return "the child has ended";
    return order == 'y' ? NULL : "the child could not";
}

/* Descriptors of all kinds with something in them, which is taken out and put in again in each round. */
#include "steps.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#define LEFT 3000

static int pipes[2], packets[2], stream[2], event, epoll, signals, notes, plain, appended, copy, fifo, places, null, listener, unix_listener,
    datagrams, sealed, noticed;
static char directory[4096];
static struct sockaddr_in datagrams_at;
static struct sockaddr_un unix_at;

static const char *path(const char *name) {
    static char paths[4][8192];
    static int next;
    char *at = paths[next++ % 4];
    snprintf(at, 8192, "%s/%s", directory, name);
    return at;
}

static void fill(unsigned char *bytes, size_t length, uint64_t round) {
    for (size_t at = 0; at < length; at++) bytes[at] = (unsigned char)(round * 31 + at);
}

static void put(uint64_t round) {
    unsigned char bytes[LEFT];
    fill(bytes, LEFT, round);
    must(write(pipes[1], bytes, LEFT) == LEFT && write(stream[0], bytes, LEFT) == LEFT);
    must(send(packets[0], bytes, 100, 0) == 100 && send(packets[0], bytes, 50, 0) == 50);
    must(write(fifo, bytes, 70) == 70);
    must(eventfd_write(event, round) == 0);
    must(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = (int)round}) == 0);
}

static void take(uint64_t round) {
    unsigned char bytes[LEFT], got[LEFT + 1];
    eventfd_t value;
    struct signalfd_siginfo info;
    struct epoll_event ready[8];
    fill(bytes, LEFT, round);
    /* All that have something to read are in the set, and are told with what was said then. */
    int count = epoll_wait(epoll, ready, 8, 0);
    must(count == 5);
    uint64_t all = 0;
    for (int at = 0; at < count; at++) all += ready[at].data.u64;
    must(all == 11111);
    must(read(pipes[0], got, sizeof got) == LEFT && !memcmp(got, bytes, LEFT));
    must(read(stream[1], got, sizeof got) == LEFT && !memcmp(got, bytes, LEFT));
    must(recv(packets[1], got, sizeof got, 0) == 100 && !memcmp(got, bytes, 100));
    must(recv(packets[1], got, sizeof got, 0) == 50 && recv(packets[1], got, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    must(read(fifo, got, sizeof got) == 70 && !memcmp(got, bytes, 70));
    must(eventfd_read(event, &value) == 0 && value == round);
    must(read(signals, &info, sizeof info) == sizeof info && info.ssi_int == (int)round);
    /* Those that wait may be lost. */
    must(sendto(datagrams, bytes, 40, 0, (struct sockaddr *)&datagrams_at, sizeof datagrams_at) == 40);
    must(recv(datagrams, got, sizeof got, 0) == 40 && !memcmp(got, bytes, 40));
    must(epoll_wait(epoll, ready, 8, 0) == 0);
}

static void use_files(uint64_t round) {
    uint64_t got = 0;
    /* Both are one open file with one position. */
    must(lseek(plain, 0, SEEK_CUR) == (off_t)(round * 8) && lseek(copy, 0, SEEK_CUR) == (off_t)(round * 8));
    must(write(round % 2 ? plain : copy, &round, 8) == 8);
    must(pread(copy, &got, 8, (off_t)(round * 8)) == 8 && got == round);
    must((fcntl(appended, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY) && write(appended, "x", 1) == 1);
    must(fcntl(appended, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0 && (fcntl(pipes[0], F_GETFL) & O_NONBLOCK));
    must(write(null, &round, 8) == 8 && read(null, &got, 8) == 0);
    must(faccessat(places, "plain", R_OK, 0) == 0 && fcntl(sealed, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_GROW));
    must(pread(sealed, &got, 8, 0) == 8 && !memcmp(&got, "sealed!", 8));
}

/* Whatever somebody makes in the directory is noted. */
static void use_watch(void) {
    char bytes[4096];
    ssize_t length = read(notes, bytes, sizeof bytes);
    must(length > 0 || errno == EAGAIN);
    for (ssize_t at = 0; at < length;) {
        struct inotify_event *event = (struct inotify_event *)(bytes + at);
        must(event->wd == 1 && event->mask == IN_CREATE && write(noticed, event->name, strlen(event->name)) > 0);
        at += (ssize_t)(sizeof *event + event->len);
    }
}

/* Whoever connects is greeted. */
static void greet(int at) {
    int client = accept(at, NULL, NULL);
    if (client < 0) must(errno == EAGAIN || errno == ECONNABORTED);
    if (client >= 0) must(send(client, "greetings", 9, MSG_NOSIGNAL) == 9 && close(client) == 0);
}

static void watch(int fd, uint64_t says) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = says};
    must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted) == 0);
}

static void make_sockets(void) {
    struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof local;
    int yes = 1;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    datagrams = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0);
    must(bind(listener, (struct sockaddr *)&local, sizeof local) == 0 && listen(listener, 9) == 0);
    must(bind(datagrams, (struct sockaddr *)&local, sizeof local) == 0);
    must(getsockname(listener, (struct sockaddr *)&local, &length) == 0);
    int port = open(path("port"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    must(dprintf(port, "%d\n", ntohs(local.sin_port)) > 0 && close(port) == 0);
    must(getsockname(datagrams, (struct sockaddr *)&datagrams_at, &length) == 0);
    unix_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    unix_at.sun_family = AF_UNIX;
    must(strlen(path("socket")) < sizeof unix_at.sun_path);
    strcpy(unix_at.sun_path, path("socket"));
    must(bind(unix_listener, (struct sockaddr *)&unix_at, sizeof unix_at) == 0 && listen(unix_listener, 5) == 0);
}

int main(int count, char **words) {
    begin_steps(count, words);
    must(count >= 3);
    snprintf(directory, sizeof directory, "%s", words[2]);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    must(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    must(pipe2(pipes, O_NONBLOCK | O_CLOEXEC) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0);
    must(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0);
    event = eventfd(0, EFD_NONBLOCK);
    signals = signalfd(-1, &set, SFD_NONBLOCK);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(pipes[0], 1), watch(stream[1], 10), watch(packets[1], 100), watch(event, 1000), watch(signals, 10000);
    plain = open(path("plain"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    copy = dup(plain);
    must(ftruncate(plain, 1 << 20) == 0);
    noticed = open(path("noticed"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    must(lseek(plain, 8, SEEK_SET) == 8);
    appended = open(path("appended"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    must(mkfifo(path("fifo"), 0600) == 0 && (fifo = open(path("fifo"), O_RDWR | O_CLOEXEC)) >= 0);
    must(mkdir(path("watched"), 0700) == 0 && (places = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0);
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    sealed = memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    must(write(sealed, "sealed!", 8) == 8 && fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW) == 0);
    make_sockets();
    snprintf(directory + strlen(directory), sizeof directory - strlen(directory), "/watched");
    notes = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    must(inotify_add_watch(notes, directory, IN_CREATE) == 1);
    for (uint64_t round = 1;; round++) {
        put(round);
        sleep_ms(15);
        take(round);
        use_files(round);
        use_watch();
        greet(listener), greet(unix_listener);
        step("taken");
    }
}

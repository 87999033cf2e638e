/* A process that a restore can bring back, until it is told to make something that cannot be: the name of that is a line. It
 * answers "made PROCESS OTHER" (see blocked_process.h), or "cannot", the number of the error, and why. What is made as a file is descriptor 100. At the end of its
 * input it exits with status 7. */
#include "common.h"
#include "blocked_files.h"
#include "blocked_sockets.h"
#include "blocked_process.h"

#define STATUS_AT_END 7
#define DESCRIPTOR 100

static const struct {
    const char *name;
    int (*make)(void);
} FILES[] = {
    {"userfaultfd", file_userfaultfd},
    {"io-uring", file_io_uring},
    {"perf-event", file_perf_event},
    {"bpf", file_bpf},
    {"fanotify", file_fanotify},
    {"kvm", file_kvm},
    {"tun", file_tun},
    {"device", file_device},
    {"block-device", file_block_device},
    {"terminal-master", file_terminal_master},
    {"terminal", file_terminal},
    {"message-queue", file_message_queue},
    {"secret-memory", file_secret_memory},
    {"landlock", file_landlock},
    {"mount-context", file_mount_context},
    {"namespace", file_namespace},
    {"pidfd", file_pidfd},
    {"proc", file_proc},
    {"outside-pipe", file_outside_pipe},
    {"deleted-file", file_deleted},
    {"path", file_path},
    {"lease", file_lease},
    {"signal-owner", file_signal_owner},
    {"epoll-entry", file_epoll_entry},
    {"inotify-events", file_inotify_events},
    {"inotify-watch", file_inotify_watch},
    {"seccomp-notify", file_seccomp_notify},
    {"raw-socket", socket_raw},
    {"packet-socket", socket_packet},
    {"ping-socket", socket_ping},
    {"mptcp-socket", socket_mptcp},
    {"udplite-socket", socket_udplite},
    {"sctp-socket", socket_sctp},
    {"vsock-socket", socket_vsock},
    {"alg-socket", socket_alg},
    {"xdp-socket", socket_xdp},
    {"key-socket", socket_key},
    {"netlink", socket_netlink},
    {"socket-filter", socket_filter},
    {"multicast-group", socket_multicast},
    {"udp-encapsulation", socket_udp_encapsulation},
    {"socket-namespace", socket_other_network},
    {"unix-peer", socket_unix_peer},
    {"unix-urgent", socket_unix_urgent},
    {"unix-rights", socket_unix_rights},
    {"unix-credentials", socket_unix_credentials},
    {"unix-sender", socket_unix_sender},
    {"unix-error", socket_unix_error},
    {"tcp-urgent", socket_tcp_urgent},
    {"tls-socket", socket_tls},
    {"tcp-state", socket_tcp_state},
    {"tcp-backlog", socket_tcp_backlog},
    {"unix-backlog", socket_unix_backlog},
    {"udp-corked", socket_udp_corked},
};

static const struct {
    const char *name;
    int (*make)(int *who, uint64_t *other);
} STATES[] = {
    {"namespace-mnt", process_mnt},
    {"namespace-net", process_net},
    {"namespace-ipc", process_ipc},
    {"namespace-uts", process_uts},
    {"namespace-cgroup", process_cgroup},
    {"namespace-user", process_user},
    {"namespace-pid", process_pid},
    {"namespace-time", process_time},
    {"ldt", process_ldt},
    {"io-ports", process_io_ports},
    {"aio", process_aio},
    {"syscall-dispatch", process_syscall_dispatch},
    {"cpu-timer", process_cpu_timer},
    {"traces", process_traces},
    {"shared-space", process_shared_space},
    {"semaphore-undo", process_semaphore_undo},
    {"lost-name", process_lost_name},
    {"seccomp", process_seccomp},
    {"strict", process_strict},
    {"working-directory", process_working_directory},
    {"thread-of-its-own", process_thread_of_its_own},
    {"device-mapping", process_device_mapping},
    {"huge-shared", process_huge_shared},
};

static int make_file(int (*make)(void)) {
    int file = make();
    if (file < 0 || dup2(file, DESCRIPTOR) < 0) return -1;
    close(file);
    return 0;
}

static int make(const char *name, int *who, uint64_t *other) {
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
        if (!strcmp(name, FILES[i].name)) return make_file(FILES[i].make);
    for (size_t i = 0; i < sizeof STATES / sizeof *STATES; i++)
        if (!strcmp(name, STATES[i].name)) return STATES[i].make(who, other);
    die(name);
    return -1;
}

int main(void) {
    begin();
    /* What the tests happen to have open is none of its own. */
    if (close_range(3, ~0u, 0)) die("close_range");
    ready();
    static char line[256];
    for (;;) {
        if (!fgets(line, sizeof line, stdin)) _exit(STATUS_AT_END);
        line[strcspn(line, "\n")] = 0;
        int who = getpid();
        uint64_t other = 0;
        if (make(line, &who, &other)) printf("cannot %d %s\n", errno, strerror(errno));
        else printf("made %d %llu\n", who, (unsigned long long)other);
    }
}

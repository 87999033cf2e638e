/* Sockets that cannot be brought back: each is made and returned, or -1 with errno. */
#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>

static int socket_raw(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static int socket_packet(void) { return socket(AF_PACKET, SOCK_RAW, 0); }
static int socket_ping(void) { return socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP); }
static int socket_mptcp(void) { return socket(AF_INET, SOCK_STREAM, 262); }
static int socket_udplite(void) { return socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE); }
static int socket_sctp(void) { return socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP); }
static int socket_vsock(void) { return socket(AF_VSOCK, SOCK_STREAM, 0); }
static int socket_alg(void) { return socket(AF_ALG, SOCK_SEQPACKET, 0); }
static int socket_xdp(void) { return socket(AF_XDP, SOCK_RAW, 0); }
static int socket_key(void) { return socket(AF_KEY, SOCK_RAW, 2); }
/* Messages about devices that come and go. */
static int socket_netlink(void) { return socket(AF_NETLINK, SOCK_RAW, 15); }

static int socket_filter(void) {
    struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
    struct sock_fprog program = {1, code};
    int made = socket(AF_INET, SOCK_DGRAM, 0);
    return setsockopt(made, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) ? -1 : made;
}

static int socket_multicast(void) {
    struct ip_mreqn group = {.imr_multiaddr.s_addr = inet_addr("239.1.2.3"), .imr_ifindex = 1};
    int made = socket(AF_INET, SOCK_DGRAM, 0);
    return setsockopt(made, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group) ? -1 : made;
}

static int socket_udp_encapsulation(void) {
    int made = socket(AF_INET, SOCK_DGRAM, 0), of_ipsec = 2;
    return setsockopt(made, IPPROTO_UDP, 100, &of_ipsec, sizeof of_ipsec) ? -1 : made;
}

/* Of a network that the process has left again. */
static int socket_other_network(void) {
    int own = open("/proc/self/ns/net", O_RDONLY);
    if (own < 0 || unshare(CLONE_NEWNET)) return -1;
    int made = socket(AF_INET, SOCK_DGRAM, 0);
    if (setns(own, CLONE_NEWNET)) return -1;
    close(own);
    return made;
}

/* A child has the other end. */
static int socket_unix_peer(void) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || child_that_waits() < 0) return -1;
    close(ends[1]);
    return ends[0];
}

static int socket_unix_urgent(void) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return -1;
    return send(ends[1], "!", 1, MSG_OOB) == 1 ? ends[0] : -1;
}

static int socket_unix_rights(void) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return -1;
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), &ends[1], sizeof(int));
    struct iovec bytes = {"x", 1};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    return sendmsg(ends[1], &message, 0) == 1 ? ends[0] : -1;
}

static int socket_unix_credentials(void) {
    int ends[2], on = 1;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return -1;
    if (setsockopt(ends[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on)) return -1;
    return write(ends[1], "x", 1) == 1 ? ends[0] : -1;
}

/* A datagram socket without a path, which has a name that begins with `name`. */
static int named_datagrams(const char *name, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "%s-%d", name, getpid());
    int made = socket(AF_UNIX, SOCK_DGRAM, 0);
    return bind(made, (struct sockaddr *)address, sizeof *address) ? -1 : made;
}

/* Who has sent what waits is gone. */
static int socket_unix_sender(void) {
    struct sockaddr_un address, unused;
    int receiver = named_datagrams("pagetide-receiver", &address);
    int sender = named_datagrams("pagetide-sender", &unused);
    if (sendto(sender, "x", 1, 0, (struct sockaddr *)&address, sizeof address) != 1) return -1;
    close(sender);
    return receiver;
}

/* The other end has gone without reading. */
static int socket_unix_error(void) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends)) return -1;
    if (write(ends[0], "x", 1) != 1 || write(ends[1], "y", 1) != 1) return -1;
    close(ends[1]);
    return ends[0];
}

static int listener(struct sockaddr_in *address, int backlog) {
    socklen_t length = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int made = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(made, (struct sockaddr *)address, length) || listen(made, backlog)) return -1;
    return getsockname(made, (struct sockaddr *)address, &length) ? -1 : made;
}

static int connected(const struct sockaddr_in *address, int flags) {
    int made = socket(AF_INET, SOCK_STREAM | flags, 0);
    if (connect(made, (const struct sockaddr *)address, sizeof *address) && errno != EINPROGRESS) return -1;
    return made;
}

/* A connection to a child. `own` is the end that this process has. */
static int tcp_to_a_child(int *its) {
    struct sockaddr_in address;
    int listens = listener(&address, 4);
    int own = connected(&address, 0);
    *its = accept(listens, NULL, NULL);
    close(listens);
    return *its < 0 ? -1 : own;
}

static int socket_tcp_urgent(void) {
    int its, own = tcp_to_a_child(&its);
    if (own < 0 || send(its, "!", 1, MSG_OOB) != 1 || child_that_waits() < 0) return -1;
    close(its);
    return own;
}

static int socket_tls(void) {
    int its, own = tcp_to_a_child(&its);
    if (own < 0 || setsockopt(own, IPPROTO_TCP, TCP_ULP, "tls", 3) || child_that_waits() < 0) return -1;
    close(its);
    return own;
}

/* Whoever has connected is gone already. */
static int socket_tcp_backlog(void) {
    struct sockaddr_in address;
    int listens = listener(&address, 5);
    if (listens < 0) return -1;
    int client = connected(&address, 0);
    if (client < 0) return -1;
    close(client);
    return listens;
}

static int socket_unix_backlog(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof address;
    int listens = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listens, (struct sockaddr *)&address, sizeof(sa_family_t)) || listen(listens, 5)) return -1;
    if (getsockname(listens, (struct sockaddr *)&address, &length)) return -1;
    if (connect(client, (struct sockaddr *)&address, length)) return -1;
    close(client);
    return listens;
}

static int socket_udp_corked(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(9)};
    int own = socket(AF_INET, SOCK_DGRAM, 0);
    if (connect(own, (struct sockaddr *)&address, sizeof address)) return -1;
    return send(own, "half", 4, MSG_MORE) == 4 ? own : -1;
}

/* Whoever listens accepts no more: a child, which has two connections that wait. */
static int socket_tcp_state(void) {
    struct sockaddr_in address;
    int listens = listener(&address, 0), waiting[2];
    if (listens < 0) return -1;
    for (int i = 0; i < 2; i++) waiting[i] = connected(&address, SOCK_NONBLOCK);
    int own = connected(&address, SOCK_NONBLOCK);
    if (own < 0 || child_that_waits() < 0) return -1;
    close(listens);
    for (int i = 0; i < 2; i++) close(waiting[i]);
    return own;
}

/* Who writes to memory that it was given: packets by a socket of AF_XDP, and a machine of KVM. */
#pragma once
#include "adversary_common.h"
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <linux/kvm.h>
#include <net/if.h>
#include <sys/time.h>

#ifndef AF_XDP
#define AF_XDP 44
#endif

/* --- packets --- */

enum { FRAMES = 16, OF_XDP = 283, PACKETS_MS = 20 };
static unsigned char *fill_ring, *receive_ring;
static struct xdp_mmap_offsets ring_places;

static int do_packets_close(char **words) {
    (void)words;
    if (fill_ring) munmap(fill_ring, ring_places.fr.desc + FRAMES * 8);
    if (receive_ring) munmap(receive_ring, ring_places.rx.desc + FRAMES * sizeof(struct xdp_desc));
    fill_ring = receive_ring = NULL;
    close(PROGRAM_FD);
    close(LINK_FD);
    close(MAP_FD);
    return close(PACKETS_FD);
}

static int bpf(int command, union bpf_attr *about, int as) {
    return keep((int)syscall(SYS_bpf, command, about, sizeof *about), as);
}

/* All packets of the loopback device go to the socket. */
static int redirect_packets(unsigned interface) {
    union bpf_attr about = {.map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
    if (bpf(BPF_MAP_CREATE, &about, MAP_FD) < 0) return -1;
    int key = 0, value = PACKETS_FD;
    about = (union bpf_attr){.map_fd = MAP_FD, .key = (uintptr_t)&key, .value = (uintptr_t)&value};
    if (syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &about, sizeof about)) return -1;
    struct bpf_insn code[] = {
        {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = MAP_FD},
        {0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 2, .imm = 0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
        {.code = BPF_JMP | BPF_EXIT},
    };
    about = (union bpf_attr){.prog_type = BPF_PROG_TYPE_XDP, .insns = (uintptr_t)code, .insn_cnt = 6, .license = (uintptr_t)"GPL"};
    if (bpf(BPF_PROG_LOAD, &about, PROGRAM_FD) < 0) return -1;
    about = (union bpf_attr){0};
    about.link_create.prog_fd = PROGRAM_FD;
    about.link_create.target_ifindex = interface;
    about.link_create.attach_type = BPF_XDP;
    about.link_create.flags = XDP_FLAGS_SKB_MODE;
    return bpf(BPF_LINK_CREATE, &about, LINK_FD) < 0 ? -1 : 0;
}

static int option(int name, const void *value, socklen_t length) {
    return setsockopt(PACKETS_FD, OF_XDP, name, value, length);
}

/* PAGE PAGES: a socket whose packets come there, in a network of its own. */
static int do_packets(char **words) {
    if (fcntl(PACKETS_FD, F_GETFD) >= 0) return fails(EEXIST);
    if (unshare(CLONE_NEWNET)) return -1;
    int plain = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int problem = plain < 0 || ioctl(plain, SIOCSIFFLAGS, &up);
    if (plain >= 0) close(plain);
    if (problem || keep(socket(AF_XDP, SOCK_RAW, 0), PACKETS_FD) < 0) return -1;
    struct xdp_umem_reg memory = {.addr = (uintptr_t)page(words[1]), .len = pages(words[2]), .chunk_size = PAGE};
    int count = FRAMES, flags = MAP_SHARED | MAP_POPULATE;
    socklen_t length = sizeof ring_places;
    unsigned interface = if_nametoindex("lo");
    struct sockaddr_xdp here = {.sxdp_family = AF_XDP, .sxdp_ifindex = interface, .sxdp_flags = XDP_COPY};
    if (option(XDP_UMEM_REG, &memory, sizeof memory) || option(XDP_UMEM_FILL_RING, &count, sizeof count)
        || option(XDP_UMEM_COMPLETION_RING, &count, sizeof count) || option(XDP_RX_RING, &count, sizeof count)
        || getsockopt(PACKETS_FD, OF_XDP, XDP_MMAP_OFFSETS, &ring_places, &length)) goto failed;
    void *filled = mmap(NULL, ring_places.fr.desc + FRAMES * 8, PROT_READ | PROT_WRITE, flags, PACKETS_FD, XDP_UMEM_PGOFF_FILL_RING);
    if (filled == MAP_FAILED) goto failed;
    fill_ring = filled;
    void *received = mmap(NULL, ring_places.rx.desc + FRAMES * sizeof(struct xdp_desc), PROT_READ | PROT_WRITE, flags, PACKETS_FD, XDP_PGOFF_RX_RING);
    if (received == MAP_FAILED) goto failed;
    receive_ring = received;
    if (bind(PACKETS_FD, (struct sockaddr *)&here, sizeof here)) goto failed;
    uint32_t frames = number(words[2]) < FRAMES ? (uint32_t)number(words[2]) : FRAMES - 1;
    for (uint64_t i = 0; i < frames; i++) ((uint64_t *)(fill_ring + ring_places.fr.desc))[i] = i * PAGE;
    __atomic_store_n((uint32_t *)(fill_ring + ring_places.fr.producer), frames, __ATOMIC_RELEASE);
    if (redirect_packets(interface) == 0) return 0;
failed:
    problem = errno;
    do_packets_close(NULL);
    return fails(problem);
}

/* SEED: a packet comes, and its frame is given back. */
static int do_packet(char **words) {
    if (fcntl(PACKETS_FD, F_GETFD) < 0 || !receive_ring) return fails(EBADF);
    static unsigned char text[1200];
    fill(text, sizeof text, number(words[1]));
    int from = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    uint32_t *produced = (uint32_t *)(receive_ring + ring_places.rx.producer);
    uint32_t *consumed = (uint32_t *)(receive_ring + ring_places.rx.consumer);
    uint32_t *filled = (uint32_t *)(fill_ring + ring_places.fr.producer);
    ssize_t sent = sendto(from, text, sizeof text, 0, (struct sockaddr *)&to, sizeof to);
    close(from);
    if (sent < 0) return -1;
    for (int i = 0; i < PACKETS_MS * 20 && __atomic_load_n(produced, __ATOMIC_ACQUIRE) == *consumed; i++) usleep(50);
    if (*produced == *consumed) return fails(ETIME);
    struct xdp_desc *at = (struct xdp_desc *)(receive_ring + ring_places.rx.desc) + *consumed % FRAMES;
    ((uint64_t *)(fill_ring + ring_places.fr.desc))[*filled % FRAMES] = at->addr / PAGE * PAGE;
    __atomic_store_n(consumed, *consumed + 1, __ATOMIC_RELEASE);
    __atomic_store_n(filled, *filled + 1, __ATOMIC_RELEASE);
    return 0;
}

/* --- machines --- */

static struct kvm_run *machine_run;
static size_t machine_run_length, machine_pages;
static char *machine_memory;

static int do_guest_close(char **words) {
    (void)words;
    if (machine_run) munmap(machine_run, machine_run_length);
    machine_run = NULL;
    close(PROCESSOR_FD);
    return close(MACHINE_FD);
}

/* PAGE PAGES: a machine with one processor, and this as its memory. */
static int do_guest(char **words) {
    if (fcntl(MACHINE_FD, F_GETFD) >= 0) return fails(EEXIST);
    int system = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (system < 0) return -1;
    int length = ioctl(system, KVM_GET_VCPU_MMAP_SIZE, 0);
    int made = keep(ioctl(system, KVM_CREATE_VM, 0), MACHINE_FD);
    close(system);
    machine_memory = page(words[1]);
    machine_pages = number(words[2]);
    struct kvm_userspace_memory_region memory = {.memory_size = pages(words[2]), .userspace_addr = (uintptr_t)machine_memory};
    if (made < 0) return -1;
    if (ioctl(MACHINE_FD, KVM_SET_USER_MEMORY_REGION, &memory) == 0
        && keep(ioctl(MACHINE_FD, KVM_CREATE_VCPU, 0), PROCESSOR_FD) >= 0) {
        void *at = mmap(NULL, (size_t)length, PROT_READ | PROT_WRITE, MAP_SHARED, PROCESSOR_FD, 0);
        if (at != MAP_FAILED) {
            machine_run = at;
            machine_run_length = (size_t)length;
            machine_run->kvm_valid_regs = KVM_SYNC_X86_REGS;
            return 0;
        }
    }
    int error = errno;
    do_guest_close(NULL);
    return fails(error);
}

static void out_of_time(int signal) { (void)signal; }

/* PAGE SEED: the machine stores a byte there, by code that is put into its first page. */
static int do_guest_store(char **words) {
    static __thread sigjmp_buf here;
    if (fcntl(MACHINE_FD, F_GETFD) < 0 || !machine_run) return fails(EBADF);
    uint64_t to = number(words[1]) % machine_pages * PAGE, seed = number(words[2]);
    /* mov byte [OFFSET], VALUE; hlt */
    unsigned char code[] = {0xc6, 0x06, 0, 0, (unsigned char)(seed >> 16), 0xf4};
    code[2] = (unsigned char)seed;
    code[3] = (unsigned char)(seed >> 8) & 15;
    escape = &here;
    if (sigsetjmp(here, 0)) {
        escape = NULL;
        return fails(EFAULT);
    }
    memcpy(machine_memory, code, sizeof code);
    escape = NULL;
    struct kvm_sregs special;
    struct kvm_regs registers = {.rip = 0, .rflags = 2};
    if (ioctl(PROCESSOR_FD, KVM_GET_SREGS, &special)) return -1;
    special.cs.base = special.cs.selector = 0;
    special.ds.base = to;
    if (ioctl(PROCESSOR_FD, KVM_SET_SREGS, &special) || ioctl(PROCESSOR_FD, KVM_SET_REGS, &registers)) return -1;
    /* What others store into its code it executes. */
    struct sigaction action = {.sa_handler = out_of_time};
    struct itimerval soon = {.it_value = {0, 20000}, .it_interval = {0, 20000}}, never = {0};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &soon, NULL);
    int ran = ioctl(PROCESSOR_FD, KVM_RUN, 0), error = errno;
    setitimer(ITIMER_REAL, &never, NULL);
    if (ran) return fails(error);
    return machine_run->exit_reason == KVM_EXIT_HLT ? 0 : fails(EIO);
}

#define DEVICE_VERBS \
    {"packets", do_packets}, {"packet", do_packet}, {"packets_close", do_packets_close}, \
    {"guest", do_guest}, {"guest_store", do_guest_store}, {"guest_close", do_guest_close},

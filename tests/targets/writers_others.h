/* What else writes to memory with no fault, for writers.c: packets by AF_XDP, a virtual processor of KVM, and a
 * process_vm_writev(2) of another process that has pinned its page and waits before it copies. */
#pragma once
#include "writers.h"
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>

#ifndef AF_XDP
#define AF_XDP 44
#endif

/* --- AF_XDP --- */

enum { FRAMES = 16, SOL_XDP_LEVEL = 283 };
static unsigned char *frames, *fill_ring, *receive_ring;
static struct xdp_mmap_offsets places;
static int packets;

static long bpf(int command, union bpf_attr *about) { return syscall(SYS_bpf, command, about, sizeof *about); }

/* All packets of the loopback device of a network of our own go to the socket. */
static const char *redirect_packets(unsigned interface) {
    union bpf_attr about = {.map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
    int map = (int)bpf(BPF_MAP_CREATE, &about);
    if (map < 0) return "no map of sockets";
    int key = 0;
    about = (union bpf_attr){.map_fd = (uint32_t)map, .key = (uintptr_t)&key, .value = (uintptr_t)&packets};
    if (bpf(BPF_MAP_UPDATE_ELEM, &about)) return "the socket does not go into a map";
    struct bpf_insn code[] = {
        {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map},
        {0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 2, .imm = 0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
        {.code = BPF_JMP | BPF_EXIT},
    };
    about = (union bpf_attr){.prog_type = BPF_PROG_TYPE_XDP, .insns = (uintptr_t)code, .insn_cnt = 6, .license = (uintptr_t)"GPL"};
    int program = (int)bpf(BPF_PROG_LOAD, &about);
    if (program < 0) return "no program for packets";
    about = (union bpf_attr){0};
    about.link_create.prog_fd = (uint32_t)program;
    about.link_create.target_ifindex = interface;
    about.link_create.attach_type = BPF_XDP;
    about.link_create.flags = XDP_FLAGS_SKB_MODE;
    return bpf(BPF_LINK_CREATE, &about) < 0 ? "the program cannot be attached" : NULL;
}

static const char *make_packets(void) {
    packets = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (packets < 0) return "the kernel has no AF_XDP";
    close(packets);
    if (unshare(CLONE_NEWNET)) return "no network of its own";
    int plain = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    if (plain < 0 || ioctl(plain, SIOCSIFFLAGS, &up)) return strerror(errno);
    packets = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    frames = from_pool(FRAMES * PAGE);
    memset(frames, 1, FRAMES * PAGE);
    struct xdp_umem_reg memory = {.addr = (uintptr_t)frames, .len = FRAMES * PAGE, .chunk_size = PAGE};
    int count = FRAMES;
    socklen_t length = sizeof places;
    if (setsockopt(packets, SOL_XDP_LEVEL, XDP_UMEM_REG, &memory, sizeof memory)
        || setsockopt(packets, SOL_XDP_LEVEL, XDP_UMEM_FILL_RING, &count, sizeof count)
        || setsockopt(packets, SOL_XDP_LEVEL, XDP_UMEM_COMPLETION_RING, &count, sizeof count)
        || setsockopt(packets, SOL_XDP_LEVEL, XDP_RX_RING, &count, sizeof count)
        || getsockopt(packets, SOL_XDP_LEVEL, XDP_MMAP_OFFSETS, &places, &length)) return strerror(errno);
    int flags = MAP_SHARED | MAP_POPULATE;
    fill_ring = mmap(NULL, places.fr.desc + FRAMES * 8, PROT_READ | PROT_WRITE, flags, packets, XDP_UMEM_PGOFF_FILL_RING);
    receive_ring = mmap(NULL, places.rx.desc + FRAMES * sizeof(struct xdp_desc), PROT_READ | PROT_WRITE, flags, packets, XDP_PGOFF_RX_RING);
    if (fill_ring == MAP_FAILED || receive_ring == MAP_FAILED) return strerror(errno);
    unsigned interface = if_nametoindex("lo");
    struct sockaddr_xdp here = {.sxdp_family = AF_XDP, .sxdp_ifindex = interface, .sxdp_flags = XDP_COPY};
    if (bind(packets, (struct sockaddr *)&here, sizeof here)) return strerror(errno);
    for (uint64_t i = 0; i < FRAMES - 1; i++) ((uint64_t *)(fill_ring + places.fr.desc))[i] = i * PAGE;
    __atomic_store_n((uint32_t *)(fill_ring + places.fr.producer), FRAMES - 1, __ATOMIC_RELEASE);
    return redirect_packets(interface);
}

static const char *send_packet(void) {
    static unsigned char text[900];
    memset(text, ++text[0], sizeof text);
    int from = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    volatile uint32_t *produced = (uint32_t *)(receive_ring + places.rx.producer);
    uint32_t before = *produced;
    if (sendto(from, text, sizeof text, 0, (struct sockaddr *)&to, sizeof to) < 0) return strerror(errno);
    close(from);
    for (int i = 0; i < 10000 && __atomic_load_n(produced, __ATOMIC_ACQUIRE) == before; i++) usleep(1000);
    if (*produced == before) return "no packet came";
    /* Its frame is given back, for another packet. */
    uint32_t *filled = (uint32_t *)(fill_ring + places.fr.producer), *taken = (uint32_t *)(receive_ring + places.rx.consumer);
    struct xdp_desc *at = (struct xdp_desc *)(receive_ring + places.rx.desc) + before % FRAMES;
    ((uint64_t *)(fill_ring + places.fr.desc))[*filled % FRAMES] = at->addr / PAGE * PAGE;
    __atomic_store_n(taken, before + 1, __ATOMIC_RELEASE);
    __atomic_store_n(filled, *filled + 1, __ATOMIC_RELEASE);
    return NULL;
}

/* --- KVM --- */

static int processor;
static struct kvm_run *run;

static const char *make_processor(void) {
    int system = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (system < 0) return "the machine has no KVM";
    int machine = ioctl(system, KVM_CREATE_VM, 0);
    if (machine < 0) return "the machine has no KVM";
    processor = ioctl(machine, KVM_CREATE_VCPU, 0);
    int length = ioctl(system, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (processor < 0 || length < 0) return strerror(errno);
    run = mmap(NULL, (size_t)length, PROT_READ | PROT_WRITE, MAP_SHARED, processor, 0);
    if (run == MAP_FAILED) return strerror(errno);
    run->immediate_exit = 1;
    run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    return NULL;
}

/* The kernel tells the registers there, and nobody stores to it. */
static const char *run_processor(void) {
    struct kvm_regs registers;
    if (ioctl(processor, KVM_GET_REGS, &registers)) return strerror(errno);
    registers.rax += 1;
    if (ioctl(processor, KVM_SET_REGS, &registers)) return strerror(errno);
    ioctl(processor, KVM_RUN, 0);
    return run->s.regs.regs.rax == registers.rax ? NULL : "it has told nothing";
}

/* --- a call of another process --- */

static unsigned char *written, *source;
static pid_t owner;
static int fault = -1;

static void *call(void *nothing) {
    (void)nothing;
    struct iovec from = {source, PAGE}, to = {written + 3 * PAGE, PAGE};
    if (process_vm_writev(owner, &from, 1, &to, 1, 0) != (ssize_t)PAGE) _exit(1);
    return NULL;
}

/* In the child, turn by turn: begins a call that waits for its own memory when it has pinned ours; lets it go on. */
static const char *child_calls(void) {
    static pthread_t caller;
    static unsigned char turn;
    if (turn++ % 2 == 0) {
        source = map_anonymous(PAGE);
        fault = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
        struct uffdio_api version = {.api = UFFD_API};
        struct uffdio_register range = {{(uintptr_t)source, PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
        if (fault < 0 || ioctl(fault, UFFDIO_API, &version) || ioctl(fault, UFFDIO_REGISTER, &range)) return "no userfaultfd";
        if (pthread_create(&caller, NULL, call, NULL)) return "no thread";
        struct pollfd waits = {.fd = fault, .events = POLLIN};
        return poll(&waits, 1, 10000) == 1 ? NULL : "the call does not wait";
    }
    unsigned char page[PAGE];
    memset(page, turn, PAGE);
    struct uffdio_copy copy = {.dst = (uintptr_t)source, .src = (uintptr_t)page, .len = PAGE};
    if (ioctl(fault, UFFDIO_COPY, &copy)) return strerror(errno);
    pthread_join(caller, NULL);
    close(fault);
    return NULL;
}

static const char *make_late_call(void) {
    written = from_pool(8 * PAGE);
    memset(written, 1, 8 * PAGE);
    owner = getpid();
    const char *problem = start_child(child_calls);
    return problem ? problem : order_child();
}

static const char *begin_late_call(void) { return order_child(); }
static const char *let_it_arrive(void) { return order_child(); }

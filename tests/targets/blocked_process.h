/* What a process is in, or has, that cannot be brought back: each is made, and -1 with errno says that it cannot. `*who` is the
 * process that it is of, if it is a child; `*other` is a number for what it is called by, if that is none of the process. */
#include <asm/ldt.h>
#include <linux/aio_abi.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/sem.h>
#include <sys/io.h>
#include <sys/ptrace.h>
#include <time.h>

#define UNUSED __attribute__((unused))

static int new_namespace(int kind) { return unshare(kind); }
static int process_mnt(UNUSED int *who, UNUSED uint64_t *other) { return new_namespace(CLONE_NEWNS); }
static int process_net(UNUSED int *who, UNUSED uint64_t *other) { return new_namespace(CLONE_NEWNET); }
static int process_ipc(UNUSED int *who, UNUSED uint64_t *other) { return new_namespace(CLONE_NEWIPC); }
static int process_uts(UNUSED int *who, UNUSED uint64_t *other) { return new_namespace(CLONE_NEWUTS); }
static int process_cgroup(UNUSED int *who, UNUSED uint64_t *other) { return new_namespace(CLONE_NEWCGROUP); }
static int process_user(UNUSED int *who, UNUSED uint64_t *other) { return new_namespace(CLONE_NEWUSER); }

/* It is for children. */
static int process_pid(int *who, UNUSED uint64_t *other) {
    return new_namespace(CLONE_NEWPID) || (*who = child_that_waits()) < 0 ? -1 : 0;
}

/* It is for children, and was not entered. */
static int process_time(UNUSED int *who, UNUSED uint64_t *other) { return new_namespace(0x80 /* CLONE_NEWTIME */); }

static int process_ldt(UNUSED int *who, UNUSED uint64_t *other) {
    struct user_desc segment = {.entry_number = 3, .limit = 1, .seg_32bit = 1};
    return syscall(SYS_modify_ldt, 1, &segment, sizeof segment) ? -1 : 0;
}

static int process_io_ports(UNUSED int *who, UNUSED uint64_t *other) { return ioperm(0x80, 1, 1); }

static int process_aio(UNUSED int *who, UNUSED uint64_t *other) {
    aio_context_t context = 0;
    return (int)syscall(SYS_io_setup, 4, &context);
}

static int process_syscall_dispatch(UNUSED int *who, UNUSED uint64_t *other) {
    static volatile char selector;
    return prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector);
}

static int process_cpu_timer(UNUSED int *who, UNUSED uint64_t *other) {
    clockid_t clock;
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    if ((errno = clock_getcpuclockid(getppid(), &clock))) return -1;
    return timer_create(clock, &event, &timer);
}

static int process_traces(UNUSED int *who, uint64_t *other) {
    pid_t child = child_that_waits();
    *other = (uint64_t)child;
    return child < 0 || ptrace(PTRACE_SEIZE, child, 0, 0) ? -1 : 0;
}

/* A process of its own with our memory, which waits: clone(2) with CLONE_VM. */
static int that_waits(UNUSED void *nothing) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (pause()) {}
    return 0;
}

static int process_shared_space(UNUSED int *who, uint64_t *other) {
    static char stack[4 * 4096] __attribute__((aligned(16)));
    pid_t child = clone(that_waits, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    *other = (uint64_t)child;
    return child < 0 ? -1 : 0;
}

/* A mapped file that has lost the name it was mapped by, and has one in another directory. */
static int process_lost_name(UNUSED int *who, uint64_t *other) {
    int file = open("first", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, PAGE)) return -1;
    char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (at == MAP_FAILED || close(file)) return -1;
    *at = 1;
    *other = (uint64_t)(uintptr_t)at;
    return mkdir("elsewhere", 0700) || link("first", "elsewhere/second") || unlink("first") ? -1 : 0;
}

static int process_semaphore_undo(UNUSED int *who, UNUSED uint64_t *other) {
    int set = semget(IPC_PRIVATE, 1, 0600);
    struct sembuf up = {0, 1, SEM_UNDO};
    return set < 0 ? -1 : semop(set, &up, 1);
}

/* A filter that allows everything. */
static int filter(unsigned flags) {
    struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static int process_seccomp(UNUSED int *who, UNUSED uint64_t *other) { return filter(0); }
static int file_seccomp_notify(void) { return filter(SECCOMP_FILTER_FLAG_NEW_LISTENER); }

static int process_working_directory(UNUSED int *who, UNUSED uint64_t *other) {
    return mkdir("away", 0700) || chdir("away") || rmdir("../away") ? -1 : 0;
}

static _Atomic uint64_t lone_thread;

static void *goes_its_own_way(void *unused) {
    int result = unshare(CLONE_FILES) || unshare(CLONE_FS);
    lone_thread = result ? UINT64_MAX : (uint64_t)syscall(SYS_gettid);
    for (;;) pause();
    return unused;
}

static int process_thread_of_its_own(UNUSED int *who, uint64_t *other) {
    pthread_t thread;
    if ((errno = pthread_create(&thread, NULL, goes_its_own_way, NULL))) return -1;
    while (!lone_thread) usleep(500);
    *other = lone_thread;
    return lone_thread == UINT64_MAX ? -1 : 0;
}

static int process_device_mapping(UNUSED int *who, uint64_t *other) {
    int counter = file_perf_event();
    if (counter < 0) return -1;
    void *at = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, counter, 0);
    close(counter);
    *other = (uint64_t)at;
    return at == MAP_FAILED ? -1 : 0;
}

static int process_huge_shared(UNUSED int *who, uint64_t *other) {
    int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE;
    void *at = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, flags, -1, 0);
    *other = (uint64_t)at;
    return at == MAP_FAILED ? -1 : 0;
}

/* It may read and write afterwards, and no more. */
static int process_strict(UNUSED int *who, UNUSED uint64_t *other) {
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
}

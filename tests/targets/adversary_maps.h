/* Mappings: made, replaced, moved, protected, advised, stored to. */
#pragma once
#include "adversary_common.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif
#ifndef SYS_mseal
#define SYS_mseal 462
#endif

/* KIND PAGE PAGES PROTECTION OBJECT OFFSET, at exactly this place. */
static int map_here(char **words, int how) {
    static const char *const kinds[] = {"anon", "noreserve", "populate", "locked", "growsdown", "huge",
                                        "shared", "hugetlb", "hugetlb_shared", "object", "private"};
    int kind = place(words[1], kinds, sizeof kinds / sizeof *kinds);
    if (kind < 0) unknown(words[1]);
    int flags = how, fd = -1;
    off_t offset = 0;
    switch (kind) {
    case 1: flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE; break;
    case 2: flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE; break;
    case 3: flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED; break;
    case 4: flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN; break;
    case 6: flags |= MAP_SHARED | MAP_ANONYMOUS; break;
    case 7: flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB; break;
    case 8: flags |= MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB; break;
    case 9:
    case 10:
        flags |= kind == 9 ? MAP_SHARED : MAP_PRIVATE;
        fd = OBJECT_FD + (int)number(words[5]);
        offset = (off_t)pages(words[6]);
        break;
    default: flags |= MAP_PRIVATE | MAP_ANONYMOUS; break;
    }
    void *at = mmap(page(words[2]), pages(words[3]), (int)number(words[4]), flags, fd, offset);
    if (at == MAP_FAILED) return -1;
    return kind == 5 ? madvise(at, pages(words[3]), MADV_HUGEPAGE) : 0;
}

static int do_map(char **words) { return map_here(words, MAP_FIXED_NOREPLACE); }
static int do_over(char **words) { return map_here(words, MAP_FIXED); }

static int do_again(char **words) {
    if (munmap(page(words[2]), pages(words[3]))) return -1;
    return map_here(words, MAP_FIXED_NOREPLACE);
}

static int do_unmap(char **words) { return munmap(page(words[1]), pages(words[2])); }
static int do_protect(char **words) { return mprotect(page(words[1]), pages(words[2]), (int)number(words[3])); }

static int moved(void *at) { return at == MAP_FAILED ? -1 : 0; }

/* PAGE PAGES NEW-PAGES */
static int do_resize(char **words) { return moved(mremap(page(words[1]), pages(words[2]), pages(words[3]), 0)); }

/* PAGE PAGES TO NEW-PAGES; PAGES may be 0: then a second mapping of the same shared object is made. */
static int do_move(char **words) {
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    return moved(mremap(page(words[1]), pages(words[2]), pages(words[4]), flags, page(words[3])));
}

/* PAGE PAGES TO */
static int do_dontunmap(char **words) {
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    return moved(mremap(page(words[1]), pages(words[2]), pages(words[2]), flags, page(words[3])));
}

/* Mappings that were moved to where the kernel liked. */
#define STRAYS 4
static struct { char *at; size_t length; } strays[STRAYS];

/* STRAY PAGE PAGES NEW-PAGES */
static int do_away(char **words) {
    size_t i = number(words[1]) % STRAYS;
    char *at = mremap(page(words[2]), pages(words[3]), pages(words[4]), MREMAP_MAYMOVE);
    if (at == MAP_FAILED) return -1;
    if (at == page(words[2])) return 0; /* it had room */
    if (strays[i].length) munmap(strays[i].at, strays[i].length);
    strays[i].at = at;
    strays[i].length = pages(words[4]);
    return 0;
}

/* STRAY TO */
static int do_back(char **words) {
    size_t i = number(words[1]) % STRAYS, length = strays[i].length;
    if (!length) return fails(ENOENT);
    if (moved(mremap(strays[i].at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, page(words[2])))) return -1;
    strays[i].length = 0;
    return 0;
}

/* STRAY SEED HOW */
static int do_store_away(char **words) {
    size_t i = number(words[1]) % STRAYS;
    if (!strays[i].length) return fails(ENOENT);
    size_t at = number(words[2]) % (strays[i].length / PAGE) * PAGE;
    return store_pages(strays[i].at + at, PAGE, number(words[2]), number(words[3]));
}

/* True for memory of a file over which a userfaultfd may keep watch: a private mapping, or any as long as we have one
 * of our own. Kernels are known in which calls on such memory hang, so they are not made there. */
static int may_hang(char *at, size_t length) {
    static char text[1 << 18];
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t held = 0;
    for (ssize_t got; (got = read(fd, text + held, sizeof text - 1 - held)) > 0;) held += (size_t)got;
    close(fd);
    text[held] = 0;
    for (char *rest = text, *line; (line = strtok_r(rest, "\n", &rest));) {
        unsigned long start, end, inode;
        char sharing;
        if (sscanf(line, "%lx-%lx %*3c%c %*s %*s %lu", &start, &end, &sharing, &inode) == 4 && inode &&
            (sharing == 'p' || fcntl(UFFD_FD, F_GETFD) >= 0) && start < (uintptr_t)at + length && end > (uintptr_t)at)
            return 1;
    }
    return 0;
}

static const struct { const char *name; int advice; } all_advice[] = {
    {"normal", 0}, {"random", 1}, {"sequential", 2}, {"willneed", 3}, {"dontneed", 4}, {"free", 8}, {"remove", 9},
    {"dontfork", 10}, {"dofork", 11}, {"mergeable", 12}, {"unmergeable", 13}, {"hugepage", 14}, {"nohugepage", 15},
    {"dontdump", 16}, {"dodump", 17}, {"wipeonfork", 18}, {"keeponfork", 19}, {"cold", 20}, {"pageout", 21},
    {"populate_read", 22}, {"populate_write", 23}, {"dontneed_locked", 24}, {"collapse", 25},
    {"guard_install", 102}, {"guard_remove", 103}};

static int advice_by_name(const char *name) {
    for (size_t i = 0; i < sizeof all_advice / sizeof *all_advice; i++)
        if (!strcmp(all_advice[i].name, name)) return all_advice[i].advice;
    unknown(name);
}

/* ADVICE PAGE PAGES */
static int do_advise(char **words) {
    char *at = page(words[2]);
    int advice = advice_by_name(words[1]);
    if (advice == 102 && may_hang(at, pages(words[3]))) return fails(EOPNOTSUPP);
    return madvise(at, pages(words[3]), advice);
}

/* The same by process_madvise(2), for the first process: from a child, this is advice by another process. */
static int do_advise_main(char **words) {
    int advice = advice_by_name(words[1]);
    int pidfd = (int)syscall(SYS_pidfd_open, main_pid, 0);
    if (pidfd < 0) return -1;
    struct iovec range = {page(words[2]), pages(words[3])};
    int result = done(syscall(SYS_process_madvise, pidfd, &range, 1ul, advice, 0));
    int error = errno;
    close(pidfd);
    errno = error;
    return result;
}

/* PAGE PAGES SEED HOW */
static int do_write(char **words) { return store_pages(page(words[1]), pages(words[2]), number(words[3]), number(words[4])); }
static int do_read(char **words) { return load_pages(page(words[1]), pages(words[2])); }

static int lock_pages(char *at, size_t length, unsigned flags) {
    return may_hang(at, length) ? fails(EOPNOTSUPP) : mlock2(at, length, flags);
}

static int do_lock(char **words) { return lock_pages(page(words[1]), pages(words[2]), 0); }
static int do_lock_onfault(char **words) { return lock_pages(page(words[1]), pages(words[2]), MLOCK_ONFAULT); }
static int do_unlock(char **words) { return munlock(page(words[1]), pages(words[2])); }
static int do_sync(char **words) { return msync(page(words[1]), pages(words[2]), MS_SYNC); }
static int do_seal(char **words) { return done(syscall(SYS_mseal, page(words[1]), pages(words[2]), 0)); }

/* PAGE PAGES OBJECT-PAGE */
static int do_file_pages(char **words) { return remap_file_pages(page(words[1]), pages(words[2]), 0, number(words[3]), 0); }

static int do_name(char **words) {
    return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, page(words[1]), pages(words[2]), words[3]);
}
static int do_merge_all(char **words) { return prctl(PR_SET_MEMORY_MERGE, number(words[1]), 0ul, 0ul, 0ul); }
static int do_thp_disable(char **words) { return prctl(PR_SET_THP_DISABLE, number(words[1]), 0ul, 0ul, 0ul); }

/* PAGE PAGES POLICY: 0 default, 1 preferred, 2 bind, 3 interleave; pages that are there are moved. */
static int do_mbind(char **words) {
    unsigned long nodes = 1, policy = number(words[3]);
    unsigned long count = policy ? 64 : 0;
    return done(syscall(SYS_mbind, page(words[1]), pages(words[2]), policy, policy ? &nodes : NULL, count, 2 /* MOVE */));
}

/* PAGE PAGES NODE */
static int do_move_pages(char **words) {
    void *addresses[64];
    int nodes[64], status[64];
    size_t count = number(words[2]) < 64 ? number(words[2]) : 64;
    for (size_t i = 0; i < count; i++) {
        addresses[i] = page(words[1]) + i * PAGE;
        nodes[i] = (int)number(words[3]);
    }
    return done(syscall(SYS_move_pages, 0, count, addresses, nodes, status, 2 /* MOVE */));
}

/* The program break, as far as malloc has not moved it. */
static char *heap_start, *heap_end;

/* SIGN PAGES: so many pages more, or with sign 0 less. */
static int do_brk(char **words) {
    if (!heap_start) heap_start = heap_end = sbrk(0);
    if (sbrk(0) != heap_end) return fails(EBUSY);
    intptr_t change = number(words[1]) ? (intptr_t)pages(words[2]) : -(intptr_t)pages(words[2]);
    if (heap_end + change < heap_start || heap_end + change > heap_start + 64 * PAGE) return fails(ERANGE);
    if (sbrk(change) == (void *)-1) return -1;
    heap_end += change;
    return 0;
}

/* PAGE SEED HOW: counted downwards from the break. */
static int do_write_heap(char **words) {
    char *at = heap_end - pages(words[1]) - PAGE;
    if (sbrk(0) != heap_end || at < heap_start) return fails(EFAULT);
    return store_pages(at, PAGE, number(words[2]), number(words[3]));
}

static __attribute__((noinline)) int descend(uint64_t depth, uint64_t value) {
    volatile char here[3500];
    for (size_t at = 0; at < sizeof here; at += 512) here[at] = (char)(value + at);
    return depth ? descend(depth - 1, value + 1) + here[512] : here[0];
}

/* PAGES SEED: the stack grows by so many. */
static int do_stack(char **words) {
    descend(number(words[1]), number(words[2]));
    return 0;
}

#define MAPS_VERBS \
    {"map", do_map}, {"over", do_over}, {"again", do_again}, {"unmap", do_unmap}, {"protect", do_protect}, \
    {"resize", do_resize}, {"move", do_move}, {"dontunmap", do_dontunmap}, {"away", do_away}, {"back", do_back}, \
    {"store_away", do_store_away}, {"advise", do_advise}, {"advise_main", do_advise_main}, {"write", do_write}, \
    {"read", do_read}, {"lock", do_lock}, {"lock_onfault", do_lock_onfault}, {"unlock", do_unlock}, {"sync", do_sync}, \
    {"seal", do_seal}, {"file_pages", do_file_pages}, {"name", do_name}, {"merge_all", do_merge_all}, \
    {"thp_disable", do_thp_disable}, {"mbind", do_mbind}, {"move_pages", do_move_pages}, {"brk", do_brk}, \
    {"write_heap", do_write_heap}, {"stack", do_stack},

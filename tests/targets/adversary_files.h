/* Shared objects: made, written to, cut, punched, by system calls and not through a mapping. */
#pragma once
#include "adversary_common.h"
#include <sys/ipc.h>
#include <sys/sendfile.h>

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4
#endif

static int object(const char *word) { return OBJECT_FD + (int)(number(word) % OBJECTS); }

static int new_file(const char *directory) {
    static unsigned serial;
    char path[512];
    snprintf(path, sizeof path, "%s/adversary-%d-%u", directory, getpid(), serial++);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) unlink(path);
    return fd;
}

static int write_page(int fd, uint64_t at, uint64_t seed, size_t length) {
    char bytes[PAGE];
    fill(bytes, PAGE, seed);
    ssize_t written = pwrite(fd, bytes, length, (off_t)at);
    return written < 0 ? -1 : 0;
}

/* KIND OBJECT PAGES SEED: two of three pages have content. */
static int do_object(char **words) {
    static const char *const kinds[] = {"memfd", "tmpfs", "disk", "hugetlb"};
    int fd;
    switch (place(words[1], kinds, 4)) {
    case 0: fd = memfd_create("adversary", MFD_CLOEXEC); break;
    case 1: fd = new_file(arguments[2]); break;
    case 2: fd = new_file(arguments[1]); break;
    default: fd = memfd_create("adversary", MFD_CLOEXEC | MFD_HUGETLB); break;
    }
    if (fd < 0) return -1;
    size_t length = pages(words[3]);
    uint64_t seed = number(words[4]);
    int result = ftruncate(fd, (off_t)length);
    for (size_t at = 0; result == 0 && at < length && strcmp(words[1], "hugetlb"); at += PAGE)
        if ((seed + at / PAGE) % 3) result = write_page(fd, at, seed + at, PAGE);
    if (result) {
        int error = errno;
        close(fd);
        return fails(error);
    }
    return keep(fd, object(words[2])) < 0 ? -1 : 0;
}

/* OBJECT FILE: a file that was there before, for reading alone. */
static int do_open(char **words) {
    char path[512];
    snprintf(path, sizeof path, "%s/prepared-%s", arguments[1], words[2]);
    return keep(open(path, O_RDONLY | O_CLOEXEC), object(words[1])) < 0 ? -1 : 0;
}

static int do_close(char **words) { return close(object(words[1])); }

/* OBJECT PAGE SEED LENGTH */
static int do_pwrite(char **words) { return write_page(object(words[1]), pages(words[2]), number(words[3]), 1 + number(words[4]) % PAGE); }

/* OBJECT BYTES */
static int do_truncate(char **words) { return ftruncate(object(words[1]), (off_t)number(words[2])); }

/* MODE OBJECT PAGE PAGES */
static int do_allocate(char **words) {
    static const char *const modes[] = {"punch", "zero", "keep", "collapse", "insert"};
    static const int flags[] = {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_KEEP_SIZE, FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE};
    int mode = place(words[1], modes, 5);
    if (mode < 0) return fails(EINVAL);
    return fallocate(object(words[2]), flags[mode], (off_t)pages(words[3]), (off_t)pages(words[4]));
}

/* FROM PAGE TO PAGE PAGES */
static int do_copy_range(char **words) {
    off_t from = (off_t)pages(words[2]), to = (off_t)pages(words[4]);
    return done(copy_file_range(object(words[1]), &from, object(words[3]), &to, pages(words[5]), 0));
}

/* FROM PAGE TO PAGES: to where the position of TO is, from its start on when at its end. */
static int do_sendfile(char **words) {
    off_t from = (off_t)pages(words[2]);
    int to = object(words[3]);
    lseek(to, (off_t)pages(words[5]), SEEK_SET);
    return done(sendfile(to, object(words[1]), &from, pages(words[4])));
}

static int do_fsync(char **words) { return fsync(object(words[1])); }
static int do_drop_cache(char **words) { return posix_fadvise(object(words[1]), 0, 0, POSIX_FADV_DONTNEED) ? fails(EBADF) : 0; }

/* System V segments go when nothing has them attached. */
static int segments[OBJECTS];

/* OBJECT PAGE PAGES: a new segment, attached. */
static int do_segment(char **words) {
    int id = shmget(IPC_PRIVATE, pages(words[3]), IPC_CREAT | 0600);
    if (id < 0) return -1;
    void *at = shmat(id, page(words[2]), SHM_REMAP);
    int error = errno;
    shmctl(id, IPC_RMID, NULL);
    if (at == (void *)-1) return fails(error);
    segments[number(words[1]) % OBJECTS] = id + 1;
    return 0;
}

/* OBJECT PAGE */
static int do_attach(char **words) {
    int id = segments[number(words[1]) % OBJECTS] - 1;
    if (id < 0) return fails(ENOENT);
    return shmat(id, page(words[2]), SHM_REMAP) == (void *)-1 ? -1 : 0;
}

static int do_detach(char **words) { return shmdt(page(words[1])); }

#define FILES_VERBS \
    {"object", do_object}, {"open", do_open}, {"close", do_close}, {"pwrite", do_pwrite}, {"truncate", do_truncate}, \
    {"allocate", do_allocate}, {"copy_range", do_copy_range}, {"sendfile", do_sendfile}, {"fsync", do_fsync}, \
    {"drop_cache", do_drop_cache}, {"segment", do_segment}, {"attach", do_attach}, {"detach", do_detach},

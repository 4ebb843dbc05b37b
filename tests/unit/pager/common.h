/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the tests of sf-pager share: made-up guest memory, clones that map a cache with a real userfaultfd. */
#ifndef TEST_PAGER_COMMON_H
#define TEST_PAGER_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sfvmm/wire/page_run.h"

#define TEST_PAGES  4096u /* of a block */
#define TEST_LENGTH ((guint64)TEST_PAGES * SF_PAGE_SIZE)

/* Every page says which it is; pages 512..1023 and each 64th are absent: zero. */
static inline gboolean test_page_is_zero(guint page)
{
    return (page >= 512 && page < 1024) || page % 64 == 63;
}

static inline void test_fill_page(guint64 *words, guint page)
{
    for (guint i = 0; i < SF_PAGE_SIZE / sizeof(*words); i++) {
        words[i] = test_page_is_zero(page) ? 0 : (guint64)page << 32 | (i * 2654435761u);
    }
}

static inline gboolean test_page_is_right(const void *bytes, guint page)
{
    guint64 expected[SF_PAGE_SIZE / sizeof(guint64)];

    test_fill_page(expected, page);
    return memcmp(bytes, expected, sizeof(expected)) == 0;
}

static inline int test_memory_new(void)
{
    guint64 words[SF_PAGE_SIZE / sizeof(guint64)];
    int fd = memfd_create("test", MFD_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, TEST_LENGTH), ==, 0);
    for (guint page = 0; page < TEST_PAGES; page++) {
        test_fill_page(words, page);
        if (!test_page_is_zero(page)) {
            g_assert_cmpint(pwrite(fd, words, sizeof(words), (off_t)page * SF_PAGE_SIZE), ==, sizeof(words));
        }
    }
    return fd;
}

/* The runs that are not zero. */
static inline GArray *test_present_runs(void)
{
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(SfRun));

    for (guint page = 0; page < TEST_PAGES; page++) {
        if (test_page_is_zero(page)) {
            continue;
        }
        SfRun run = { .offset = (guint64)page * SF_PAGE_SIZE };
        while (page < TEST_PAGES && !test_page_is_zero(page)) {
            page++;
        }
        run.length = (guint64)page * SF_PAGE_SIZE - run.offset;
        g_array_append_val(runs, run);
    }
    return runs;
}

/* One "VM": a private mapping of the cache with a userfaultfd over all of it. */
typedef struct {
    int uffd;
    char *memory;
} TestClone;

/* FALSE: this machine lets us have none. */
static inline gboolean test_clone_new(TestClone *clone, int cache_fd)
{
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
    struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_MISSING };
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

    clone->uffd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
                              : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (device >= 0) {
        close(device);
    }
    if (clone->uffd < 0) {
        return FALSE;
    }
    g_assert_cmpint(ioctl(clone->uffd, UFFDIO_API, &api), ==, 0);
    clone->memory = mmap(NULL, TEST_LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE, cache_fd, 0);
    g_assert_true(clone->memory != MAP_FAILED);
    area.range.start = (guintptr)clone->memory;
    area.range.len = TEST_LENGTH;
    g_assert_cmpint(ioctl(clone->uffd, UFFDIO_REGISTER, &area), ==, 0);
    return TRUE;
}

static inline void test_clone_free(TestClone *clone)
{
    munmap(clone->memory, TEST_LENGTH);
    close(clone->uffd);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* page_store: layers, a cache's bits, and threads that look while others note. */
#include <stdlib.h>
#include <sys/stat.h>
#include "sfvmm/pager/page_store.h"
#include "tests/unit/pager/common.h"

#define PAGE(n) ((guint64)(n) * SF_PAGE_SIZE)

static int new_memfd(guint pages)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    g_assert_cmpint(ftruncate(fd, PAGE(pages)), ==, 0);
    return fd;
}

static struct sf_qc_extent *extents_new(const guint *pages, guint n)
{
    struct sf_qc_extent *extents = malloc(MAX(n, 1) * sizeof(*extents));

    for (guint i = 0; i < n; i++) { /* pairs: first page, number */
        extents[i] = (struct sf_qc_extent){ PAGE(pages[2 * i]), PAGE(pages[2 * i + 1]) };
    }
    return extents;
}

static struct page_store *store_new(struct page_block block)
{
    struct page_store *store = page_store_new();
    struct page_block *blocks = malloc(sizeof(block));

    *blocks = block;
    page_store_set(store, "s-1", blocks, 1, new_memfd(1), 100);
    return store;
}

static void check_look(const struct page_store *store, guint page, guint max_pages, enum page_state state, guint pages,
                       int fd)
{
    guint64 length, fd_offset;
    int got_fd = -1;

    g_assert_cmpint(page_store_look(store, 0, PAGE(page), PAGE(max_pages), &length, &got_fd, &fd_offset), ==, state);
    g_assert_cmpuint(length, ==, PAGE(pages));
    if (state == PAGE_DATA) {
        g_assert_cmpint(got_fd, ==, fd);
        g_assert_cmpuint(fd_offset, ==, PAGE(page));
    }
}

/* base: pages 0..7 data; delta 1: 2..3 and 10..11, the last a hole; delta 2: 3..3. */
static void test_layers(void)
{
    static const guint first[] = { 2, 2, 10, 2 }, second[] = { 3, 1 };
    struct page_block block = { .id = "pc.ram", .length = PAGE(512), .base = new_memfd(512), .n_layers = 2 };
    char bytes[SF_PAGE_SIZE] = { 1 };
    struct page_store *store;
    guint64 length, offset;
    int fd;

    for (guint i = 0; i < 8; i++) {
        g_assert_cmpint(pwrite(block.base, bytes, sizeof(bytes), PAGE(i)), ==, sizeof(bytes));
    }
    block.layers[0] = (struct page_layer){ new_memfd(512), 2, extents_new(first, 2) };
    block.layers[1] = (struct page_layer){ new_memfd(512), 1, extents_new(second, 1) };
    for (guint i = 2; i <= 10; i += i == 3 ? 7 : 1) {
        g_assert_cmpint(pwrite(block.layers[0].delta, bytes, sizeof(bytes), PAGE(i)), ==, sizeof(bytes));
    }
    g_assert_cmpint(pwrite(block.layers[1].delta, bytes, sizeof(bytes), PAGE(3)), ==, sizeof(bytes));
    store = store_new(block);
    g_assert_true(page_store_is_set(store));
    g_assert_cmpint(page_store_find(store, "pc.ram"), ==, 0);
    g_assert_cmpint(page_store_find(store, "other"), ==, -1);
    g_assert_false(page_store_is_cache(store));
    g_assert_true(page_store_is_complete(store));
    check_look(store, 0, 512, PAGE_DATA, 2, block.base);
    check_look(store, 2, 512, PAGE_DATA, 1, block.layers[0].delta);
    check_look(store, 3, 512, PAGE_DATA, 1, block.layers[1].delta);
    check_look(store, 4, 512, PAGE_DATA, 6, block.base); /* so short a stretch is not searched for its holes */
    check_look(store, 8, 512, PAGE_ZERO, 2, -1);
    check_look(store, 10, 1, PAGE_DATA, 1, block.layers[0].delta);
    check_look(store, 11, 512, PAGE_ZERO, 1, -1); /* given away */
    check_look(store, 12, 512, PAGE_ZERO, 500, -1);
    g_assert_cmpint(page_store_look_layer(store, 0, 1, PAGE(3), PAGE(512), &length, &fd, &offset), ==, PAGE_DATA);
    g_assert_cmpuint(length, ==, PAGE(1));
    g_assert_cmpint(page_store_look_layer(store, 0, 2, PAGE(4), PAGE(512), &length, &fd, &offset), ==, PAGE_ZERO);
    page_store_free(store);
}

/* present: 4..67 and 100..100 of 200 pages; the memfd has page 5 already: a pager that died fetched it. */
static struct page_block cache_block(void)
{
    static const guint present[] = { 4, 64, 100, 1 };
    char bytes[SF_PAGE_SIZE] = { 1 };
    struct page_block block = { .id = "pc.ram", .length = PAGE(200), .base = new_memfd(200), .is_cache = true,
                                .n_present = 2, .present = extents_new(present, 2) };

    g_assert_cmpint(pwrite(block.base, bytes, sizeof(bytes), PAGE(5)), ==, sizeof(bytes));
    return block;
}

static void test_cache(void)
{
    struct page_block block = cache_block();
    struct page_store *store = store_new(block);
    char bytes[SF_PAGE_SIZE] = { 1 };
    guint64 start, length;

    check_look(store, 0, 200, PAGE_ZERO, 4, -1);
    check_look(store, 4, 200, PAGE_ABSENT, 1, -1);
    check_look(store, 5, 200, PAGE_DATA, 1, block.base);
    check_look(store, 6, 200, PAGE_ABSENT, 62, -1);
    check_look(store, 101, 200, PAGE_ZERO, 99, -1);
    g_assert_cmpuint(page_store_resident(store), ==, PAGE(1));
    g_assert_true(page_store_next_absent(store, 0, 0, PAGE(200), &start, &length));
    g_assert_cmpuint(start, ==, PAGE(4));
    g_assert_cmpuint(length, ==, PAGE(1));
    g_assert_true(page_store_next_absent(store, 0, PAGE(5), PAGE(16), &start, &length));
    g_assert_cmpuint(start, ==, PAGE(6));
    g_assert_cmpuint(length, ==, PAGE(16));
    g_assert_true(page_store_next_absent(store, 0, PAGE(68), PAGE(16), &start, &length));
    g_assert_cmpuint(start, ==, PAGE(100));

    g_assert_cmpuint(page_store_note(store, 0, PAGE(4), PAGE(4), false), ==, 3);
    g_assert_cmpuint(page_store_note(store, 0, PAGE(4), PAGE(4), false), ==, 0);
    g_assert_cmpuint(page_store_note(store, 0, PAGE(8), PAGE(2), true), ==, 2);
    check_look(store, 4, 200, PAGE_DATA, 4, block.base);
    check_look(store, 8, 200, PAGE_ZERO, 2, -1);
    g_assert_cmpuint(page_store_resident(store), ==, PAGE(4));

    /* Another process fills the memfd too. */
    g_assert_false(page_store_recheck(store, 0, PAGE(20)));
    g_assert_cmpint(pwrite(block.base, bytes, sizeof(bytes), PAGE(20)), ==, sizeof(bytes));
    g_assert_true(page_store_recheck(store, 0, PAGE(20)));
    g_assert_cmpint(page_store_base_state(store, 0, PAGE(20)), ==, PAGE_DATA);

    page_store_claim(store, 0, PAGE(30), PAGE(2), true);
    g_assert_true(page_store_is_claimed(store, 0, PAGE(31)));
    page_store_claim(store, 0, PAGE(30), PAGE(2), false);
    g_assert_false(page_store_is_claimed(store, 0, PAGE(31)));

    g_assert_false(page_store_is_complete(store));
    page_store_note(store, 0, PAGE(0), PAGE(200), false);
    g_assert_true(page_store_is_complete(store));
    g_assert_false(page_store_next_absent(store, 0, 0, PAGE(200), &start, &length));
    page_store_free(store);
}

/* Pages are noted from two threads, half of them by both, while a third looks: the sums come out right. */
typedef struct {
    struct page_store *store;
    guint first;
    gint *stop;
} Noter;

static gpointer note_thread(gpointer data)
{
    Noter *noter = data;

    for (guint page = noter->first; page < TEST_PAGES; page++) {
        page_store_note(noter->store, 0, PAGE(page), PAGE(1), page % 3 == 0);
    }
    return NULL;
}

static gpointer look_thread(gpointer data)
{
    Noter *noter = data;
    guint64 length, offset;
    int fd;

    while (!g_atomic_int_get(noter->stop)) {
        for (guint page = 0; page < TEST_PAGES; page++) {
            enum page_state state = page_store_look(noter->store, 0, PAGE(page), PAGE(1), &length, &fd, &offset);
            g_assert_true(state == PAGE_ABSENT || (state == PAGE_ZERO) == (page % 3 == 0));
        }
    }
    return NULL;
}

static void test_threads(void)
{
    static const guint all[] = { 0, TEST_PAGES };
    struct page_block block = { .id = "pc.ram", .length = TEST_LENGTH, .base = new_memfd(TEST_PAGES), .is_cache = true,
                                .n_present = 1, .present = extents_new(all, 1) };
    struct page_store *store = store_new(block);
    gint stop = 0;
    Noter one = { store, 0, &stop }, two = { store, TEST_PAGES / 2, &stop };
    GThread *looker = g_thread_new("look", look_thread, &one);
    GThread *noter = g_thread_new("note", note_thread, &two);

    note_thread(&one);
    g_thread_join(noter);
    g_atomic_int_set(&stop, 1);
    g_thread_join(looker);
    g_assert_true(page_store_is_complete(store));
    g_assert_cmpuint(page_store_resident(store), ==, PAGE(TEST_PAGES - (TEST_PAGES + 2) / 3));
    page_store_free(store);
}

static void nothing(void *data, int error)
{
}

static void test_fetches(void)
{
    struct page_store *store = store_new(cache_block());
    struct page_fetch *fetch;

    page_store_fetch(store, 0, PAGE(4), PAGE(2), nothing, NULL);
    page_store_fetch(store, 0, PAGE(9), PAGE(1), nothing, store);
    fetch = page_store_take_fetches(store);
    g_assert_cmpuint(fetch->offset, ==, PAGE(4));
    g_assert_true(fetch->next->data == store);
    g_assert_null(fetch->next->next);
    free(fetch->next);
    free(fetch);
    g_assert_null(page_store_take_fetches(store));
    page_store_fetch(store, 0, PAGE(4), PAGE(2), nothing, NULL); /* freed with the store */
    page_store_free(store);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/page-store/layers", test_layers);
    g_test_add_func("/page-store/cache", test_cache);
    g_test_add_func("/page-store/threads", test_threads);
    g_test_add_func("/page-store/fetches", test_fetches);
    return g_test_run();
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Page caches, and the lazy snapshots over them: what QEMU is asked to map, forks of clones, saving and recovery. */
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "sfvmm/memory/snapshot.h"
#include "sfvmm/wire/state_file.h"
#include "tests/unit/open_fds.h"

#define PAGES        65536u
#define BLOCK_LENGTH ((guint64)PAGES * SF_PAGE_SIZE)
#define STATE_LENGTH 5000u
#define PAGE(n)      ((guint64)(n) * SF_PAGE_SIZE)

static void add_run(GArray *runs, guint first, guint pages)
{
    SfRun run = { PAGE(first), PAGE(pages) };

    g_array_append_val(runs, run);
}

static SfPageCache *cache_new(const GArray *runs, GError **error)
{
    SfCachedBlockSpec spec = { .id = "pc.ram", .length = BLOCK_LENGTH, .present = runs };

    return sf_page_cache_new(&spec, 1, SF_AVOID_ALL, error);
}

static void test_cache(void)
{
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    guint fds_before = count_open_fds();
    g_autoptr(GError) error = NULL;
    char byte = 1;

    add_run(runs, 0, 4);
    add_run(runs, 8, 2);    /* a small gap before it: closed for QEMU */
    add_run(runs, 1000, 1); /* a big one */
    SfPageCache *cache = cache_new(runs, &error);
    g_assert_no_error(error);
    const SfCachedBlock *block = &cache->blocks[0];
    g_assert_cmpuint(block->n_present, ==, 3);
    g_assert_cmpuint(block->n_mapped, ==, 2);
    g_assert_cmpuint(sf_page_cache_present_bytes(cache), ==, PAGE(7));
    g_assert_cmpuint(sf_page_cache_free_bytes(cache), ==, BLOCK_LENGTH - PAGE(7));
    g_assert_cmpuint(sf_page_cache_resident_bytes(cache), ==, 0);
    g_assert_cmpint(pwrite(block->memory, &byte, 1, PAGE(1)), ==, 1);
    g_assert_cmpuint(sf_page_cache_resident_bytes(cache), ==, PAGE(1));
    g_assert_cmpint(pwrite(block->memory_ro, &byte, 1, 0), ==, -1);
    g_assert_cmpint(ftruncate(block->memory, 0), ==, -1); /* or clones would die of SIGBUS */

    SfCachedBlock kept = { .id = "pc.ram", .length = BLOCK_LENGTH, .n_present = block->n_present,
                           .memory = fcntl(block->memory, F_DUPFD_CLOEXEC, 0),
                           .present = fcntl(block->present, F_DUPFD_CLOEXEC, 0) };
    SfPageCache *again = sf_page_cache_new_from_fds(&kept, 1, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(sf_page_cache_present_bytes(again), ==, PAGE(7));
    g_assert_cmpuint(again->blocks[0].n_mapped, ==, 2);
    sf_page_cache_unref(again);
    sf_page_cache_unref(cache);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
}

/* More runs than QEMU can map: gaps are closed until they fit; what is present stays exact. */
static void test_many_runs(void)
{
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    g_autoptr(SfPageCache) cache = NULL;

    for (guint page = 0; page < PAGES; page += 18) { /* gaps of 17 pages are not small */
        add_run(runs, page, 1);
    }
    g_assert_cmpuint(runs->len, <, SF_QC_MAX_PRESENT);
    cache = cache_new(runs, NULL);
    g_assert_cmpuint(cache->blocks[0].n_mapped, ==, runs->len);
    sf_page_cache_unref(g_steal_pointer(&cache));

    g_array_set_size(runs, 0);
    for (guint page = 0; page < PAGES; page += 2) {
        add_run(runs, page, 1);
    }
    cache = cache_new(runs, NULL);
    g_assert_cmpuint(cache->blocks[0].n_present, ==, PAGES / 2);
    g_assert_cmpuint(cache->blocks[0].n_mapped, ==, 1);
}

static void test_refused(void)
{
    guint fds_before = count_open_fds();
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    g_autoptr(GError) error = NULL;
    SfCachedBlock kept = { .id = "pc.ram", .length = BLOCK_LENGTH, .memory = memfd_create("short", MFD_CLOEXEC),
                           .present = memfd_create("present", MFD_CLOEXEC) };

    add_run(runs, PAGES - 1, 2); /* beyond the end */
    g_assert_null(cache_new(runs, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_clear_error(&error);
    g_array_set_size(runs, 0);
    add_run(runs, 5, 1);
    add_run(runs, 4, 1);
    g_assert_null(cache_new(runs, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_clear_error(&error);
    g_assert_null(sf_page_cache_new_from_fds(&kept, 1, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
}

static SfSnapshot *lazy_snapshot(SfRamBase *base, SfPageCache *cache)
{
    g_autofree char *state = g_malloc0(STATE_LENGTH);
    g_autoptr(GBytes) bytes = g_bytes_new(state, STATE_LENGTH);
    g_autoptr(GError) error = NULL;
    SfSnapshot *snapshot = sf_snapshot_new_cached("s-1", base, cache, bytes, 100, &error);

    g_assert_no_error(error);
    return snapshot;
}

static SfPageCache *small_cache(void)
{
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));

    add_run(runs, 0, 4);
    add_run(runs, 1000, 1);
    return cache_new(runs, NULL);
}

/* A fork of a clone of it: a delta over the same cache. */
static SfSnapshot *fork_of(const SfSnapshot *parent, SfRamBase *base)
{
    struct {
        struct sf_qc_snapshot_reply reply;
        struct sf_qc_snapshot_block block;
    } payload = {
        .reply = { .state_length = STATE_LENGTH, .device_length = 100, .n_blocks = 1, .pause = 1, .at = 1 },
        .block = { .id = "pc.ram", .length = BLOCK_LENGTH, .has_delta = 1, .n_extents = 1 },
    };
    struct sf_qc_extent extent = { PAGE(2000), PAGE(3) }; /* a page of it is zero, given away */
    g_autoptr(GBytes) bytes = g_bytes_new(&payload, sizeof(payload));
    g_autoptr(GError) error = NULL;
    int fds[4] = { memfd_create("state", MFD_CLOEXEC), fcntl(parent->blocks[0].base, F_DUPFD_CLOEXEC, 0),
                   memfd_create("delta", MFD_CLOEXEC), memfd_create("extents", MFD_CLOEXEC) };

    g_assert_cmpint(ftruncate(fds[0], STATE_LENGTH), ==, 0);
    g_assert_cmpint(ftruncate(fds[2], BLOCK_LENGTH), ==, 0);
    g_assert_cmpint(pwrite(fds[2], "x", 1, PAGE(2000)), ==, 1);
    g_assert_cmpint(pwrite(fds[2], "x", 1, PAGE(2001)), ==, 1);
    g_assert_cmpint(pwrite(fds[3], &extent, sizeof(extent), 0), ==, sizeof(extent));
    SfSnapshot *snapshot = sf_snapshot_new("s-2", base, parent, bytes, fds, 4, &error);
    g_assert_no_error(error);
    return snapshot;
}

static void check_map(SfSnapshot *snapshot, guint n_layers)
{
    int fds[SF_QC_MAX_FDS];
    guint n;
    struct sf_qc_load load;
    struct sf_qc_load_block block;
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) map = sf_snapshot_map_request(snapshot, 77, fds, &n, &error);

    g_assert_no_error(error);
    g_assert_cmpuint(n, ==, 3 + 2 * n_layers);
    g_assert_cmpint(fds[0], ==, 77);
    g_assert_cmpint(fcntl(fds[1], F_GETFL) & O_ACCMODE, ==, O_RDONLY);
    g_assert_cmpint(fds[2], ==, snapshot->cache->blocks[0].mapped);
    memcpy(&load, g_bytes_get_data(map, NULL), sizeof(load));
    memcpy(&block, (const char *)g_bytes_get_data(map, NULL) + sizeof(load), sizeof(block));
    g_assert_cmpuint(load.n_blocks, ==, 1);
    g_assert_cmpuint(load.flags, ==, snapshot->cache->avoid & SF_AVOID_READ ? SF_QC_MAP_OVERWRITES : 0);
    g_assert_cmpuint(load.state_length, ==, 0);
    g_assert_cmpuint(block.flags, ==, SF_QC_BLOCK_LAZY);
    g_assert_cmpuint(block.n_present, ==, 2);
    g_assert_cmpuint(block.n_layers, ==, n_layers);

    g_autoptr(GBytes) request = sf_snapshot_load_request(snapshot, SF_QC_LOAD_MAPPED, fds, &n, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(n, ==, 1);
    g_assert_cmpuint(g_bytes_get_size(request), ==, sizeof(load));
}

static void test_snapshot(void)
{
    guint fds_before = count_open_fds();
    SfRamBase *base = sf_ram_base_new();
    SfPageCache *cache = small_cache();
    SfSnapshot *lazy = lazy_snapshot(base, cache);
    SfSnapshot *fork = fork_of(lazy, base);
    g_autoptr(GArray) runs = NULL;

    g_assert_true(sf_snapshot_is_lazy(lazy));
    g_assert_true(sf_snapshot_is_lazy(fork));
    check_map(lazy, 0);
    check_map(fork, 1);
    cache->avoid = SF_AVOID_FREE;
    check_map(fork, 1);
    /* Its page map is that of the source, not of what has arrived. */
    runs = sf_snapshot_present_runs(fork, 0, NULL);
    g_assert_cmpuint(runs->len, ==, 3);
    g_assert_cmpuint(g_array_index(runs, SfRun, 0).length, ==, PAGE(4));
    g_assert_cmpuint(g_array_index(runs, SfRun, 2).offset, ==, PAGE(2000));
    g_assert_cmpuint(g_array_index(runs, SfRun, 2).length, ==, PAGE(2));
    sf_page_cache_unref(cache);
    sf_snapshot_unref(lazy);
    sf_snapshot_unref(fork);
    g_assert_false(sf_ram_base_in_use(base));
    sf_ram_base_unref(base);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
}

/* What was never used counts as present when it is not to be avoided. */
static void test_avoid(void)
{
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    g_autoptr(GError) error = NULL;

    add_run(runs, 10, 4);
    SfCachedBlockSpec spec = { .id = "pc.ram", .length = BLOCK_LENGTH, .present = runs };
    SfPageCache *cache = sf_page_cache_new(&spec, 1, SF_AVOID_READ, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(cache->blocks[0].n_present, ==, 1);
    g_assert_cmpuint(cache->blocks[0].n_mapped, ==, 1);
    g_assert_cmpuint(sf_page_cache_present_bytes(cache), ==, BLOCK_LENGTH);
    g_assert_cmpuint(sf_page_cache_free_bytes(cache), ==, 0);
    sf_page_cache_unref(cache);
}

/* From what an sf-pager has kept: descriptors, in any order. */
static void test_recover(void)
{
    g_autofree char *directory = g_dir_make_tmp("sf-test-XXXXXX", NULL);
    SfRamBase *base = sf_ram_base_new();
    SfPageCache *cache = small_cache();
    SfSnapshot *lazy = lazy_snapshot(base, cache);
    SfSnapshot *fork = fork_of(lazy, base);
    g_autoptr(GError) error = NULL;
    int kept[2];

    g_assert_true(sf_snapshot_save(fork, directory, &error));
    g_assert_no_error(error);
    kept[0] = fcntl(fork->blocks[0].layers[0].delta, F_DUPFD_CLOEXEC, 0);
    kept[1] = fcntl(cache->blocks[0].memory, F_DUPFD_CLOEXEC, 0);
    sf_page_cache_unref(cache);
    sf_snapshot_unref(lazy);
    sf_snapshot_unref(fork);
    guint fds_before = count_open_fds();

    g_assert_null(sf_snapshot_restore_from(directory, base, NULL, 0, kept, 1, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND);
    g_clear_error(&error);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
    fork = sf_snapshot_restore_from(directory, base, NULL, 0, kept, 2, &error);
    g_assert_no_error(error);
    g_assert_true(sf_snapshot_is_lazy(fork));
    g_assert_cmpint(fcntl(fork->cache->blocks[0].memory, F_GETFL) & O_ACCMODE, ==, O_RDWR);
    check_map(fork, 1);
    sf_snapshot_unref(fork);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
    close(kept[0]);
    close(kept[1]);
    sf_ram_base_unref(base);
    sf_state_remove_folder(directory);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/page-cache/cache", test_cache);
    g_test_add_func("/page-cache/many-runs", test_many_runs);
    g_test_add_func("/page-cache/refused", test_refused);
    g_test_add_func("/page-cache/snapshot", test_snapshot);
    g_test_add_func("/page-cache/avoid", test_avoid);
    g_test_add_func("/page-cache/recover", test_recover);
    return g_test_run();
}

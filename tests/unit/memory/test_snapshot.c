/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Snapshots from made-up SNAPSHOT replies over real memfds: layers, page maps, saving, and recovery from a real
 * process. */
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "sfvmm/memory/snapshot.h"
#include "tests/unit/open_fds.h"

#define PAGES        64u
#define BLOCK_LENGTH ((guint64)PAGES * SF_PAGE_SIZE)
#define STATE_LENGTH 5000u
#define ROUNDS       200u /* of the random test */

static int new_memfd(guint64 length)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, length), ==, 0);
    return fd;
}

static int extents_memfd(const struct sf_qc_extent *extents, guint n)
{
    int fd = new_memfd(0);

    g_assert_cmpint(pwrite(fd, extents, n * sizeof(*extents), 0), ==, n * sizeof(*extents));
    return fd;
}

/* A SNAPSHOT reply of one block with a delta or without. */
static GBytes *payload_new(guint has_delta, guint n_extents)
{
    struct {
        struct sf_qc_snapshot_reply reply;
        struct sf_qc_snapshot_block block;
    } payload = {
        .reply = { .state_length = STATE_LENGTH, .device_length = 100, .n_blocks = 1, .pause = 42, .at = 1 },
        .block = { .id = "pc.ram", .length = BLOCK_LENGTH, .has_delta = has_delta, .n_extents = n_extents },
    };

    return g_bytes_new(&payload, sizeof(payload));
}

/* A snapshot with this base (a copy of it is sent); extents: of its delta (taken), NULL: no delta. */
static SfSnapshot *snapshot_new_with(SfRamBase *base, const SfSnapshot *parent, int base_fd, int delta,
                                     const struct sf_qc_extent *extents, guint n_extents, GError **error)
{
    g_autoptr(GBytes) payload = payload_new(extents != NULL, n_extents);
    int fds[4] = { new_memfd(STATE_LENGTH), fcntl(base_fd, F_DUPFD_CLOEXEC, 0) };

    if (extents) {
        fds[2] = delta;
        fds[3] = extents_memfd(extents, n_extents);
    }
    return sf_snapshot_new("s-1", base, parent, payload, fds, extents ? 4 : 2, error);
}

/* Its delta is one hole. */
static SfSnapshot *snapshot_new(SfRamBase *base, const SfSnapshot *parent, int base_fd,
                                const struct sf_qc_extent *extents, guint n_extents, GError **error)
{
    return snapshot_new_with(base, parent, base_fd, extents ? new_memfd(BLOCK_LENGTH) : -1, extents, n_extents, error);
}

static void test_life(void)
{
    guint fds_before = count_open_fds();
    int memory = new_memfd(BLOCK_LENGTH);
    SfRamBase *base = sf_ram_base_new();
    g_autoptr(GError) error = NULL;

    g_assert_false(sf_ram_base_in_use(base));
    SfSnapshot *snapshot = snapshot_new(base, NULL, memory, NULL, 0, &error);
    g_assert_no_error(error);
    g_assert_true(sf_ram_base_in_use(base));
    g_assert_cmpuint(snapshot->timing.pause, ==, 42);
    g_assert_cmpstr(snapshot->blocks[0].id, ==, "pc.ram");
    /* Writable memfds went in; only reading is possible through what it keeps. */
    g_assert_cmpint(fcntl(snapshot->blocks[0].base, F_GETFL) & O_ACCMODE, ==, O_RDONLY);
    g_assert_cmpint(fcntl(snapshot->state, F_GETFL) & O_ACCMODE, ==, O_RDONLY);

    SfSnapshot *second = sf_snapshot_ref(snapshot);
    sf_snapshot_unref(snapshot);
    g_assert_true(sf_ram_base_in_use(base));
    sf_snapshot_unref(second);
    g_assert_false(sf_ram_base_in_use(base));
    sf_ram_base_unref(base);
    close(memory);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
}

static void test_generations(void)
{
    const struct sf_qc_extent extent = { SF_PAGE_SIZE, SF_PAGE_SIZE };
    guint fds_before = count_open_fds();
    int memory = new_memfd(BLOCK_LENGTH);
    SfRamBase *base = sf_ram_base_new();
    g_autoptr(GError) error = NULL;
    SfSnapshot *last = snapshot_new(base, NULL, memory, NULL, 0, &error);
    int fds[SF_QC_MAX_FDS];
    guint n_fds;

    for (guint i = 1; i <= SF_QC_MAX_LAYERS; i++) {
        SfSnapshot *next = snapshot_new(base, last, memory, &extent, 1, &error);
        g_assert_no_error(error);
        sf_snapshot_unref(last);
        last = next;
        g_assert_cmpuint(last->blocks[0].n_layers, ==, i);

        g_autoptr(GBytes) request = sf_snapshot_load_request(last, SF_QC_LOAD_RESUME, fds, &n_fds, NULL);
        struct sf_qc_load_block block;
        g_assert_cmpuint(n_fds, ==, 2 + 2 * i);
        g_assert_cmpuint(g_bytes_get_size(request), ==, sizeof(struct sf_qc_load) + sizeof(block));
        memcpy(&block, (const char *)g_bytes_get_data(request, NULL) + sizeof(struct sf_qc_load), sizeof(block));
        g_assert_cmpuint(block.n_layers, ==, i);
        g_assert_cmpuint(block.n_extents[i - 1], ==, 1);
        g_assert_cmpint(fds[0], ==, last->state);
        g_assert_cmpint(fds[n_fds - 1], ==, last->blocks[0].layers[i - 1].extents);
    }
    g_assert_null(snapshot_new(base, last, memory, &extent, 1, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED);

    sf_snapshot_unref(last);
    g_assert_false(sf_ram_base_in_use(base));
    sf_ram_base_unref(base);
    close(memory);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
}

/* Clones that are loaded at the same time read the state from open files of their own. */
static void test_state_offsets(void)
{
    int memory = new_memfd(BLOCK_LENGTH), fds[SF_QC_MAX_FDS], first;
    SfRamBase *base = sf_ram_base_new();
    SfSnapshot *snapshot = snapshot_new(base, NULL, memory, NULL, 0, NULL);
    guint n_fds;
    char byte;

    g_autoptr(GBytes) one = sf_snapshot_load_request(snapshot, 0, fds, &n_fds, NULL);
    first = fcntl(fds[0], F_DUPFD_CLOEXEC, 0); /* as the first clone has it */
    g_autoptr(GBytes) two = sf_snapshot_load_request(snapshot, 0, fds, &n_fds, NULL);
    g_assert_true(g_bytes_equal(one, two));
    g_assert_cmpint(read(first, &byte, 1), ==, 1);
    g_assert_cmpint(lseek(first, 0, SEEK_CUR), ==, 1);
    g_assert_cmpint(lseek(fds[0], 0, SEEK_CUR), ==, 0);
    close(first);
    sf_snapshot_unref(snapshot);
    sf_ram_base_unref(base);
    close(memory);
}

static void test_lost(void)
{
    int memory = new_memfd(BLOCK_LENGTH);
    SfRamBase *base = sf_ram_base_new();
    SfSnapshot *lost = sf_snapshot_new_lost("s-0", base);
    g_autoptr(GError) error = NULL;

    g_assert_true(sf_ram_base_in_use(base));
    g_assert_null(snapshot_new(base, lost, memory, NULL, 0, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    sf_snapshot_unref(lost);
    g_assert_false(sf_ram_base_in_use(base));
    sf_ram_base_unref(base);
    close(memory);
}

static void assert_refused(SfRamBase *base, GBytes *payload, int *fds, guint n_fds)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(sf_snapshot_new("s-1", base, NULL, payload, fds, n_fds, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_assert_false(sf_ram_base_in_use(base));
}

static void test_refused(void)
{
    guint fds_before = count_open_fds();
    SfRamBase *base = sf_ram_base_new();
    g_autoptr(GBytes) plain = payload_new(0, 0);
    g_autoptr(GBytes) layered = payload_new(1, 1);
    g_autoptr(GBytes) cut = g_bytes_new_from_bytes(plain, 0, g_bytes_get_size(plain) - 1);

    assert_refused(base, cut, (int[]){ new_memfd(STATE_LENGTH), new_memfd(BLOCK_LENGTH) }, 2);
    assert_refused(base, plain, (int[]){ new_memfd(STATE_LENGTH) }, 1);
    assert_refused(base, plain, (int[]){ new_memfd(STATE_LENGTH - 1), new_memfd(BLOCK_LENGTH) }, 2);
    assert_refused(base, plain, (int[]){ new_memfd(STATE_LENGTH), new_memfd(BLOCK_LENGTH - 1) }, 2);
    assert_refused(base, plain, (int[]){ new_memfd(STATE_LENGTH), open("/dev/null", O_RDONLY | O_CLOEXEC) }, 2);
    assert_refused(base, layered,
                   (int[]){ new_memfd(STATE_LENGTH), new_memfd(BLOCK_LENGTH), new_memfd(BLOCK_LENGTH), new_memfd(0) },
                   4);
    sf_ram_base_unref(base);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
}

/*
 * Random pages written to the base, random extents in two layers, of whose pages some are holes: the runs are what a
 * simple model says.
 */
static void test_present_runs(void)
{
    for (guint round = 0; round < ROUNDS; round++) {
        gboolean model[PAGES + 1] = { FALSE };
        struct sf_qc_extent extents[PAGES];
        int memory = new_memfd(BLOCK_LENGTH);
        SfRamBase *base = sf_ram_base_new();
        g_autoptr(GError) error = NULL;

        for (guint i = 0, n = g_test_rand_int_range(0, PAGES / 2); i < n; i++) {
            guint page = g_test_rand_int_range(0, PAGES);
            g_assert_cmpint(pwrite(memory, "x", 1, page * SF_PAGE_SIZE + 17), ==, 1);
            model[page] = TRUE;
        }
        SfSnapshot *snapshot = snapshot_new(base, NULL, memory, NULL, 0, &error);
        for (guint layer = 0; layer < 2; layer++) {
            int delta = new_memfd(BLOCK_LENGTH);
            guint n = 0;
            for (guint page = g_test_rand_int_range(0, PAGES); page < PAGES;) {
                guint length = g_test_rand_int_range(1, PAGES - page + 1);
                extents[n++] = (struct sf_qc_extent){ page * SF_PAGE_SIZE, length * SF_PAGE_SIZE };
                for (guint i = page; i < page + length; i++) {
                    model[i] = g_test_rand_bit();
                    if (model[i]) {
                        g_assert_cmpint(pwrite(delta, "x", 1, i * SF_PAGE_SIZE + 17), ==, 1);
                    }
                }
                page += length + g_test_rand_int_range(0, PAGES / 4);
            }
            SfSnapshot *next = snapshot_new_with(base, snapshot, memory, delta, extents, n, &error);
            g_assert_no_error(error);
            sf_snapshot_unref(snapshot);
            snapshot = next;
        }

        g_autoptr(GArray) runs = sf_snapshot_present_runs(snapshot, 0, &error);
        g_assert_no_error(error);
        guint at = 0;
        for (guint page = 0; page < PAGES; page++) {
            if (!model[page]) {
                continue;
            }
            guint end = page;
            while (model[end]) {
                end++;
            }
            g_assert_cmpuint(at, <, runs->len);
            g_assert_cmpuint(g_array_index(runs, SfRun, at).offset, ==, page * SF_PAGE_SIZE);
            g_assert_cmpuint(g_array_index(runs, SfRun, at).length, ==, (end - page) * SF_PAGE_SIZE);
            at++;
            page = end;
        }
        g_assert_cmpuint(at, ==, runs->len);
        sf_snapshot_unref(snapshot);
        sf_ram_base_unref(base);
        close(memory);
    }
}

static void test_bad_extents(void)
{
    const struct sf_qc_extent overlapping[] = { { 0, 2 * SF_PAGE_SIZE }, { SF_PAGE_SIZE, SF_PAGE_SIZE } };
    int memory = new_memfd(BLOCK_LENGTH);
    SfRamBase *base = sf_ram_base_new();
    g_autoptr(GError) error = NULL;
    SfSnapshot *snapshot = snapshot_new(base, NULL, memory, overlapping, 2, &error);

    g_assert_no_error(error);
    g_assert_null(sf_snapshot_present_runs(snapshot, 0, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    sf_snapshot_unref(snapshot);
    sf_ram_base_unref(base);
    close(memory);
}

/* ---- Recovery ---- */

typedef struct {
    pid_t pid;
    int hold; /* closing it ends the process */
} Holder;

/* A process that has the snapshot's memory mapped, with its descriptors open or closed, as a QEMU would. */
static Holder hold(const SfSnapshot *snapshot, gboolean keep_fds)
{
    int ready[2], end[2];
    char byte;

    g_assert_cmpint(pipe2(ready, O_CLOEXEC), ==, 0);
    g_assert_cmpint(pipe2(end, O_CLOEXEC), ==, 0);
    pid_t pid = fork();
    if (pid == 0) {
        const SfBlock *block = &snapshot->blocks[0];
        int fds[] = { block->base, block->layers[0].delta };
        for (guint i = 0; i < G_N_ELEMENTS(fds); i++) {
            if (mmap(NULL, BLOCK_LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[i], 0) == MAP_FAILED) {
                _exit(1);
            }
        }
        if (!keep_fds) {
            close_range(3, (unsigned)MIN(ready[1], end[0]) - 1, 0);
            close_range(MIN(ready[1], end[0]) + 1, MAX(ready[1], end[0]) - 1, 0);
            close_range(MAX(ready[1], end[0]) + 1, ~0u, 0);
        } else {
            close(end[1]);
        }
        if (write(ready[1], "r", 1) != 1) {
            _exit(1);
        }
        ssize_t n = read(end[0], &byte, 1);
        _exit(n == 0 ? 0 : 1);
    }
    g_assert_cmpint(pid, >, 0);
    close(ready[1]);
    close(end[0]);
    g_assert_cmpint(read(ready[0], &byte, 1), ==, 1);
    close(ready[0]);
    return (Holder){ .pid = pid, .hold = end[1] };
}

static void let_go(Holder holder)
{
    int status;

    close(holder.hold);
    g_assert_cmpint(waitpid(holder.pid, &status, 0), ==, holder.pid);
    g_assert_cmpint(status, ==, 0);
}

static void remove_directory(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        g_assert_cmpint(g_unlink(file), ==, 0);
    }
    g_assert_cmpint(g_rmdir(path), ==, 0);
}

static gboolean map_files_readable(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/map_files", 0, NULL);
    const char *name = dir ? g_dir_read_name(dir) : NULL;
    g_autofree char *path = g_build_filename("/proc/self/map_files", name ? name : "", NULL);
    int fd = name ? open(path, O_RDONLY | O_CLOEXEC) : -1;

    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0 || (name && errno != EPERM && errno != EACCES);
}

static void test_recover(gconstpointer data)
{
    gboolean keep_fds = GPOINTER_TO_INT(data);
    const struct sf_qc_extent extent = { SF_PAGE_SIZE, 3 * SF_PAGE_SIZE };
    g_autofree char *parent_directory = g_dir_make_tmp("sf-test-XXXXXX", NULL);
    g_autofree char *directory = g_build_filename(parent_directory, "snapshot", NULL);
    guint fds_before = count_open_fds();
    int memory = new_memfd(BLOCK_LENGTH);
    SfRamBase *base = sf_ram_base_new();
    g_autoptr(GError) error = NULL;
    pid_t pids[2] = { getpid() };
    char content[6] = "";

    if (!keep_fds && !map_files_readable()) {
        g_test_skip("/proc/PID/map_files needs root");
        sf_ram_base_unref(base);
        close(memory);
        g_rmdir(parent_directory);
        return;
    }
    g_assert_cmpint(pwrite(memory, "memory", 6, SF_PAGE_SIZE), ==, 6);
    int delta = new_memfd(BLOCK_LENGTH);
    for (guint page = 1; page < 4; page++) {
        g_assert_cmpint(pwrite(delta, "delta", 5, page * SF_PAGE_SIZE), ==, 5);
    }
    SfSnapshot *snapshot = snapshot_new_with(base, NULL, memory, delta, &extent, 1, &error);
    close(memory);
    g_assert_true(sf_snapshot_save(snapshot, directory, &error));
    g_assert_true(sf_snapshot_save(snapshot, directory, &error)); /* again over itself */
    g_assert_no_error(error);
    Holder holder = hold(snapshot, keep_fds);
    sf_snapshot_unref(snapshot); /* "sfvmmd ends" */

    g_assert_null(sf_snapshot_restore(directory, base, pids, 1, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND);
    g_clear_error(&error);
    g_assert_false(sf_ram_base_in_use(base));

    pids[1] = holder.pid;
    snapshot = sf_snapshot_restore(directory, base, pids, 2, &error);
    g_assert_no_error(error);
    g_assert_true(sf_ram_base_in_use(base));
    g_assert_cmpstr(snapshot->id, ==, "s-1");
    g_assert_cmpuint(snapshot->state_length, ==, STATE_LENGTH);
    g_assert_cmpuint(snapshot->timing.pause, ==, 42);
    g_assert_cmpuint(snapshot->blocks[0].n_layers, ==, 1);
    g_assert_cmpint(pread(snapshot->blocks[0].base, content, 6, SF_PAGE_SIZE), ==, 6);
    g_assert_cmpmem(content, 6, "memory", 6);
    g_assert_cmpint(fcntl(snapshot->blocks[0].base, F_GETFL) & O_ACCMODE, ==, O_RDONLY);
    g_autoptr(GArray) runs = sf_snapshot_present_runs(snapshot, 0, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(runs->len, ==, 1);
    g_assert_cmpuint(g_array_index(runs, SfRun, 0).length, ==, 3 * SF_PAGE_SIZE);
    sf_snapshot_unref(snapshot);

    let_go(holder);
    g_assert_null(sf_snapshot_restore(directory, base, pids, 2, &error)); /* nobody has it any more */
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND);
    sf_ram_base_unref(base);
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
    remove_directory(directory);
    g_assert_cmpint(g_rmdir(parent_directory), ==, 0);
}

/* Every truncation of snapshot.json is an error, and leaves nothing behind. */
static void test_restore_bad(void)
{
    const struct sf_qc_extent extent = { 0, SF_PAGE_SIZE };
    g_autofree char *directory = g_dir_make_tmp("sf-test-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(directory, "snapshot.json", NULL);
    g_autofree char *text = NULL;
    int memory = new_memfd(BLOCK_LENGTH);
    SfRamBase *base = sf_ram_base_new();
    SfSnapshot *snapshot = snapshot_new(base, NULL, memory, &extent, 1, NULL);
    pid_t self = getpid();
    gsize length;

    g_assert_true(sf_snapshot_save(snapshot, directory, NULL));
    g_assert_true(g_file_get_contents(path, &text, &length, NULL));
    SfSnapshot *restored = sf_snapshot_restore(directory, base, &self, 1, NULL);
    g_assert_nonnull(restored);
    sf_snapshot_unref(restored);
    guint fds_before = count_open_fds();
    for (gsize i = 0; i + 1 < length; i++) { /* the last byte is the newline */
        g_autoptr(GError) error = NULL;
        int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
        g_assert_cmpint(write(fd, text, i), ==, (gssize)i);
        close(fd);
        g_assert_null(sf_snapshot_restore(directory, base, &self, 1, &error));
        g_assert_nonnull(error);
    }
    for (gsize i = 0; i + 1 < length; i++) {
        g_autofree char *bad = g_memdup2(text, length);
        int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
        bad[i] ^= 1;
        g_assert_cmpint(write(fd, bad, length), ==, (gssize)length);
        close(fd);
        sf_snapshot_unref(sf_snapshot_restore(directory, base, &self, 1, NULL)); /* must not crash or leak */
    }
    g_assert_cmpuint(count_open_fds(), ==, fds_before);
    sf_snapshot_unref(snapshot);
    sf_ram_base_unref(base);
    close(memory);
    remove_directory(directory);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/snapshot/life", test_life);
    g_test_add_func("/snapshot/generations", test_generations);
    g_test_add_func("/snapshot/state-offsets", test_state_offsets);
    g_test_add_func("/snapshot/lost", test_lost);
    g_test_add_func("/snapshot/refused", test_refused);
    g_test_add_func("/snapshot/present-runs", test_present_runs);
    g_test_add_func("/snapshot/bad-extents", test_bad_extents);
    g_test_add_data_func("/snapshot/recover/fd", GINT_TO_POINTER(TRUE), test_recover);
    g_test_add_data_func("/snapshot/recover/map-files", GINT_TO_POINTER(FALSE), test_recover);
    g_test_add_func("/snapshot/restore-bad", test_restore_bad);
    return g_test_run();
}

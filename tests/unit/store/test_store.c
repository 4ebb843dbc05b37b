/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Saved snapshots: content, checksums, strict reading, and that a failed save leaves nothing. Without disks, which need
 * a QEMU: tests/functional/test_snapshot.py has them. */
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/store/memory_file.h"
#include "sfvmm/store/sha256.h"
#include "sfvmm/store/store.h"
#include "sfvmm/store/working_set.h"
#include "sfvmm/wire/state_file.h"

#define PAGES        64u
#define BLOCK_LENGTH ((guint64)PAGES * SF_PAGE_SIZE)
#define STATE_LENGTH 5000u
#define ROUNDS       100u

typedef struct {
    char *top, *directory;
    SfLauncher *launcher;
    SfStore *store;
    SfRamBase *base;
    GError *error; /* of the last asynchronous call */
    gboolean done, ok;
} Fixture;

static void set_up(Fixture *f, gconstpointer data)
{
    SfLauncherOptions options = { .qemu = (char *)"/nonexistent", .qemu_img = (char *)"/nonexistent",
                                  .firmware = (char *)"", .uid = getuid(), .gid = getgid() };

    f->top = g_dir_make_tmp("sf-store-XXXXXX", NULL);
    f->directory = g_build_filename(f->top, "saved", NULL);
    options.run_directory = f->top;
    f->launcher = sf_launcher_exec_new(&options);
    f->store = sf_store_new(f->directory, f->launcher);
    f->base = sf_ram_base_new();
}

static void tear_down(Fixture *f, gconstpointer data)
{
    sf_store_free(f->store);
    sf_launcher_free(f->launcher);
    g_assert_false(sf_ram_base_in_use(f->base));
    sf_ram_base_unref(f->base);
    sf_state_remove_folder(f->top);
    g_clear_error(&f->error);
    g_free(f->directory);
    g_free(f->top);
}

static int new_memfd(guint64 length)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, (off_t)length), ==, 0);
    return fd;
}

static void put_page(int fd, guint page, guint8 value)
{
    g_autofree guint8 *bytes = g_malloc(SF_PAGE_SIZE);

    memset(bytes, value, SF_PAGE_SIZE);
    g_assert_cmpint(pwrite(fd, bytes, SF_PAGE_SIZE, (off_t)page * SF_PAGE_SIZE), ==, SF_PAGE_SIZE);
}

/* One block: base, and a delta over it when n_extents > 0. Takes the descriptors. */
static SfSnapshot *snapshot_new(SfRamBase *base, const SfSnapshot *parent, int memory, int delta,
                                const struct sf_qc_extent *extents, guint n_extents)
{
    struct {
        struct sf_qc_snapshot_reply reply;
        struct sf_qc_snapshot_block block;
    } payload = {
        .reply = { .state_length = STATE_LENGTH, .device_length = 100, .n_blocks = 1, .at = 1 },
        .block = { .id = "ram0", .length = BLOCK_LENGTH, .has_delta = n_extents > 0, .n_extents = n_extents },
    };
    g_autoptr(GBytes) bytes = g_bytes_new(&payload, sizeof(payload));
    g_autoptr(GError) error = NULL;
    int fds[4] = { new_memfd(STATE_LENGTH), memory, delta, -1 };
    SfSnapshot *snapshot;

    if (n_extents > 0) {
        fds[3] = new_memfd(0);
        g_assert_cmpint(pwrite(fds[3], extents, n_extents * sizeof(*extents), 0), ==, n_extents * sizeof(*extents));
    }
    snapshot = sf_snapshot_new("s-0123456789abcdef", base, parent, bytes, fds, n_extents > 0 ? 4 : 2, &error);
    g_assert_no_error(error);
    return snapshot;
}

/* Base: pages 3 to 10 and 20, and 15, which is zero but there. Delta: pages 5 and 6, and 30 to 31, of which 31 is zero. */
static SfSnapshot *sample(SfRamBase *base)
{
    const struct sf_qc_extent extents[] = { { 5 * SF_PAGE_SIZE, 2 * SF_PAGE_SIZE },
                                            { 30 * SF_PAGE_SIZE, 2 * SF_PAGE_SIZE } };
    int memory = new_memfd(BLOCK_LENGTH), delta = new_memfd(BLOCK_LENGTH);

    for (guint page = 3; page <= 10; page++) {
        put_page(memory, page, (guint8)page);
    }
    put_page(memory, 15, 0);
    put_page(memory, 20, 20);
    put_page(delta, 5, 105);
    put_page(delta, 6, 106);
    put_page(delta, 30, 130);
    return snapshot_new(base, NULL, memory, delta, extents, 2);
}

static guint8 sample_page(guint page)
{
    return page == 5 || page == 6 ? (guint8)(100 + page)
           : page == 30           ? 130
           : page == 20           ? 20
           : page >= 3 && page <= 10 ? (guint8)page
                                     : 0;
}

static SfDescriptor *descriptor_new(const SfSnapshot *snapshot)
{
    SfDescriptor *descriptor = sf_descriptor_new();
    g_autofree char *state = g_malloc0(STATE_LENGTH);
    g_autoptr(GError) error = NULL;

    descriptor->id = g_strdup(snapshot->id);
    descriptor->vm = g_strdup("web");
    descriptor->machine = g_strdup("pc-q35-10.0");
    descriptor->cpu = g_strdup("qemu64");
    descriptor->accel = g_strdup("tcg");
    descriptor->qemu_version = g_strdup("10.0.13");
    descriptor->config_hash = g_strdup("00");
    descriptor->vcpus = 1;
    descriptor->memory = BLOCK_LENGTH;
    descriptor->created = 1;
    descriptor->device_state = g_bytes_new(state, STATE_LENGTH);
    sf_descriptor_add_block(descriptor, snapshot->blocks[0].id, BLOCK_LENGTH,
                            sf_snapshot_present_runs(snapshot, 0, &error));
    g_assert_no_error(error);
    return descriptor;
}

static JsonObject *machine_new(void)
{
    JsonObject *machine = json_object_new();

    json_object_set_int_member(machine, "memory", 1 << 20);
    json_object_set_int_member(machine, "vcpus", 1);
    json_object_set_string_member(machine, "accel", "tcg");
    json_object_set_string_member(machine, "cpu", "qemu64");
    json_object_set_string_member(machine, "network", "none");
    return machine;
}

static void on_saved(GObject *source, GAsyncResult *result, gpointer data)
{
    Fixture *f = data;

    f->ok = sf_store_save_finish(f->store, result, &f->error);
    f->done = TRUE;
}

static void wait_done(Fixture *f)
{
    while (!f->done) {
        g_main_context_iteration(NULL, TRUE);
    }
    f->done = FALSE;
}

/* file_max: bytes that a file may have from now on, 0: no limit. */
static gboolean save_limited(Fixture *f, const char *name, rlim_t file_max)
{
    g_autoptr(SfSnapshot) snapshot = sample(f->base);
    g_autoptr(GPtrArray) disks = g_ptr_array_new();
    SfDescriptor *descriptor = descriptor_new(snapshot);
    struct rlimit old, small;

    g_clear_error(&f->error);
    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &old), ==, 0);
    small = (struct rlimit){ file_max ? file_max : old.rlim_cur, old.rlim_max };
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &small), ==, 0);
    sf_store_save_async(f->store, name, snapshot, disks, descriptor, machine_new(), TRUE, 7, on_saved, f);
    wait_done(f);
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &old), ==, 0);
    return f->ok;
}

static gboolean save(Fixture *f, const char *name)
{
    return save_limited(f, name, 0);
}

static void check_content(const char *path)
{
    g_autofree char *text = NULL;
    gsize length;

    g_assert_true(g_file_get_contents(path, &text, &length, NULL));
    g_assert_cmpuint(length, ==, BLOCK_LENGTH);
    for (guint page = 0; page < PAGES; page++) {
        for (guint i = 0; i < SF_PAGE_SIZE; i++) {
            g_assert_cmpuint((guint8)text[page * SF_PAGE_SIZE + i], ==, sample_page(page));
        }
    }
}

static void test_save(Fixture *f, gconstpointer data)
{
    g_autoptr(SfSaved) saved = NULL;
    g_autoptr(SfDescriptor) descriptor = NULL;
    g_autoptr(GError) error = NULL;

    g_assert_true(save(f, "warm"));
    saved = sf_store_read(f->store, "warm", &error);
    g_assert_no_error(error);
    g_assert_cmpstr(saved->id, ==, "s-0123456789abcdef");
    g_assert_cmpstr(saved->vm, ==, "web");
    g_assert_true(saved->agent);
    g_assert_cmpuint(saved->request, ==, 7);
    g_assert_cmpuint(saved->device_length, ==, 100);
    g_assert_cmpuint(saved->blocks->len, ==, 1);
    const SfSavedBlock *block = g_ptr_array_index(saved->blocks, 0);
    g_assert_cmpstr(block->id, ==, "ram0");
    g_autofree char *path = sf_saved_path(saved, &block->file);
    check_content(path);
    g_autofree char *sum = sf_sha256_of_file(path, NULL, &error);
    g_assert_cmpstr(sum, ==, block->file.sha256);
    g_assert_true(sf_saved_verify(saved, &error));
    /* The page map has what is not zero, and nothing else. */
    descriptor = sf_saved_descriptor(saved, &error);
    g_assert_no_error(error);
    const GArray *present = ((SfDescriptorBlock *)g_ptr_array_index(descriptor->blocks, 0))->present;
    const SfRun expected[] = { { 3 * SF_PAGE_SIZE, 8 * SF_PAGE_SIZE }, { 20 * SF_PAGE_SIZE, SF_PAGE_SIZE },
                               { 30 * SF_PAGE_SIZE, SF_PAGE_SIZE } };
    g_assert_cmpmem(present->data, present->len * sizeof(SfRun), expected, sizeof(expected));
    struct stat st;
    g_assert_cmpint(stat(path, &st), ==, 0);
    g_assert_cmpint(st.st_blocks * 512, <, BLOCK_LENGTH);
    g_assert_cmpint(st.st_mode & 0777, ==, 0600);
}

static guint count_files(const char *directory)
{
    g_auto(GStrv) names = sf_state_list(directory);

    return g_strv_length(names);
}

static void test_names(Fixture *f, gconstpointer data)
{
    static const char *const bad[] = { "", ".", "..", "-a", ".a", "a/b", "a b", "A", "\xc3\xa4", NULL };
    g_autoptr(GError) error = NULL;

    for (guint i = 0; bad[i]; i++) {
        g_assert_false(save(f, bad[i]));
        g_assert_error(f->error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT);
    }
    g_assert_true(save(f, "a"));
    g_assert_false(save(f, "a"));
    g_assert_error(f->error, G_IO_ERROR, G_IO_ERROR_EXISTS);
    g_assert_true(save(f, "b.1-x"));
    g_auto(GStrv) names = sf_store_names(f->store);
    g_assert_cmpuint(g_strv_length(names), ==, 2);
    g_assert_cmpstr(names[0], ==, "a");
    g_assert_true(sf_store_remove(f->store, "a", &error));
    g_assert_false(sf_store_remove(f->store, "a", &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND);
    g_assert_cmpuint(count_files(f->directory), ==, 1);
}

/* No room: nothing is left, and the name is free. */
static void test_no_room(Fixture *f, gconstpointer data)
{
    signal(SIGXFSZ, SIG_IGN);
    g_assert_false(save_limited(f, "warm", 5 * SF_PAGE_SIZE));
    g_assert_nonnull(strstr(f->error->message, "warm"));
    g_assert_cmpuint(count_files(f->directory), ==, 0);
    g_assert_true(save(f, "warm"));
}

/* What a killed sfvmmd left half written. */
static void test_interrupted(Fixture *f, gconstpointer data)
{
    g_autofree char *part = g_build_filename(f->directory, ".warm.part", NULL);
    g_autofree char *file = g_build_filename(part, "ram0.raw", NULL);

    g_assert_cmpint(g_mkdir_with_parents(part, 0700), ==, 0);
    g_assert_true(g_file_set_contents(file, "x", 1, NULL));
    sf_store_free(f->store);
    f->store = sf_store_new(f->directory, f->launcher);
    g_assert_cmpuint(count_files(f->directory), ==, 0);
}

static void on_loaded(GObject *source, GAsyncResult *result, gpointer data)
{
    Fixture *f = data;

    f->ok = sf_store_load_finish(f->store, result, &f->error);
    f->done = TRUE;
}

static gboolean load_from(Fixture *f, const char *directory, const char *uri, const char *name)
{
    g_clear_error(&f->error);
    sf_store_load_async(f->store, directory, uri, name, on_loaded, f);
    wait_done(f);
    return f->ok;
}

static gboolean load(Fixture *f, const char *directory, const char *name)
{
    return load_from(f, directory, NULL, name);
}

static void test_load(Fixture *f, gconstpointer data)
{
    g_autofree char *elsewhere = g_build_filename(f->top, "elsewhere", NULL);
    g_autofree char *warm = g_build_filename(f->directory, "warm", NULL);
    g_autofree char *memory = g_build_filename(elsewhere, "ram0.raw", NULL);
    g_autoptr(GError) error = NULL;

    g_assert_true(save(f, "warm"));
    g_assert_cmpint(rename(warm, elsewhere), ==, 0);
    g_assert_false(load(f, "elsewhere", "again"));
    g_assert_error(f->error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT);
    g_assert_true(load(f, elsewhere, "again"));
    g_assert_true(sf_store_is_link(f->store, "again"));
    g_autoptr(SfSaved) saved = sf_store_read(f->store, "again", &error);
    g_assert_no_error(error);
    g_assert_true(sf_store_remove(f->store, "again", &error));
    g_assert_true(g_file_test(memory, G_FILE_TEST_EXISTS));

    int fd = open(memory, O_WRONLY); /* one byte in a page, one in a hole: both are found */
    g_assert_cmpint(pwrite(fd, "!", 1, 3 * SF_PAGE_SIZE + 7), ==, 1);
    g_assert_false(load(f, elsewhere, "again"));
    g_assert_error(f->error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    g_assert_nonnull(strstr(f->error->message, "ram0.raw"));
    put_page(fd, 3, 3);
    g_assert_true(load(f, elsewhere, "again"));
    g_assert_true(sf_store_remove(f->store, "again", &error));
    g_assert_cmpint(pwrite(fd, "!", 1, 40 * SF_PAGE_SIZE), ==, 1);
    g_assert_false(load(f, elsewhere, "again"));
    close(fd);
    g_assert_cmpint(truncate(memory, 4096), ==, 0);
    g_assert_false(load(f, elsewhere, "again"));
    g_assert_nonnull(strstr(f->error->message, "4096"));
    g_assert_cmpint(unlink(memory), ==, 0);
    g_assert_cmpint(symlink("/etc/passwd", memory), ==, 0);
    g_assert_false(load(f, elsewhere, "again"));
}

/* Memory that an NBD server has: the directory needs the rest only. */
static void test_load_uri(Fixture *f, gconstpointer data)
{
    g_autofree char *elsewhere = g_build_filename(f->top, "elsewhere", NULL);
    g_autofree char *warm = g_build_filename(f->directory, "warm", NULL);
    g_autofree char *memory = g_build_filename(elsewhere, "ram0.raw", NULL);
    const char *uri = "nbds://example.org:10809/{block}.raw";
    g_autoptr(GError) error = NULL;

    g_assert_true(save(f, "warm"));
    g_assert_cmpint(rename(warm, elsewhere), ==, 0);
    g_assert_cmpint(unlink(memory), ==, 0);
    g_assert_false(load(f, elsewhere, "served"));
    g_assert_false(load_from(f, elsewhere, "http://example.org/", "served"));
    g_assert_error(f->error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT);
    g_assert_false(load_from(f, elsewhere, "nbd://a b/", "served"));
    g_assert_true(load_from(f, elsewhere, uri, "served"));
    g_autoptr(SfSaved) saved = sf_store_read(f->store, "served", &error);
    g_assert_no_error(error);
    g_assert_cmpstr(saved->memory_uri, ==, uri);
    g_assert_cmpstr(saved->directory, ==, elsewhere);
    g_assert_true(sf_store_is_link(f->store, "served"));
    g_assert_true(sf_store_remove(f->store, "served", &error));
    g_assert_cmpuint(count_files(f->directory), ==, 0);
    g_assert_cmpuint(count_files(elsewhere), ==, 2);
}

static void test_working_set(Fixture *f, gconstpointer data)
{
    const char *text = "ram0 4096 8192\n"
                       "ram0 0 4096\n"
                       "ram1 0 4096\nram0 1 4096\nram0 0 0\nram0 0 4095\nram0 258048 8192\nram0 262144 4096\n"
                       "ram0 -4096 4096\nram0 0\nram0 0 4096 5\n\nram0\n 0 4096\nram0 0 99999999999999999999\n"
                       "ram0 258048 4096";
    const struct sf_pager_run expected[] = { { 0, 2, 4096 }, { 0, 1, 0 }, { 0, 1, 258048 } };
    g_autoptr(GError) error = NULL;

    g_assert_true(save(f, "warm"));
    g_autoptr(SfSaved) saved = sf_store_read(f->store, "warm", &error);
    g_assert_no_error(error);
    g_assert_null(sf_working_set_read(saved));
    g_autoptr(GArray) runs = sf_working_set_parse(saved, text);
    g_assert_cmpmem(runs->data, runs->len * sizeof(struct sf_pager_run), expected, sizeof(expected));
    struct sf_pager_run bad = { 1, 1, 0 };
    g_array_append_val(runs, bad);
    g_assert_true(sf_working_set_write(saved, runs, &error));
    g_autoptr(GArray) again = sf_working_set_read(saved);
    g_assert_cmpmem(again->data, again->len * sizeof(struct sf_pager_run), expected, sizeof(expected));
    g_assert_true(sf_saved_verify(saved, &error)); /* it is no part of what was saved */
}

/* ---- snapshot.json ---- */

typedef struct {
    const char *from, *to; /* replaced in a good one */
    int code;
} Damage;

static void test_strict(Fixture *f, gconstpointer data)
{
    static const Damage damages[] = {
        { "\"version\" : 1", "\"version\" : 2", G_IO_ERROR_NOT_SUPPORTED },
        { "snowflock-snapshot", "something", G_IO_ERROR_INVALID_DATA },
        { "\"agent\" : true", "\"agent\" : 1", G_IO_ERROR_INVALID_DATA },
        { "\"agent\" : true", "\"agent\" : true, \"more\" : 1", G_IO_ERROR_INVALID_DATA },
        { "\"agent\" : true,", "", G_IO_ERROR_INVALID_DATA },
        { "\"vm\" : \"web\"", "\"vm\" : \"\"", G_IO_ERROR_INVALID_DATA },
        { "\"vm\" : \"web\"", "\"vm\" : \"a\\nb\"", G_IO_ERROR_INVALID_DATA },
        { "ram0.raw", "../ram0.raw", G_IO_ERROR_INVALID_DATA },
        { "ram0.raw", ".hidden", G_IO_ERROR_INVALID_DATA },
        { "ram0.raw", "snapshot.json", G_IO_ERROR_INVALID_DATA },
        { "ram0.raw", "descriptor.dtb", G_IO_ERROR_INVALID_DATA },
        { "262144", "-1", G_IO_ERROR_INVALID_DATA },
        { "262144", "1e3", G_IO_ERROR_INVALID_DATA },
        { "\"device_length\" : 100", "\"device_length\" : 99999999999", G_IO_ERROR_INVALID_DATA },
        { "\"memory\" :", "\"ram\" :", G_IO_ERROR_INVALID_DATA },
        { "\"disks\" : []", "\"disks\" : {}", G_IO_ERROR_INVALID_DATA },
        { "\"disks\" : []", "\"disks\" : [ 1 ]", G_IO_ERROR_INVALID_DATA },
        { "\"disks\" : []",
          "\"disks\" : [ { \"id\" : \"disk1\", \"size\" : 5, \"readonly\" : false, \"file\" : \"a\", \"bytes\" : 1, "
          "\"sha256\" : \"0000000000000000000000000000000000000000000000000000000000000000\" } ]",
          G_IO_ERROR_INVALID_DATA },
    };
    g_autofree char *path = g_build_filename(f->directory, "warm", SF_SAVED_JSON, NULL);
    g_autofree char *good = NULL;
    gsize length;

    g_assert_true(save(f, "warm"));
    g_assert_true(g_file_get_contents(path, &good, &length, NULL));
    g_autoptr(SfSaved) saved = sf_saved_parse(good, length, NULL);
    g_assert_nonnull(saved);
    g_autofree char *again = sf_saved_format(saved, NULL);
    g_assert_cmpstr(again, ==, good);
    for (guint i = 0; i < G_N_ELEMENTS(damages); i++) {
        g_autoptr(GString) text = g_string_new(good);
        g_autoptr(GError) error = NULL;
        g_assert_cmpuint(g_string_replace(text, damages[i].from, damages[i].to, 1), ==, 1);
        g_assert_null(sf_saved_parse(text->str, text->len, &error));
        g_assert_error(error, G_IO_ERROR, damages[i].code);
    }
    for (gsize cut = 0; cut < length; cut++) {
        g_assert_null(sf_saved_parse(good, cut, NULL));
    }
}

/* snapshot.json of one snapshot with the descriptor of another. */
static void test_mixed(Fixture *f, gconstpointer data)
{
    g_autofree char *path = g_build_filename(f->directory, "warm", SF_SAVED_JSON, NULL);
    g_autofree char *good = NULL;
    g_autoptr(GError) error = NULL;
    gsize length;

    g_assert_true(save(f, "warm"));
    g_assert_true(g_file_get_contents(path, &good, &length, NULL));
    g_autoptr(GString) text = g_string_new(good);
    g_string_replace(text, "s-0123456789abcdef", "s-0123456789abcdee", 1);
    g_assert_true(g_file_set_contents(path, text->str, (gssize)text->len, NULL));
    g_autoptr(SfSaved) saved = sf_store_read(f->store, "warm", &error);
    g_assert_no_error(error);
    g_assert_null(sf_saved_descriptor(saved, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
}

/* ---- memory of many layers, at random ---- */

static SfSnapshot *random_snapshot(SfRamBase *base, guint8 *model)
{
    SfSnapshot *snapshot = NULL;
    guint n_layers = (guint)g_test_rand_int_range(0, 5);
    int memory = new_memfd(BLOCK_LENGTH);

    memset(model, 0, PAGES);
    for (guint page = 0; page < PAGES; page++) {
        if (g_test_rand_bit()) {
            model[page] = (guint8)g_test_rand_int_range(0, 3);
            put_page(memory, page, model[page]);
        }
    }
    for (guint layer = 0; layer <= n_layers; layer++) {
        struct sf_qc_extent extents[PAGES];
        guint n = 0, page = (guint)g_test_rand_int_range(0, 4);
        int delta = layer ? new_memfd(BLOCK_LENGTH) : -1;
        while (layer && page < PAGES) {
            guint wanted = (guint)g_test_rand_int_range(1, 8);
            guint length = MIN(wanted, PAGES - page);
            extents[n++] = (struct sf_qc_extent){ page * SF_PAGE_SIZE, length * SF_PAGE_SIZE };
            for (guint end = page + length; page < end; page++) {
                model[page] = (guint8)g_test_rand_int_range(0, 3);
                put_page(delta, page, model[page]);
            }
            page += (guint)g_test_rand_int_range(1, 12);
        }
        SfSnapshot *next = snapshot_new(base, snapshot, fcntl(memory, F_DUPFD_CLOEXEC, 0), delta, extents, n);
        sf_snapshot_unref(snapshot);
        snapshot = next;
    }
    close(memory);
    return snapshot;
}

static void test_layers(Fixture *f, gconstpointer data)
{
    g_autofree char *path = g_build_filename(f->top, "memory", NULL);

    for (guint round = 0; round < ROUNDS; round++) {
        guint8 model[PAGES];
        g_autoptr(SfSnapshot) snapshot = random_snapshot(f->base, model);
        g_autoptr(GArray) present = sf_snapshot_present_runs(snapshot, 0, NULL);
        g_autoptr(GError) error = NULL;
        g_autofree char *sum = NULL;
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        g_autoptr(GArray) runs = sf_memory_file_write(&snapshot->blocks[0], present, fd, &sum, &error);
        g_assert_no_error(error);
        close(fd);
        g_autofree char *found = sf_sha256_of_file(path, NULL, NULL);
        g_assert_cmpstr(sum, ==, found);
        g_autofree char *text = NULL;
        gsize length;
        g_assert_true(g_file_get_contents(path, &text, &length, NULL));
        g_assert_cmpuint(length, ==, BLOCK_LENGTH);
        for (guint page = 0; page < PAGES; page++) {
            gboolean in_run = FALSE;
            for (guint i = 0; i < runs->len; i++) {
                const SfRun *run = &g_array_index(runs, SfRun, i);
                in_run |= page * SF_PAGE_SIZE >= run->offset && page * SF_PAGE_SIZE < run->offset + run->length;
            }
            g_assert_cmpuint((guint8)text[page * SF_PAGE_SIZE], ==, model[page]);
            g_assert_cmpuint((guint8)text[page * SF_PAGE_SIZE + SF_PAGE_SIZE - 1], ==, model[page]);
            g_assert_cmpint(in_run, ==, model[page] != 0);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, function) g_test_add("/store/" name, Fixture, NULL, set_up, function, tear_down)
    ADD("save", test_save);
    ADD("names", test_names);
    ADD("no-room", test_no_room);
    ADD("interrupted", test_interrupted);
    ADD("load", test_load);
    ADD("load-uri", test_load_uri);
    ADD("working-set", test_working_set);
    ADD("strict", test_strict);
    ADD("mixed", test_mixed);
    ADD("layers", test_layers);
    return g_test_run();
}

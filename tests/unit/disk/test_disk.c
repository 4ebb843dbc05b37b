/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Disk chains. Where qemu-img is needed and missing, the test is skipped. */
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/disk/disk.h"
#include "sfvmm/disk/late_commit.h"
#include "sfvmm/wire/state_file.h"

#define DISK_SIZE     (8ull << 20) /* bytes */
#define SECTOR        512u
#define CLUSTER       65536u /* of a qcow2 image */
#define BOUND_SECONDS 60u

typedef struct {
    char *directory;
    char *qemu_img; /* NULL: there is none */
} Fixture;

static char *path_of(const Fixture *f, const char *name)
{
    return g_build_filename(f->directory, name, NULL);
}

static void set_up(Fixture *f, gconstpointer data)
{
    const char *prefix = g_getenv("SF_QEMU_PREFIX");

    f->directory = g_dir_make_tmp("sf-test-XXXXXX", NULL);
    f->qemu_img = prefix ? g_build_filename(prefix, "bin", "qemu-img", NULL) : g_find_program_in_path("qemu-img");
}

static void tear_down(Fixture *f, gconstpointer data)
{
    sf_state_remove_folder(f->directory);
    g_free(f->directory);
    g_free(f->qemu_img);
}

static gboolean skip_without_qemu_img(const Fixture *f)
{
    if (!f->qemu_img) {
        g_test_skip("qemu-img is missing: install qemu-utils or set SF_QEMU_PREFIX");
    }
    return !f->qemu_img;
}

static void run(const char *const *argv)
{
    g_autoptr(GError) error = NULL;
    int status;

    g_assert_true(
        g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL, NULL, &status, &error));
    g_assert_true(g_spawn_check_wait_status(status, &error));
}

static void write_raw(const char *path, guint64 size, char fill)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    g_autofree char *sector = g_strnfill(SECTOR, fill);

    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    g_assert_cmpint(pwrite(fd, sector, SECTOR, 0), ==, SECTOR);
    close(fd);
}

static void test_layers(Fixture *f, gconstpointer data)
{
    g_autofree char *path = path_of(f, "overlay");
    g_autofree char *image = path_of(f, "image");

    write_raw(path, SECTOR, 'o');
    write_raw(image, SECTOR, 'i');
    SfDiskLayer *layer = sf_disk_layer_new(path, "qcow2", TRUE);
    SfDiskLayer *same = sf_disk_layer_new(path, "qcow2", TRUE);
    SfDiskLayer *other = sf_disk_layer_new(image, "raw", FALSE);
    g_assert_true(layer == same);
    g_assert_true(layer != other);

    sf_disk_layer_unref(layer);
    g_assert_true(g_file_test(path, G_FILE_TEST_EXISTS));
    sf_disk_layer_unref(same);
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    sf_disk_layer_unref(other);
    g_assert_true(g_file_test(image, G_FILE_TEST_EXISTS)); /* the user's own: never */
}

static void test_chains(Fixture *f, gconstpointer data)
{
    g_autofree char *image = path_of(f, "image");
    g_autofree char *overlay = path_of(f, "overlay");
    g_autoptr(GError) error = NULL;

    write_raw(overlay, SECTOR, 'o');
    SfDiskChain *chain = sf_disk_chain_new("disk0", DISK_SIZE, FALSE);
    g_ptr_array_add(chain->layers, sf_disk_layer_new(image, "raw", FALSE));
    g_ptr_array_add(chain->layers, sf_disk_layer_new(overlay, "qcow2", TRUE));
    SfDiskChain *copy = sf_disk_chain_copy(chain);
    sf_disk_chain_free(chain);
    g_assert_true(g_file_test(overlay, G_FILE_TEST_EXISTS));

    g_autoptr(JsonObject) json = sf_disk_chain_to_json(copy);
    SfDiskChain *back = sf_disk_chain_from_json(json, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(back->id, ==, "disk0");
    g_assert_cmpuint(back->size, ==, DISK_SIZE);
    g_assert_cmpuint(back->layers->len, ==, 2);
    g_assert_true(g_ptr_array_index(back->layers, 1) == g_ptr_array_index(copy->layers, 1));
    sf_disk_chain_free(copy);
    g_assert_true(g_file_test(overlay, G_FILE_TEST_EXISTS));
    sf_disk_chain_free(back);
    g_assert_false(g_file_test(overlay, G_FILE_TEST_EXISTS));
}

static void test_bad_json(Fixture *f, gconstpointer data)
{
    const char *const texts[] = {
        "{}",
        "{\"id\":\"a\",\"size\":1,\"readonly\":false}",
        "{\"id\":\"a\",\"size\":1,\"readonly\":false,\"layers\":[]}",
        "{\"id\":\"a\",\"size\":0,\"readonly\":false,\"layers\":[{\"path\":\"/"
        "a\",\"format\":\"raw\",\"owned\":false}]}",
        "{\"id\":\"a\",\"size\":-1,\"readonly\":false,\"layers\":[{\"path\":\"/"
        "a\",\"format\":\"raw\",\"owned\":false}]}",
        "{\"id\":\"\",\"size\":1,\"readonly\":false,\"layers\":[{\"path\":\"/a\",\"format\":\"raw\",\"owned\":false}]}",
        "{\"id\":\"a\",\"size\":1,\"readonly\":0,\"layers\":[{\"path\":\"/a\",\"format\":\"raw\",\"owned\":false}]}",
        "{\"id\":\"a\",\"size\":1,\"readonly\":false,\"layers\":[{\"path\":\"a\",\"format\":\"raw\",\"owned\":false}]}",
        "{\"id\":\"a\",\"size\":1,\"readonly\":false,\"layers\":[{\"path\":\"/"
        "a\",\"format\":\"vmdk\",\"owned\":false}]}",
        "{\"id\":\"a\",\"size\":1,\"readonly\":false,\"layers\":[{\"path\":\"/a\",\"format\":\"raw\"}]}",
        "{\"id\":\"a\",\"size\":1,\"readonly\":false,\"layers\":[1]}",
    };

    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonNode) node = json_from_string(texts[i], NULL);
        g_assert_null(sf_disk_chain_from_json(json_node_get_object(node), &error));
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
    }
}

static void test_overlay(Fixture *f, gconstpointer data)
{
    g_autofree char *template = path_of(f, "template");
    g_autofree char *path = path_of(f, "overlay");
    g_autoptr(GError) error = NULL;
    g_autofree char *expected = NULL, *found = NULL;
    gsize expected_length, found_length;

    g_assert_null(sf_disk_overlay_create(template, path, (uid_t)-1, (gid_t)-1, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND);
    g_clear_error(&error);

    write_raw(template, 3 * SECTOR + 7, 't');
    SfDiskLayer *layer = sf_disk_overlay_create(template, path, (uid_t)-1, (gid_t)-1, &error);
    g_assert_no_error(error);
    g_assert_true(g_file_get_contents(template, &expected, &expected_length, NULL));
    g_assert_true(g_file_get_contents(path, &found, &found_length, NULL));
    g_assert_cmpmem(expected, expected_length, found, found_length);

    g_assert_null(sf_disk_overlay_create(template, path, (uid_t)-1, (gid_t)-1, &error)); /* never over another */
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS);
    g_assert_true(g_file_test(path, G_FILE_TEST_EXISTS));
    sf_disk_layer_unref(layer);
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
}

static void assert_probe(const Fixture *f, const char *path, const char *given, const char *expected_format, int code)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *format = NULL;
    guint64 size = 0;
    gboolean ok = sf_disk_probe(f->qemu_img, path, given, &format, &size, &error);

    if (expected_format) {
        g_assert_no_error(error);
        g_assert_true(ok);
        g_assert_cmpstr(format, ==, expected_format);
        g_assert_cmpuint(size, ==, DISK_SIZE);
    } else {
        g_assert_false(ok);
        g_assert_error(error, G_IO_ERROR, code);
        g_assert_nonnull(strstr(error->message, path));
    }
}

static void test_probe(Fixture *f, gconstpointer data)
{
    g_autofree char *raw = path_of(f, "raw");
    g_autofree char *qcow2 = path_of(f, "qcow2");
    g_autofree char *over = path_of(f, "over");
    g_autofree char *split = path_of(f, "split");
    g_autofree char *missing = path_of(f, "missing");
    g_autofree char *split_options = g_strdup_printf("data_file=%s.data", split);

    if (skip_without_qemu_img(f)) {
        return;
    }
    write_raw(raw, DISK_SIZE, 'r');
    run((const char *[]){ f->qemu_img, "create", "-q", "-f", "qcow2", qcow2, "8M", NULL });
    run((const char *[]){ f->qemu_img, "create", "-q", "-f", "qcow2", "-b", qcow2, "-F", "qcow2", over, NULL });
    run((const char *[]){ f->qemu_img, "create", "-q", "-f", "qcow2", "-o", split_options, split, "8M", NULL });
    assert_probe(f, raw, NULL, "raw", 0);
    assert_probe(f, raw, "raw", "raw", 0);
    assert_probe(f, qcow2, NULL, "qcow2", 0);
    assert_probe(f, qcow2, "qcow2", "qcow2", 0);
    assert_probe(f, raw, "qcow2", NULL, G_IO_ERROR_FAILED);
    assert_probe(f, raw, "vmdk", NULL, G_IO_ERROR_NOT_SUPPORTED);
    assert_probe(f, over, NULL, NULL, G_IO_ERROR_NOT_SUPPORTED);
    assert_probe(f, split, NULL, NULL, G_IO_ERROR_NOT_SUPPORTED);
    assert_probe(f, missing, NULL, NULL, G_IO_ERROR_NOT_FOUND);
    assert_probe(f, f->directory, NULL, NULL, G_IO_ERROR_NOT_REGULAR_FILE);
    assert_probe(f, "json:{}", NULL, NULL, G_IO_ERROR_INVALID_FILENAME);
}

/* An overlay that holds length bytes of fill from its start: what a VM would have written. */
static SfDiskLayer *overlay_new(const Fixture *f, const char *template, const char *name, gsize length, char fill)
{
    g_autofree char *path = path_of(f, name);
    g_autofree char *source = path_of(f, "source");
    g_autofree char *content = g_strnfill(length, fill);
    g_autoptr(GError) error = NULL;
    SfDiskLayer *layer = sf_disk_overlay_create(template, path, (uid_t)-1, (gid_t)-1, &error);

    g_assert_no_error(error);
    g_assert_true(g_file_set_contents(source, content, length, NULL));
    run((const char *[]){ f->qemu_img, "convert", "-n", "-f", "raw", "-O", "qcow2", source, path, NULL });
    return layer;
}

/* Each layer hides a part of those below: in the end the user's image has what the top showed. */
static void commit_over(const Fixture *f, const char *image_format)
{
    g_autofree char *image = path_of(f, "image");
    g_autofree char *template = path_of(f, "template");
    g_autofree char *result = path_of(f, "result");
    g_autofree char *content = NULL;
    g_autoptr(GError) error = NULL;
    gboolean begun = FALSE;
    gsize length;

    g_unlink(image);
    run((const char *[]){ f->qemu_img, "create", "-q", "-f", image_format, image, "8M", NULL });
    g_assert_true(sf_disk_template_create(f->qemu_img, template, DISK_SIZE, &error));
    SfDiskChain *chain = sf_disk_chain_new("disk0", DISK_SIZE, FALSE);
    g_ptr_array_add(chain->layers, sf_disk_layer_new(image, image_format, FALSE));
    g_ptr_array_add(chain->layers, overlay_new(f, template, "overlay1", 3 * CLUSTER, 'a'));
    g_ptr_array_add(chain->layers, overlay_new(f, template, "overlay2", 2 * CLUSTER, 'b'));
    g_ptr_array_add(chain->layers, overlay_new(f, template, "overlay3", CLUSTER, 'c'));

    SfDiskLayer *shared = sf_disk_layer_ref(g_ptr_array_index(chain->layers, 2));
    g_assert_false(sf_disk_commit_offline(f->qemu_img, chain, &begun, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_BUSY);
    g_clear_error(&error);
    g_assert_false(begun);
    g_assert_cmpuint(chain->layers->len, ==, 4);
    sf_disk_layer_unref(shared);

    g_assert_true(sf_disk_commit_offline(f->qemu_img, chain, &begun, &error));
    g_assert_no_error(error);
    g_assert_true(begun);
    g_assert_cmpuint(chain->layers->len, ==, 1);
    g_assert_true(sf_disk_commit_offline(f->qemu_img, chain, &begun, &error)); /* nothing left to do */
    sf_disk_chain_free(chain);

    run((const char *[]){ f->qemu_img, "convert", "-f", image_format, "-O", "raw", image, result, NULL });
    g_assert_true(g_file_get_contents(result, &content, &length, NULL));
    g_assert_cmpuint(length, ==, DISK_SIZE);
    for (gsize i = 0; i < length; i++) {
        static const char expected[] = { 'c', 'b', 'a', '\0' };
        g_assert_cmpint(content[i], ==, expected[MIN(i / CLUSTER, 3)]);
    }
}

static gboolean on_bound(gpointer data)
{
    g_error("a commit takes longer than %u s", BOUND_SECONDS);
    return G_SOURCE_REMOVE;
}

static void wait_for_commits(const SfLateCommits *commits)
{
    guint bound = g_timeout_add_seconds(BOUND_SECONDS, on_bound, NULL);

    while (sf_late_commits_waiting(commits) > 0) {
        g_main_context_iteration(NULL, TRUE);
    }
    g_source_remove(bound);
}

static SfDiskChain *written_chain(const Fixture *f, const char *image)
{
    g_autofree char *template = path_of(f, "template");
    SfDiskChain *chain = sf_disk_chain_new("disk0", DISK_SIZE, FALSE);

    g_unlink(image);
    run((const char *[]){ f->qemu_img, "create", "-q", "-f", "raw", image, "8M", NULL });
    g_assert_true(sf_disk_template_create(f->qemu_img, template, DISK_SIZE, NULL));
    g_ptr_array_add(chain->layers, sf_disk_layer_new(image, "raw", FALSE));
    g_ptr_array_add(chain->layers, overlay_new(f, template, "overlay", CLUSTER, 'w'));
    return chain;
}

static void assert_written(const char *image)
{
    g_autofree char *content = NULL;
    gsize length;

    g_assert_true(g_file_get_contents(image, &content, &length, NULL));
    g_assert_cmpint(content[0], ==, 'w');
    g_assert_cmpint(content[CLUSTER - 1], ==, 'w');
    g_assert_cmpint(content[CLUSTER], ==, '\0');
}

/* The writes of a VM that has ended wait for its clones, and for a restart of sfvmmd. */
static void test_late_commit(Fixture *f, gconstpointer data)
{
    g_autofree char *directory = path_of(f, "late");
    g_autofree char *image = path_of(f, "image");
    g_autofree char *overlay = path_of(f, "overlay");
    g_autofree char *record = NULL;

    if (skip_without_qemu_img(f)) {
        return;
    }
    SfLateCommits *commits = sf_late_commits_new(directory, f->qemu_img);
    SfDiskChain *chain = written_chain(f, image);
    SfDiskChain *clones = sf_disk_chain_copy(chain);
    sf_late_commits_add(commits, "web", NULL, chain);
    g_assert_cmpstr(sf_late_commits_owner(commits, image), ==, "web");
    g_assert_null(sf_late_commits_owner(commits, overlay));
    g_auto(GStrv) files = sf_state_list(directory);
    g_assert_cmpuint(g_strv_length(files), ==, 1);
    record = g_build_filename(directory, files[0], NULL);
    g_autoptr(JsonObject) saved = sf_state_read(record, NULL);
    sf_disk_chain_free(clones);
    wait_for_commits(commits);
    assert_written(image);
    g_assert_false(g_file_test(overlay, G_FILE_TEST_EXISTS));
    g_assert_false(g_file_test(record, G_FILE_TEST_EXISTS));
    sf_late_commits_add(commits, "web", NULL, sf_disk_chain_new("disk0", DISK_SIZE, TRUE)); /* nothing to do */
    g_assert_cmpuint(sf_late_commits_waiting(commits), ==, 0);
    sf_late_commits_free(commits);

    /* A process was killed when all but the record had been removed. */
    g_assert_true(sf_state_write(record, saved, NULL));
    commits = sf_late_commits_new(directory, f->qemu_img);
    g_assert_cmpuint(sf_late_commits_waiting(commits), ==, 0);
    g_assert_false(g_file_test(record, G_FILE_TEST_EXISTS));
    sf_late_commits_free(commits);

    /* A process was killed before the end of the commit. */
    chain = written_chain(f, image);
    SfDiskLayer *kept = g_ptr_array_index(chain->layers, 1);
    kept->owned = FALSE; /* the end of a process removes no file */
    sf_disk_chain_free(chain);
    json_object_set_boolean_member(saved, "begun",
                                   TRUE); /* it was killed in the middle, so it has written to the image */
    g_assert_true(sf_state_write(record, saved, NULL));
    commits = sf_late_commits_new(directory, f->qemu_img);
    g_assert_cmpstr(sf_late_commits_owner(commits, image), ==, "web");
    wait_for_commits(commits);
    assert_written(image);
    g_assert_false(g_file_test(overlay, G_FILE_TEST_EXISTS));
    sf_late_commits_free(commits);
    g_assert_cmpint(g_rmdir(directory), ==, 0);
}

/* The domain was started again from its image, before its overlay was committed: both are kept as they are. */
static void test_late_commit_over_newer_image(Fixture *f, gconstpointer data)
{
    g_autofree char *directory = path_of(f, "late");
    g_autofree char *image = path_of(f, "image");
    g_autofree char *overlay = path_of(f, "overlay");
    g_autofree char *newer = g_strnfill(DISK_SIZE, 'n');
    g_autofree char *after = NULL;
    gsize length;

    if (skip_without_qemu_img(f)) {
        return;
    }
    SfLateCommits *commits = sf_late_commits_new(directory, f->qemu_img);
    SfDiskChain *chain = written_chain(f, image);
    SfDiskChain *clones = sf_disk_chain_copy(chain);
    sf_late_commits_add(commits, "web", NULL, chain);
    g_assert_true(g_file_set_contents(image, newer, DISK_SIZE, NULL));
    sf_disk_chain_free(clones);
    g_assert_true(sf_late_commits_active(commits, "web"));
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*was written to since*");
    while (sf_late_commits_active(commits, "web")) {
        g_main_context_iteration(NULL, TRUE);
    }
    g_test_assert_expected_messages();
    g_assert_cmpuint(sf_late_commits_waiting(commits), ==, 1);
    g_assert_cmpstr(sf_late_commits_owner(commits, image), ==, "web");
    g_assert_true(g_file_get_contents(image, &after, &length, NULL));
    g_assert_cmpmem(newer, DISK_SIZE, after, length);
    g_assert_true(g_file_test(overlay, G_FILE_TEST_EXISTS)); /* it waits until this process ends, as in sfvmmd */
}

static char *content_of(const char *path, gsize *length)
{
    char *content = NULL;

    g_assert_true(g_file_get_contents(path, &content, length, NULL));
    return content;
}

/* A cloud image: what the VM wrote gets into its own image, the base below it is others' too. */
static void test_late_commit_over_base(Fixture *f, gconstpointer data)
{
    g_autofree char *directory = path_of(f, "late");
    g_autofree char *base = path_of(f, "base");
    g_autofree char *image = path_of(f, "image");
    g_autofree char *result = path_of(f, "result");
    g_autofree char *template = path_of(f, "template");
    g_autofree char *before = g_strnfill(DISK_SIZE, 'b');
    g_autoptr(GError) error = NULL;
    gboolean begun = FALSE;
    gsize length;

    if (skip_without_qemu_img(f)) {
        return;
    }
    g_assert_true(g_file_set_contents(base, before, DISK_SIZE, NULL));
    run((const char *[]){ f->qemu_img, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, image, NULL });
    g_assert_true(sf_disk_template_create(f->qemu_img, template, DISK_SIZE, NULL));
    SfDiskChain *chain = sf_disk_chain_new("disk0", DISK_SIZE, FALSE);
    g_ptr_array_add(chain->layers, sf_disk_layer_new(base, "raw", FALSE));
    g_ptr_array_add(chain->layers, sf_disk_layer_new(image, "qcow2", FALSE));
    g_ptr_array_add(chain->layers, overlay_new(f, template, "overlay", CLUSTER, 'w'));

    g_assert_false(sf_disk_commit_offline(f->qemu_img, chain, &begun, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT);
    SfLateCommits *commits = sf_late_commits_new(directory, f->qemu_img);
    SfDiskChain *unwritten = sf_disk_chain_copy(chain);
    g_ptr_array_set_size(unwritten->layers, 2);
    sf_late_commits_add(commits, "other", NULL, unwritten); /* nothing to do */
    g_assert_cmpuint(sf_late_commits_waiting(commits), ==, 0);
    sf_late_commits_add(commits, "web", NULL, chain);
    g_assert_cmpstr(sf_late_commits_owner(commits, image), ==, "web");
    g_assert_null(sf_late_commits_owner(commits, base));
    wait_for_commits(commits);
    sf_late_commits_free(commits);
    g_assert_cmpint(g_rmdir(directory), ==, 0);

    g_autofree char *after = content_of(base, &length);
    g_assert_cmpmem(before, DISK_SIZE, after, length);
    run((const char *[]){ f->qemu_img, "convert", "-f", "qcow2", "-O", "raw", image, result, NULL });
    g_autofree char *content = content_of(result, &length);
    g_assert_cmpint(content[0], ==, 'w');
    g_assert_cmpint(content[CLUSTER], ==, 'b');
}

static void test_commit(Fixture *f, gconstpointer data)
{
    if (!skip_without_qemu_img(f)) {
        commit_over(f, "raw");
        commit_over(f, "qcow2");
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add("/disk/layers", Fixture, NULL, set_up, test_layers, tear_down);
    g_test_add("/disk/chains", Fixture, NULL, set_up, test_chains, tear_down);
    g_test_add("/disk/bad-json", Fixture, NULL, set_up, test_bad_json, tear_down);
    g_test_add("/disk/overlay", Fixture, NULL, set_up, test_overlay, tear_down);
    g_test_add("/disk/probe", Fixture, NULL, set_up, test_probe, tear_down);
    g_test_add("/disk/late-commit", Fixture, NULL, set_up, test_late_commit, tear_down);
    g_test_add("/disk/late-commit-over-newer-image", Fixture, NULL, set_up, test_late_commit_over_newer_image,
               tear_down);
    g_test_add("/disk/late-commit-over-base", Fixture, NULL, set_up, test_late_commit_over_base, tear_down);
    g_test_add("/disk/commit", Fixture, NULL, set_up, test_commit, tear_down);
    return g_test_run();
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two real sf-pagers: one serves a snapshot, the other fetches it for "clones", threads of this process that touch
 * memory with a real userfaultfd. Killed, restarted, adopted, cut off. argv[1]: path of sf-pager.
 */
#include <gio/gio.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "sfvmm/cluster/pki.h"
#include "sfvmm/pager/multicast_blob.h"
#include "sfvmm/pager/multicast_group.h"
#include "sfvmm/pager/pager.h"
#include "sfvmm/wire/state_file.h"
#include "tests/unit/pager/common.h"

#define STATE_LENGTH 5000u
#define WAIT_SECONDS 60
#define FAULT_SECONDS 5 /* bound of a fault */
#define MULTICAST     0x100u /* of a flavour: pages come by multicast too; else it is a SfPagerSecurity */
#define BLOB_TRIES    10u

static const char *binary;

typedef struct {
    char *directory;
    char *keys[2];       /* directories of the pages certificates: origin, remote */
    SfPager *origin, *remote;
    SfMulticast *group; /* or NULL */
    SfRamBase *base[2];
    SfSnapshot *complete, *cached;
    SfPageCache *cache;
    int memory;
    guint port;
    guint lost, completed, restarted, down;
    char *reason;
} Fixture;

typedef struct {
    TestClone *clone;
    guint first, step;
    gint wrong, touched;
} Toucher;

/* ---- helpers ---- */

static void wait_until(gboolean (*condition)(gpointer data), gpointer data)
{
    gint64 end = g_get_monotonic_time() + WAIT_SECONDS * G_USEC_PER_SEC;

    while (!condition(data)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        if (!g_main_context_iteration(NULL, FALSE)) {
            g_usleep(1000);
        }
    }
}

static gpointer touch_thread(gpointer data)
{
    Toucher *toucher = data;

    for (guint page = toucher->first; page < TEST_PAGES; page += toucher->step) {
        if (!test_page_is_right(toucher->clone->memory + (gsize)page * SF_PAGE_SIZE, page)) {
            g_atomic_int_inc(&toucher->wrong);
        }
        g_atomic_int_inc(&toucher->touched);
    }
    g_atomic_int_set(&toucher->first, TEST_PAGES); /* done */
    return NULL;
}

static gboolean toucher_done(gpointer data)
{
    return g_atomic_int_get(&((Toucher *)data)->first) == TEST_PAGES;
}

static gboolean toucher_half(gpointer data)
{
    return g_atomic_int_get(&((Toucher *)data)->touched) >= 20;
}

/* Touches pages in a thread while the main loop runs. */
static void touch_all(TestClone *clone, guint first, guint step)
{
    Toucher toucher = { .clone = clone, .first = first, .step = step };
    GThread *thread = g_thread_new("touch", touch_thread, &toucher);

    wait_until(toucher_done, &toucher);
    g_thread_join(thread);
    g_assert_cmpint(toucher.wrong, ==, 0);
}

static void on_lost(SfPager *pager, const char *reason, gpointer data)
{
    Fixture *f = data;

    f->lost++;
    g_free(f->reason);
    f->reason = g_strdup(reason);
}

static void on_complete(SfPager *pager, gpointer data)
{
    ((Fixture *)data)->completed++;
}

static void on_sources(SfPager *pager, guint up, gpointer data)
{
    ((Fixture *)data)->down += up == 0;
}

static void on_restarted(SfPager *pager, const char *reason, gpointer data)
{
    ((Fixture *)data)->restarted++;
}

static gboolean is_complete(gpointer data)
{
    return ((Fixture *)data)->completed > 0;
}

static gboolean is_lost(gpointer data)
{
    return ((Fixture *)data)->lost > 0;
}

static gboolean is_down(gpointer data)
{
    return ((Fixture *)data)->down > 0;
}

static gboolean is_restarted(gpointer data)
{
    return ((Fixture *)data)->restarted > 0;
}

static void on_result(GObject *source, GAsyncResult *result, gpointer data)
{
    *(GAsyncResult **)data = g_object_ref(result);
}

static gboolean has_result(gpointer data)
{
    return *(GAsyncResult **)data != NULL;
}

static SfPagerStats stats_of(SfPager *pager)
{
    GAsyncResult *result = NULL;
    g_autoptr(GError) error = NULL;
    SfPagerStats stats;

    sf_pager_stats_async(pager, on_result, &result);
    wait_until(has_result, &result);
    g_assert_true(sf_pager_stats_finish(pager, result, &stats, &error));
    g_assert_no_error(error);
    g_object_unref(result);
    return stats;
}

/* ---- the fixture ---- */

static int listen_loopback(guint *port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_cmpint(listen(fd, 16), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&address, &length), ==, 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static GBytes *snapshot_payload(void)
{
    struct {
        struct sf_qc_snapshot_reply reply;
        struct sf_qc_snapshot_block block;
    } payload = {
        .reply = { .state_length = STATE_LENGTH, .device_length = 100, .n_blocks = 1, .pause = 1, .at = 1 },
        .block = { .id = "pc.ram", .length = TEST_LENGTH },
    };

    return g_bytes_new(&payload, sizeof(payload));
}

static void make_snapshots(Fixture *f)
{
    g_autoptr(GBytes) payload = snapshot_payload();
    g_autofree char *state = g_malloc0(STATE_LENGTH);
    g_autoptr(GBytes) state_bytes = g_bytes_new(state, STATE_LENGTH);
    g_autoptr(GArray) runs = test_present_runs();
    SfCachedBlockSpec spec = { .id = "pc.ram", .length = TEST_LENGTH, .present = runs };
    g_autoptr(GError) error = NULL;
    int fds[2] = { memfd_create("state", MFD_CLOEXEC) };

    g_assert_cmpint(ftruncate(fds[0], STATE_LENGTH), ==, 0);
    f->memory = test_memory_new();
    fds[1] = fcntl(f->memory, F_DUPFD_CLOEXEC, 0);
    for (guint i = 0; i < 2; i++) {
        f->base[i] = sf_ram_base_new();
    }
    f->complete = sf_snapshot_new("s-1", f->base[0], NULL, payload, fds, 2, &error);
    g_assert_no_error(error);
    f->cache = sf_page_cache_new(&spec, 1, SF_AVOID_ALL, &error);
    g_assert_no_error(error);
    f->cached = sf_snapshot_new_cached("s-1", f->base[1], f->cache, state_bytes, 100, &error);
    g_assert_no_error(error);
    g_assert_true(sf_snapshot_is_lazy(f->cached));
}

static SfPager *start(Fixture *f, const char *host, int listen_fd, SfPagerSecurity security)
{
    g_autofree char *run = g_build_filename(f->directory, host, NULL);
    SfPagerOptions options = { .binary = binary, .run_directory = run, .snapshot = "s-1", .uid = 65534, .gid = 65534,
                               .listen_fd = listen_fd, .security = security, .keys = f->keys[0],
                               .fault_seconds = FAULT_SECONDS };
    g_autoptr(GError) error = NULL;
    SfPager *pager;

    if (geteuid() != 0) {
        options.uid = geteuid();
        options.gid = getegid();
    }
    pager = sf_pager_start(&options, &error);
    g_assert_no_error(error);
    g_signal_connect(pager, "lost", G_CALLBACK(on_lost), f);
    g_signal_connect(pager, "complete", G_CALLBACK(on_complete), f);
    g_signal_connect(pager, "restarted", G_CALLBACK(on_restarted), f);
    g_signal_connect(pager, "sources", G_CALLBACK(on_sources), f);
    return pager;
}

static void add_source(Fixture *f, SfPagerSecurity security)
{
    g_autofree char *uri = g_strdup_printf("nbd%s://127.0.0.1:%u/s-1/{block}", security ? "s" : "", f->port);
    SfPageSource source = { .uri = uri, .security = security, .keys = f->keys[1] };
    g_autoptr(GError) error = NULL;

    sf_pager_add_source(f->remote, &source, &error);
    g_assert_no_error(error);
}

static void make_keys(Fixture *f)
{
    const SfPkiOptions options = { 0 };
    const char *const addresses[] = { "127.0.0.1", NULL };
    g_autofree char *pki = g_build_filename(f->directory, "pki", NULL);
    g_autoptr(GError) error = NULL;

    sf_pki_make_ca(pki, &options, &error);
    g_assert_no_error(error);
    sf_pki_make_host(pki, "origin", addresses, &options, &error);
    g_assert_no_error(error);
    sf_pki_make_host(pki, "remote", addresses, &options, &error);
    g_assert_no_error(error);
    f->keys[0] = g_build_filename(pki, "origin", "pages", NULL);
    f->keys[1] = g_build_filename(pki, "remote", "pages", NULL);
}

static void make_group(Fixture *f)
{
    SfMulticastConfig config;
    g_autoptr(GError) error = NULL;

    sf_multicast_config_init(&config);
    f->group = sf_multicast_new(&config, f->origin, (guint64)getpid(), "127.0.0.1", 1, &error);
    g_assert_no_error(error);
}

static void join_group(Fixture *f)
{
    g_autoptr(JsonObject) invitation = sf_multicast_invite(f->group, "remote", "127.0.0.1");
    g_autoptr(GError) error = NULL;

    g_assert_nonnull(invitation);
    g_assert_null(sf_multicast_invite(f->group, "other", "127.0.0.2")); /* another link */
    sf_multicast_join(f->remote, invitation, "127.0.0.1", "127.0.0.1", &error);
    g_assert_no_error(error);
}

static void take_result(GObject *source, GAsyncResult *result, gpointer data)
{
    *(GAsyncResult **)data = g_object_ref(result);
}

static GBytes *receive_blob(Fixture *f, const char *digest, gsize length, GError **error)
{
    g_autoptr(GAsyncResult) result = NULL;

    sf_multicast_blob_receive_async(f->remote, digest, length, take_result, &result);
    while (!result) {
        g_main_context_iteration(NULL, TRUE);
    }
    return sf_multicast_blob_receive_finish(result, error);
}

/* The same, of what was sent. On a busy machine it may be late, and a fork would ask the origin by its peer: so again.
 */
static GBytes *receive_sent_blob(Fixture *f, const char *digest, GBytes *blob)
{
    for (guint i = 0; i < BLOB_TRIES; i++) {
        g_autoptr(GError) error = NULL;
        GBytes *got = receive_blob(f, digest, g_bytes_get_size(blob), &error);
        if (got) {
            return got;
        }
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_TIMED_OUT);
        sf_multicast_blob_send(f->origin, digest, blob);
    }
    g_error("the blob has not come in %u tries", BLOB_TRIES);
}

/* What the origin sends comes, before anybody listens or after; what it does not send does not. */
static void pass_blob(Fixture *f)
{
    g_autofree char *text = g_strnfill(100000, 'x');
    g_autoptr(GBytes) blob = g_bytes_new(text, strlen(text));
    g_autofree char *digest = g_compute_checksum_for_bytes(G_CHECKSUM_SHA256, blob);
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) got = NULL;

    sf_multicast_blob_send(f->origin, digest, blob);
    for (guint i = 0; i < 2; i++) {
        got = receive_sent_blob(f, digest, blob);
        g_assert_true(g_bytes_equal(got, blob));
        g_clear_pointer(&got, g_bytes_unref);
    }
    digest[0] = digest[0] == '0' ? '1' : '0';
    g_assert_null(receive_blob(f, digest, strlen(text), &error));
    g_assert_nonnull(error);
}

/* Both pagers connected before the snapshot exists, then given it, as in a fork. */
static void set_up(Fixture *f, gconstpointer data)
{
    gboolean multicast = GPOINTER_TO_UINT(data) & MULTICAST;
    SfPagerSecurity security = GPOINTER_TO_UINT(data) & ~MULTICAST;
    const char *const names[] = { "remote", NULL };
    g_autoptr(GError) error = NULL;
    int listener = listen_loopback(&f->port);

    f->directory = g_dir_make_tmp("sf-pager-XXXXXX", NULL);
    g_chmod(f->directory, 0755);
    make_keys(f);
    f->origin = start(f, "origin", listener, security);
    sf_pager_allow(f->origin, names, &error);
    g_assert_no_error(error);
    f->remote = start(f, "remote", -1, SF_PAGER_PLAIN);
    if (multicast) {
        make_group(f);
        join_group(f);
    }
    add_source(f, security);
    make_snapshots(f);
    sf_pager_set_snapshot(f->origin, f->complete, &error);
    g_assert_no_error(error);
    if (multicast) {
        pass_blob(f);
    }
    sf_pager_set_snapshot(f->remote, f->cached, &error);
    g_assert_no_error(error);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    if (f->remote) {
        sf_pager_stop(f->remote);
        g_object_unref(f->remote);
    }
    sf_pager_stop(f->origin);
    g_object_unref(f->origin);
    g_clear_pointer(&f->group, sf_multicast_free);
    sf_snapshot_unref(f->complete);
    sf_snapshot_unref(f->cached);
    sf_page_cache_unref(f->cache);
    for (guint i = 0; i < 2; i++) {
        sf_ram_base_unref(f->base[i]);
        g_free(f->keys[i]);
    }
    close(f->memory);
    sf_state_remove_folder(f->directory);
    g_free(f->directory);
    g_free(f->reason);
}

static gboolean attach(Fixture *f, const char *name, TestClone *clone)
{
    const SfFaultHandler *handler = sf_pager_fault_handler(f->remote);
    SfMappedBlock block = { .id = "pc.ram", .length = TEST_LENGTH };
    g_autoptr(GError) error = NULL;

    if (!test_clone_new(clone, f->cache->blocks[0].memory_ro)) {
        g_test_skip("no userfaultfd: /dev/userfaultfd can't be opened, vm.unprivileged_userfaultfd is 0");
        return FALSE;
    }
    block.address = (guintptr)clone->memory;
    handler->attach(handler->owner, name, getpid(), clone->uffd, &block, 1, &error);
    g_assert_no_error(error);
    return TRUE;
}

static void detach(Fixture *f, const char *name, TestClone *clone)
{
    const SfFaultHandler *handler = sf_pager_fault_handler(f->remote);

    handler->detach(handler->owner, name);
    test_clone_free(clone);
}

/* ---- tests ---- */

/* Statistics are there: most pages came by multicast. */
static void check_group(Fixture *f)
{
    guint64 present = sf_page_cache_present_bytes(f->cache);
    JsonObject *here = sf_pager_multicast_stats(f->remote), *origin;

    g_assert_cmpuint(stats_of(f->origin).served_bytes, <, present / 4);
    origin = sf_pager_multicast_stats(f->origin);
    g_assert_nonnull(origin);
    g_assert_nonnull(here);
    g_assert_cmpstr(json_object_get_string_member(here, "state"), ==, "multicast");
    g_assert_cmpint(json_object_get_int_member(here, "asked"), >, (gint64)(present / SF_PAGE_SIZE * 3 / 4));
    g_assert_cmpint(json_object_get_int_member(origin, "receivers"), ==, 1);
}

/* Every page of the first clone is right; the second asks for nothing more. */
static void test_touch(Fixture *f, gconstpointer data)
{
    TestClone one, two;
    SfPagerStats first, second;

    if (!attach(f, "one", &one)) {
        return;
    }
    touch_all(&one, 0, 256); /* the pages around them came unasked, and nobody has looked at them */
    first = stats_of(f->remote);
    g_assert_cmpuint(first.prefetched_unused, >, 0);
    g_assert_cmpuint(first.prefetched_unused, <=, first.prefetched_bytes);
    touch_all(&one, 0, 1);
    first = stats_of(f->remote);
    g_assert_cmpuint(first.faults, >, 0);
    g_assert_cmpuint(first.demand_faults, >, 0);
    g_assert_cmpuint(first.fetched_bytes, >=, sf_page_cache_present_bytes(f->cache));
    g_assert_cmpuint(first.resident_bytes, ==, sf_page_cache_present_bytes(f->cache));
    g_assert_cmpuint(sf_page_cache_resident_bytes(f->cache), ==, first.resident_bytes);
    g_assert_cmpuint(first.prefetched_unused, ==, 0);
    if (f->group) {
        check_group(f);
    } else {
        g_assert_cmpuint(stats_of(f->origin).served_bytes, >=, first.resident_bytes);
    }
    g_assert_cmpuint(first.sources_up, ==, 1);
    wait_until(is_complete, f);
    attach(f, "two", &two);
    touch_all(&two, 0, 1);
    second = stats_of(f->remote);
    g_assert_cmpuint(second.fetched_bytes, ==, first.fetched_bytes);
    g_assert_cmpuint(second.clones, ==, 2);
    detach(f, "one", &one);
    detach(f, "two", &two);
    g_assert_cmpuint(stats_of(f->remote).clones, ==, 0);
}

/* Completed in the background; then neither the source nor the pager are needed. */
static void test_complete(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *page = g_malloc(SF_PAGE_SIZE);

    sf_pager_complete(f->remote, &error);
    g_assert_no_error(error);
    wait_until(is_complete, f);
    for (guint i = 0; i < TEST_PAGES; i++) {
        g_assert_cmpint(pread(f->cache->blocks[0].memory, page, SF_PAGE_SIZE, (off_t)i * SF_PAGE_SIZE), ==,
                        SF_PAGE_SIZE);
        g_assert_true(test_page_is_right(page, i));
    }
    g_assert_cmpuint(stats_of(f->remote).resident_bytes, ==, sf_page_cache_present_bytes(f->cache));
}

/* sf-pager killed under a clone's hands, on both sides: the clone waits, then goes on. */
static void test_killed(Fixture *f, gconstpointer data)
{
    TestClone clone;
    Toucher toucher = { .clone = &clone, .step = 1 };
    GThread *thread;

    if (!attach(f, "one", &clone)) {
        return;
    }
    sf_pager_set_prefetch(f->remote, 0, NULL);
    thread = g_thread_new("touch", touch_thread, &toucher);
    for (guint i = 0; i < 3; i++) {
        f->restarted = 0;
        g_atomic_int_set(&toucher.touched, 0);
        wait_until(toucher_half, &toucher);
        kill(sf_pager_pid(i == 1 ? f->origin : f->remote), SIGKILL);
        wait_until(is_restarted, f);
    }
    wait_until(toucher_done, &toucher);
    g_thread_join(thread);
    g_assert_cmpint(toucher.wrong, ==, 0);
    detach(f, "one", &clone);
}

/* A later sfvmmd takes both over: the object goes, the process stays. */
static void test_adopted(Fixture *f, gconstpointer data)
{
    g_autofree char *run = g_build_filename(f->directory, "remote", NULL);
    TestClone clone;
    g_autoptr(GError) error = NULL;
    pid_t pid = sf_pager_pid(f->remote);
    guint n_fds;

    if (!attach(f, "one", &clone)) {
        return;
    }
    touch_all(&clone, 0, 64);
    g_object_unref(f->remote);
    f->remote = sf_pager_adopt(run, "s-1", &error);
    g_assert_no_error(error);
    g_signal_connect(f->remote, "restarted", G_CALLBACK(on_restarted), f);
    g_signal_connect(f->remote, "complete", G_CALLBACK(on_complete), f);
    g_assert_cmpint(sf_pager_pid(f->remote), ==, pid);
    g_assert_true(sf_pager_is_attached(f->remote, "one"));
    g_assert_false(sf_pager_is_attached(f->remote, "two"));
    g_assert_nonnull(sf_pager_cache(f->remote));
    g_assert_nonnull(sf_pager_fds(f->remote, &n_fds));
    g_assert_cmpuint(n_fds, ==, 3); /* state, cache, present runs */
    touch_all(&clone, 1, 64);
    kill(pid, SIGKILL); /* and the adopted one can be replaced too */
    wait_until(is_restarted, f);
    touch_all(&clone, 2, 64);
    add_source(f, GPOINTER_TO_UINT(data) & ~MULTICAST); /* its keys stand beside those of before */

    /* What was told to nobody is told to the next one. */
    touch_all(&clone, 0, 1);
    wait_until(is_complete, f);
    f->completed = 0;
    g_object_unref(f->remote);
    f->remote = sf_pager_adopt(run, "s-1", &error);
    g_assert_no_error(error);
    g_signal_connect(f->remote, "complete", G_CALLBACK(on_complete), f);
    wait_until(is_complete, f);
    detach(f, "one", &clone);
}

static gboolean is_named(const char *snapshot, gpointer name)
{
    return strcmp(snapshot, name) == 0;
}

static gboolean has_ended(gpointer pid)
{
    return waitpid(GPOINTER_TO_INT(pid), NULL, WNOHANG) != 0;
}

/* One that an earlier sfvmmd left ends if nobody needs it. */
static void test_swept(Fixture *f, gconstpointer data)
{
    g_autofree char *run = g_build_filename(f->directory, "remote", NULL);
    g_autofree char *folder = g_build_filename(run, "pager", "s-1", NULL);
    g_autoptr(GError) error = NULL;
    pid_t pid = sf_pager_pid(f->remote);

    g_object_unref(f->remote);
    sf_pagers_sweep(run, is_named, (gpointer) "s-1");
    f->remote = sf_pager_adopt(run, "s-1", &error);
    g_assert_no_error(error);
    g_assert_cmpint(sf_pager_pid(f->remote), ==, pid);
    g_clear_object(&f->remote);
    sf_pagers_sweep(run, is_named, (gpointer) "s-2");
    wait_until(has_ended, GINT_TO_POINTER(pid));
    g_assert_false(g_file_test(folder, G_FILE_TEST_EXISTS));
    f->remote = start(f, "remote", -1, SF_PAGER_PLAIN); /* for the end of the test */
}

/* What one clone needed is fetched unasked for the next host's. */
static void test_working_set(Fixture *f, gconstpointer data)
{
    GAsyncResult *result = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(GArray) runs = NULL;
    guint64 pages = 0;
    TestClone clone;

    if (!attach(f, "one", &clone)) {
        return;
    }
    touch_all(&clone, 0, 256);
    sf_pager_working_set_async(f->remote, on_result, &result);
    wait_until(has_result, &result);
    runs = sf_pager_working_set_finish(f->remote, result, &error);
    g_assert_no_error(error);
    g_object_unref(result);
    g_assert_cmpuint(runs->len, >=, 10);
    g_assert_cmpuint(g_array_index(runs, struct sf_pager_run, 0).offset, ==, 0);
    detach(f, "one", &clone);

    sf_pager_stop(f->remote);
    g_object_unref(f->remote);
    sf_snapshot_unref(f->complete);
    sf_snapshot_unref(f->cached);
    sf_page_cache_unref(f->cache);
    for (guint i = 0; i < 2; i++) {
        sf_ram_base_unref(f->base[i]);
    }
    close(f->memory);
    make_snapshots(f); /* an empty cache */
    f->remote = start(f, "remote", -1, SF_PAGER_PLAIN);
    if (f->group) {
        join_group(f);
    }
    add_source(f, GPOINTER_TO_UINT(data) & ~MULTICAST);
    sf_pager_set_working_set(f->remote, runs, &error);
    g_assert_no_error(error);
    sf_pager_set_snapshot(f->remote, f->cached, &error);
    g_assert_no_error(error);
    for (guint i = 0; i + 2 < runs->len; i++) {
        pages += g_array_index(runs, struct sf_pager_run, i).pages;
    }
    gint64 end = g_get_monotonic_time() + WAIT_SECONDS * G_USEC_PER_SEC;
    while (stats_of(f->remote).prefetched_bytes < pages * 7 / 8 * SF_PAGE_SIZE && /* an eighth is zero */
           g_get_monotonic_time() < end) {
        g_usleep(10000);
    }
    g_assert_cmpint(g_get_monotonic_time(), <, end);
    g_assert_true(attach(f, "one", &clone));
    touch_all(&clone, 0, 256);
    g_assert_cmpuint(stats_of(f->remote).demand_faults, <=, 2); /* of the two runs that were not waited for */
    detach(f, "one", &clone);
}

/* One page is touched; nobody brings it within the bound: told with this reason. */
static void check_lost(Fixture *f, TestClone *clone, Toucher *toucher, GThread **thread, const char *text)
{
    *toucher = (Toucher){ .clone = clone, .step = TEST_PAGES };
    *thread = g_thread_new("touch", touch_thread, toucher);
    wait_until(is_lost, f);
    g_test_message("%s", f->reason);
    g_assert_nonnull(strstr(f->reason, text));
}

/* The source does not know us (any more); when it does, the clone goes on. */
static void test_not_allowed(Fixture *f, gconstpointer data)
{
    const char *const nobody[] = { "somebody-else", NULL };
    const char *const names[] = { "remote", NULL };
    TestClone clone;
    Toucher toucher;
    GThread *thread;

    sf_pager_allow(f->origin, nobody, NULL);
    if (!attach(f, "one", &clone)) {
        return;
    }
    wait_until(is_down, f);
    check_lost(f, &clone, &toucher, &thread, "may not read it");
    sf_pager_allow(f->origin, names, NULL);
    wait_until(toucher_done, &toucher);
    g_thread_join(thread);
    g_assert_cmpint(toucher.wrong, ==, 0);
    detach(f, "one", &clone);
}

/* Certificates of another cluster. */
static void test_strangers(Fixture *f, gconstpointer data)
{
    Fixture other = { .directory = g_build_filename(f->directory, "other", NULL) };
    SfPageSource right = { .security = SF_PAGER_X509, .keys = f->keys[1] };
    g_autofree char *uri = g_strdup_printf("nbds://127.0.0.1:%u/s-1/{block}", f->port);
    TestClone clone;
    Toucher toucher;
    GThread *thread;

    sf_pager_stop(f->remote);
    g_object_unref(f->remote);
    f->remote = start(f, "remote", -1, SF_PAGER_PLAIN);
    g_mkdir(other.directory, 0755);
    make_keys(&other);
    SfPageSource wrong = { .uri = uri, .security = SF_PAGER_X509, .keys = other.keys[1] };
    g_assert_true(sf_pager_add_source(f->remote, &wrong, NULL));
    g_assert_true(sf_pager_set_snapshot(f->remote, f->cached, NULL));
    if (!attach(f, "one", &clone)) {
        return;
    }
    check_lost(f, &clone, &toucher, &thread, "of another CA");
    right.uri = uri;
    g_assert_true(sf_pager_add_source(f->remote, &right, NULL)); /* the second one does */
    wait_until(toucher_done, &toucher);
    g_thread_join(thread);
    g_assert_cmpint(toucher.wrong, ==, 0);
    detach(f, "one", &clone);
    g_free(other.directory);
    g_free(other.keys[0]);
    g_free(other.keys[1]);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        guint flavour;
    } flavours[] = { { "plain", SF_PAGER_PLAIN }, { "tls", SF_PAGER_X509 }, { "multicast", SF_PAGER_X509 | MULTICAST } };

    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(argc, >, 1);
    binary = argv[1];
    signal(SIGPIPE, SIG_IGN);
    for (guint i = 0; i < G_N_ELEMENTS(flavours); i++) {
        static const struct {
            const char *name;
            void (*test)(Fixture *f, gconstpointer data);
        } tests[] = {
            { "touch", test_touch },     { "complete", test_complete },       { "killed", test_killed },
            { "adopted", test_adopted }, { "working-set", test_working_set },
        };
        for (guint j = 0; j < G_N_ELEMENTS(tests); j++) {
            g_autofree char *path = g_strdup_printf("/pager/%s/%s", flavours[i].name, tests[j].name);
            g_test_add(path, Fixture, GUINT_TO_POINTER(flavours[i].flavour), set_up, tests[j].test, tear_down);
        }
    }
    g_test_add("/pager/tls/not-allowed", Fixture, GUINT_TO_POINTER(SF_PAGER_X509), set_up, test_not_allowed, tear_down);
    g_test_add("/pager/tls/strangers", Fixture, GUINT_TO_POINTER(SF_PAGER_X509), set_up, test_strangers, tear_down);
    g_test_add("/pager/plain/swept", Fixture, GUINT_TO_POINTER(SF_PAGER_PLAIN), set_up, test_swept, tear_down);
    return g_test_run();
}

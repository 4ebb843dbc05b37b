/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memtap and prefetch in this process, with real userfaultfds, against NBD servers that are not ours (nbdkit): what
 * they may do wrong, and what happens then. nbdkit's pattern plugin gives each 8 bytes the big-endian offset that
 * they are at.
 */
#include <arpa/inet.h>
#include <gio/gio.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include "sfvmm/pager/memtap.h"
#include "sfvmm/pager/prefetch.h"
#include "sfvmm/wire/state_file.h"
#include "tests/unit/pager/common.h"

#define WAIT_SECONDS  60
#define FAULT_SECONDS 2 /* bound of a fault in the tests of it */

typedef struct {
    char *directory;
    struct page_store *store;
    struct memtap *memtap;
    struct prefetch *prefetch;
    int cache;
    TestClone clone;
    struct source sources[2];
    GPid servers[2];
    const char *tls_keys; /* argument of the next server, which listens at port; NULL: plain, at a unix socket */
    guint port;
    atomic_int lost, complete, ups, downs;
    char reason[512], why_down[512]; /* written in memtap's thread before the count */
} Fixture;

static gboolean page_has_pattern(const char *bytes, guint page)
{
    for (guint i = 0; i < SF_PAGE_SIZE; i += 8) {
        guint64 word;
        memcpy(&word, bytes + i, sizeof(word));
        if (GUINT64_FROM_BE(word) != (guint64)page * SF_PAGE_SIZE + i) {
            return FALSE;
        }
    }
    return TRUE;
}

static void wait_for(atomic_int *value, int at_least)
{
    gint64 end = g_get_monotonic_time() + WAIT_SECONDS * G_USEC_PER_SEC;

    while (atomic_load(value) < at_least) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

/* ---- servers ---- */

static char *socket_path(Fixture *f, guint index)
{
    return g_strdup_printf("%s/socket%u", f->directory, index);
}

/* size and up to one filter with one argument, or NULL. */
static void start_server(Fixture *f, guint index, const char *size, const char *filter, const char *argument)
{
    g_autofree char *path = socket_path(f, index);
    g_autofree char *size_argument = g_strdup_printf("size=%s", size);
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GError) error = NULL;
    gint64 end = g_get_monotonic_time() + WAIT_SECONDS * G_USEC_PER_SEC;

    unlink(path);
    g_ptr_array_add(argv, g_strdup("nbdkit"));
    g_ptr_array_add(argv, g_strdup("-f"));
    if (f->tls_keys) { /* libnbd looks at certificates only where there is an address */
        g_ptr_array_add(argv, g_strdup_printf("--pidfile=%s", path));
        g_ptr_array_add(argv, g_strdup("-i127.0.0.1"));
        g_ptr_array_add(argv, g_strdup_printf("-p%u", f->port));
    } else {
        g_ptr_array_add(argv, g_strdup("-U"));
        g_ptr_array_add(argv, g_strdup(path));
    }
    if (f->tls_keys) {
        g_ptr_array_add(argv, g_strdup("--tls=require"));
        g_ptr_array_add(argv, g_strdup(f->tls_keys));
    }
    if (filter) {
        g_ptr_array_add(argv, g_strdup_printf("--filter=%s", filter));
    }
    g_ptr_array_add(argv, g_strdup("pattern"));
    g_ptr_array_add(argv, g_steal_pointer(&size_argument));
    if (argument) {
        g_ptr_array_add(argv, g_strdup(argument));
    }
    g_ptr_array_add(argv, NULL);
    g_spawn_async(NULL, (char **)argv->pdata, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                  &f->servers[index], &error);
    g_assert_no_error(error);
    while (!g_file_test(path, G_FILE_TEST_EXISTS)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

static void stop_server(Fixture *f, guint index)
{
    if (f->servers[index]) {
        kill(f->servers[index], SIGKILL);
        waitpid(f->servers[index], NULL, 0);
        f->servers[index] = 0;
    }
}

/* ---- the fixture ---- */

static void on_lost(const char *reason, void *owner)
{
    Fixture *f = owner;

    g_strlcpy(f->reason, reason, sizeof(f->reason));
    atomic_fetch_add(&f->lost, 1);
}

static void on_source(bool up, const char *uri, const char *reason, void *owner)
{
    Fixture *f = owner;

    if (!up && atomic_load(&f->downs) == 0) {
        g_strlcpy(f->why_down, reason, sizeof(f->why_down));
    }
    atomic_fetch_add(up ? &f->ups : &f->downs, 1);
}

static void on_complete(void *owner)
{
    atomic_fetch_add(&((Fixture *)owner)->complete, 1);
}

static void on_prefetch_down(const char *uri, const char *reason, void *owner)
{
}

static void add_source(Fixture *f, guint index)
{
    g_autofree char *path = socket_path(f, index);

    f->sources[index].uri = g_strdup_printf("nbd+unix:///{block}?socket=%s", path);
    f->sources[index].security = SOURCE_PLAIN;
    memtap_add_source(f->memtap, &f->sources[index]);
    prefetch_add_source(f->prefetch, &f->sources[index]);
}

static void set_up(Fixture *f, gconstpointer data)
{
    struct memtap_options options = { .fault_seconds = GPOINTER_TO_UINT(data),
                                      .handlers = { on_lost, on_source, on_complete },
                                      .owner = f };
    struct prefetch_options prefetch = { .complete = on_complete, .down = on_prefetch_down, .owner = f };

    f->directory = g_dir_make_tmp("sf-memtap-XXXXXX", NULL);
    f->store = page_store_new();
    f->memtap = memtap_new(f->store, &options);
    f->prefetch = prefetch_new(f->store, &prefetch);
    g_assert_true(memtap_start(f->memtap));
    g_assert_true(prefetch_start(f->prefetch));
    f->cache = memfd_create("cache", MFD_CLOEXEC);
    g_assert_cmpint(ftruncate(f->cache, TEST_LENGTH), ==, 0);
}

static void set_store(Fixture *f)
{
    struct page_block *block = calloc(1, sizeof(*block));
    struct sf_qc_extent *all = malloc(sizeof(*all));

    *all = (struct sf_qc_extent){ 0, TEST_LENGTH };
    strcpy(block->id, "pc.ram");
    block->length = TEST_LENGTH;
    block->is_cache = true;
    block->base = fcntl(f->cache, F_DUPFD_CLOEXEC, 0);
    block->n_present = 1;
    block->present = all;
    page_store_set(f->store, "s-1", block, 1, memfd_create("state", MFD_CLOEXEC), 0);
    memtap_store_is_set(f->memtap);
    prefetch_store_is_set(f->prefetch);
}

static gboolean attach(Fixture *f)
{
    struct memtap_area area = { .block = 0, .length = TEST_LENGTH };

    if (!test_clone_new(&f->clone, f->cache)) {
        g_test_skip("no userfaultfd: /dev/userfaultfd can't be opened, vm.unprivileged_userfaultfd is 0");
        return FALSE;
    }
    area.address = (guintptr)f->clone.memory;
    memtap_attach(f->memtap, "vm", fcntl(f->clone.uffd, F_DUPFD_CLOEXEC, 0), &area, 1);
    return TRUE;
}

static void tear_down(Fixture *f, gconstpointer data)
{
    prefetch_free(f->prefetch);
    memtap_free(f->memtap);
    page_store_free(f->store);
    if (f->clone.memory) {
        test_clone_free(&f->clone);
    }
    for (guint i = 0; i < G_N_ELEMENTS(f->servers); i++) {
        stop_server(f, i);
        g_free(f->sources[i].uri);
    }
    close(f->cache);
    sf_state_remove_folder(f->directory);
    g_free(f->directory);
}

static void touch(Fixture *f, guint first, guint step)
{
    for (guint page = first; page < TEST_PAGES; page += step) {
        g_assert_true(page_has_pattern(f->clone.memory + (gsize)page * SF_PAGE_SIZE, page));
    }
}

static gpointer touch_one(gpointer data)
{
    Fixture *f = data;

    g_assert_true(page_has_pattern(f->clone.memory, 0));
    return NULL;
}

/* ---- tests ---- */

static void test_foreign(Fixture *f, gconstpointer data)
{
    start_server(f, 0, "16M", NULL, NULL);
    add_source(f, 0);
    set_store(f);
    if (!attach(f)) {
        return;
    }
    touch(f, 0, 1);
    wait_for(&f->complete, 1);
    g_assert_cmpint(atomic_load(&f->lost), ==, 0);
    g_assert_cmpuint(page_store_resident(f->store), ==, TEST_LENGTH);
    g_assert_cmpuint(atomic_load(&memtap_stats(f->memtap)->demand_faults), <, TEST_PAGES / 8); /* neighbours */
}

static void test_completion(Fixture *f, gconstpointer data)
{
    start_server(f, 0, "16M", NULL, NULL);
    add_source(f, 0);
    prefetch_set(f->prefetch, true, true);
    set_store(f);
    wait_for(&f->complete, 1);
    stop_server(f, 0);
    if (attach(f)) {
        touch(f, 0, 1); /* without a source */
    }
}

/* Every other read fails with EIO: asked again until it comes. */
static void test_read_errors(Fixture *f, gconstpointer data)
{
    start_server(f, 0, "16M", "error", "error-pread-rate=50%");
    add_source(f, 0);
    set_store(f);
    if (!attach(f)) {
        return;
    }
    memtap_set_neighbours(f->memtap, false);
    touch(f, 0, 64);
    prefetch_set(f->prefetch, true, true);
    wait_for(&f->complete, 1);
    touch(f, 0, 1);
}

/* The server dies in the middle and comes back: who waits goes on. */
static void test_server_restarts(Fixture *f, gconstpointer data)
{
    start_server(f, 0, "16M", "delay", "rdelay=20ms");
    add_source(f, 0);
    set_store(f);
    if (!attach(f)) {
        return;
    }
    memtap_set_neighbours(f->memtap, false);
    GThread *thread = g_thread_new("touch", touch_one, f);
    g_usleep(5000);
    stop_server(f, 0);
    start_server(f, 0, "16M", NULL, NULL);
    g_thread_join(thread);
    touch(f, 0, 64);
    g_assert_cmpint(atomic_load(&f->lost), ==, 0);
}

static void test_second_source(Fixture *f, gconstpointer data)
{
    start_server(f, 0, "16M", NULL, NULL);
    start_server(f, 1, "16M", NULL, NULL);
    add_source(f, 0);
    add_source(f, 1);
    set_store(f);
    if (!attach(f)) {
        return;
    }
    memtap_set_neighbours(f->memtap, false);
    touch(f, 0, 128);
    stop_server(f, 0);
    touch(f, 1, 128);
    g_assert_cmpint(atomic_load(&f->lost), ==, 0);
}

/* The fault is told as lost after its bound; when a source comes all the same, the clone goes on. */
static void test_lost(Fixture *f, gconstpointer data)
{
    set_store(f);
    if (!attach(f)) {
        return;
    }
    GThread *thread = g_thread_new("touch", touch_one, f);
    wait_for(&f->lost, 1);
    g_assert_nonnull(strstr(f->reason, "there is no page source"));
    start_server(f, 0, "16M", NULL, NULL);
    add_source(f, 0);
    g_thread_join(thread);
    g_assert_cmpint(atomic_load(&f->lost), ==, 1);
}

static void check_refused(Fixture *f, const char *text)
{
    set_store(f);
    if (!attach(f)) {
        return;
    }
    GThread *thread = g_thread_new("touch", touch_one, f);
    wait_for(&f->lost, 1);
    g_test_message("%s", f->reason);
    g_assert_true(strstr(f->reason, text) || strstr(f->why_down, text));
    stop_server(f, 0);
    start_server(f, 0, "16M", NULL, NULL);
    g_thread_join(thread);
}

static void test_wrong_size(Fixture *f, gconstpointer data)
{
    start_server(f, 0, "8M", NULL, NULL);
    add_source(f, 0);
    check_refused(f, "8388608 bytes, 16777216 expected");
}

static void test_wrong_export(Fixture *f, gconstpointer data)
{
    start_server(f, 0, "16M", "exportname", "exportname-strict=true");
    add_source(f, 0);
    check_refused(f, "no export \"pc.ram\"");
}

/* What no NBD server says. */
static gpointer garbage_thread(gpointer data)
{
    int listener = GPOINTER_TO_INT(data);
    char bytes[64];
    int fd;

    memset(bytes, 'x', sizeof(bytes));
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        ssize_t ignored = send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
        (void)ignored;
        close(fd);
    }
    return NULL;
}

static void test_garbage(Fixture *f, gconstpointer data)
{
    g_autofree char *path = socket_path(f, 0);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    g_assert_cmpint(bind(listener, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_cmpint(listen(listener, 16), ==, 0);
    GThread *thread = g_thread_new("garbage", garbage_thread, GINT_TO_POINTER(listener));
    add_source(f, 0);
    check_refused(f, "magic");
    shutdown(listener, SHUT_RDWR);
    g_thread_join(thread);
    close(listener);
}

/* ---- keys: certtool's, as our own tool makes none that are over ---- */

static void run_certtool(Fixture *f, const char *arguments)
{
    g_autofree char *command = g_strdup_printf("certtool %s", arguments);
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    int status;

    g_shell_parse_argv(command, NULL, &argv, &error);
    g_assert_no_error(error);
    g_spawn_sync(f->directory, argv, NULL,
                 G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL | G_SPAWN_STDERR_TO_DEV_NULL, NULL, NULL, NULL, NULL,
                 &status, &error);
    g_assert_no_error(error);
    g_spawn_check_wait_status(status, &error);
    g_assert_no_error(error);
}

static void write_file(Fixture *f, const char *name, const char *text)
{
    g_autofree char *path = g_build_filename(f->directory, name, NULL);

    g_assert_true(g_file_set_contents(path, text, -1, NULL));
}

static guint free_port(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&address, &length), ==, 0);
    close(fd);
    return ntohs(address.sin_port);
}

static void make_expired_keys(Fixture *f)
{
    write_file(f, "ca.info", "cn = CA\nca\ncert_signing_key\nexpiration_days = 10\n");
    write_file(f, "server.info",
               "cn = server\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\n"
               "activation_date = \"2020-01-01 00:00:00 UTC\"\n"
               "expiration_date = \"2021-01-01 00:00:00 UTC\"\n");
    run_certtool(f, "--generate-privkey --key-type=ecdsa --outfile ca-key.pem");
    run_certtool(f, "--generate-self-signed --load-privkey ca-key.pem --template ca.info --outfile ca-cert.pem");
    run_certtool(f, "--generate-privkey --key-type=ecdsa --outfile server-key.pem");
    run_certtool(f, "--generate-certificate --load-privkey server-key.pem --load-ca-certificate ca-cert.pem "
                    "--load-ca-privkey ca-key.pem --template server.info --outfile server-cert.pem");
}

static void test_expired(Fixture *f, gconstpointer data)
{
    g_autofree char *certtool = g_find_program_in_path("certtool");
    g_autofree char *keys = g_strdup_printf("--tls-certificates=%s", f->directory);

    if (!certtool) {
        g_test_skip("no certtool");
        return;
    }
    make_expired_keys(f);
    f->tls_keys = keys;
    f->port = free_port();
    start_server(f, 0, "16M", NULL, NULL);
    f->sources[0].uri = g_strdup_printf("nbds://127.0.0.1:%u/{block}", f->port);
    f->sources[0].security = SOURCE_X509;
    f->sources[0].keys = f->directory;
    memtap_add_source(f->memtap, &f->sources[0]);
    set_store(f);
    if (!attach(f)) {
        return;
    }
    GThread *thread = g_thread_new("touch", touch_one, f);
    wait_for(&f->lost, 1);
    g_test_message("%s", f->reason);
    g_assert_nonnull(strstr(f->reason, "has expired"));
    f->tls_keys = NULL;
    start_server(f, 1, "16M", NULL, NULL);
    add_source(f, 1);
    g_thread_join(thread);
}

static void on_fetched(void *data, int error)
{
    atomic_int *result = data;

    atomic_store(result, error ? error : 1000);
}

/* What the page server asks of a cache. */
static void test_fetch(Fixture *f, gconstpointer data)
{
    atomic_int first = 0, second = 0;

    set_store(f);
    page_store_fetch(f->store, 0, 0, 8 * SF_PAGE_SIZE, on_fetched, &first);
    wait_for(&first, 1); /* no source */
    g_assert_cmpint(atomic_load(&first), ==, ETIMEDOUT);
    start_server(f, 0, "16M", NULL, NULL);
    add_source(f, 0);
    page_store_fetch(f->store, 0, 4 * SF_PAGE_SIZE, PAGE_STORE_FETCH_MAX, on_fetched, &second);
    wait_for(&second, 1);
    g_assert_cmpint(atomic_load(&second), ==, 1000);
    g_assert_cmpint(page_store_base_state(f->store, 0, 4 * SF_PAGE_SIZE), ==, PAGE_DATA);
    g_assert_cmpint(page_store_base_state(f->store, 0, PAGE_STORE_FETCH_MAX), ==, PAGE_DATA);
}

static void test_names(void)
{
    static const struct {
        const char *uri, *name;
    } cases[] = {
        { "nbds://10.0.0.1:9001/s-4f/{block}", "s-4f/pc.ram" },
        { "nbd+unix:///{block}?socket=/run/x", "pc.ram" },
        { "nbd+unix:///?socket=/run/x", "" },
        { "nbd://host", "" },
        { "nbd://[::1]:9/a%20b", "a b" },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *name = source_export_name(cases[i].uri, "pc.ram");
        g_assert_cmpstr(name, ==, cases[i].name);
        g_assert_null(source_check_uri(cases[i].uri));
    }
    g_assert_nonnull(source_check_uri("http://host/"));
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*test)(Fixture *f, gconstpointer data);
        guint fault_seconds;
    } tests[] = {
        { "foreign", test_foreign, 0 },
        { "completion", test_completion, 0 },
        { "read-errors", test_read_errors, 0 },
        { "server-restarts", test_server_restarts, 0 },
        { "second-source", test_second_source, 0 },
        { "lost", test_lost, FAULT_SECONDS },
        { "wrong-size", test_wrong_size, FAULT_SECONDS },
        { "wrong-export", test_wrong_export, 2 * FAULT_SECONDS },
        { "garbage", test_garbage, FAULT_SECONDS },
        { "expired", test_expired, FAULT_SECONDS },
        { "fetch", test_fetch, FAULT_SECONDS },
    };
    g_autofree char *nbdkit = g_find_program_in_path("nbdkit");

    g_test_init(&argc, &argv, NULL);
    if (!nbdkit) {
        g_print("1..0 # SKIP no nbdkit\n");
        return 77;
    }
    g_test_add_func("/memtap/names", test_names);
    for (guint i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_autofree char *path = g_strdup_printf("/memtap/%s", tests[i].name);
        g_test_add(path, Fixture, GUINT_TO_POINTER(tests[i].fault_seconds), set_up, tests[i].test, tear_down);
    }
    return g_test_run();
}

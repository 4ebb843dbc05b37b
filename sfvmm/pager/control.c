/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *        pager.sock --> control (GLib main loop) --> page_store, once
 *                          |    |                --> memtap, prefetch, NBD server: orders to their threads
 *                       ledger  +<-- events of the threads (idle sources), forwarded to sfvmmd
 *
 * The ledger holds every order that makes this process what it is, as it came, with its descriptors: what has been
 * taken back (detach) or replaced (allow, prefetch, working set) is removed. `recall` gives it out entry by entry.
 * The parts of the process use duplicates of the ledger's descriptors, but for the directories of keys, which they
 * reach as /proc/self/fd/N.
 *
 * Without sfvmmd everything goes on; events that nobody hears are told again to the next one that connects, as their
 * causes last: lost, complete, sources.
 *
 * sfvmmd is trusted with our life, not with our memory safety: its messages are checked like anybody's.
 */
#include "sfvmm/pager/control.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <stdlib.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/pager/memtap.h"
#include "sfvmm/pager/multicast.h"
#include "sfvmm/pager/nbd_server.h"
#include "sfvmm/pager/page_store.h"
#include "sfvmm/pager/prefetch.h"
#include "sfvmm/wire/pager_message.h"
#include "sfvmm/wire/qemu_message.h"

#define TLS_UNIT "pages" /* OU of the certificates that may read */

typedef struct {
    SfPagerRequest *request;
    JsonObject *object;
    guint n_fds;
    int fds[SF_PAGER_MAX_FDS];
} Entry;

struct Control {
    char *snapshot;
    int listener, socket;
    guint listen_source, socket_source;
    GPtrArray *ledger;  /* of Entry */
    GPtrArray *sources; /* of struct source, in use by the threads until they have ended */

    struct page_store *store;
    struct memtap *memtap;
    struct prefetch *prefetch;
    struct nbd_server *server;
    Multicast *multicast; /* NULL: no group */

    GStrv allowed;
    gboolean complete;
    char *lost;         /* reason */
    gboolean up;        /* the connection for faults */
    char *down_reason;  /* as logged last */
};

/* ---- small things ---- */

static void entry_free(gpointer data)
{
    Entry *entry = data;

    for (guint i = 0; i < entry->n_fds; i++) {
        close(entry->fds[i]);
    }
    json_object_unref(entry->object);
    sf_pager_request_free(entry->request);
    g_free(entry);
}

static void source_free(gpointer data)
{
    struct source *source = data;

    g_free(source->uri);
    g_free(source->keys);
    g_free(source->user);
    g_free(source);
}

G_GNUC_PRINTF(3, 4)
static gboolean fail(GError **error, GIOErrorEnum code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, G_IO_ERROR, code, text);
    return FALSE;
}

static gboolean fail_errno(GError **error, const char *what)
{
    return fail(error, g_io_error_from_errno(errno), "%s: %s", what, g_strerror(errno));
}

static int duplicate(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

/* ---- to sfvmmd ---- */

static void disconnect(Control *control)
{
    g_clear_handle_id(&control->socket_source, g_source_remove);
    if (control->socket >= 0) {
        close(control->socket);
        control->socket = -1;
    }
}

/* A sfvmmd that does not read is as good as none; it connects again. */
static void say(Control *control, JsonObject *object, const int *fds, guint n_fds)
{
    g_autoptr(GError) error = NULL;

    if (control->socket >= 0 && !sf_pager_send(control->socket, object, fds, n_fds, &error)) {
        g_message("%s", error->message);
        disconnect(control);
    }
}

static void say_event(Control *control, const char *event, const char *reason)
{
    g_autoptr(JsonObject) object = json_object_new();

    json_object_set_string_member(object, "event", event);
    if (reason) {
        json_object_set_string_member(object, "reason", reason);
    }
    say(control, object, NULL, 0);
}

static void say_sources(Control *control)
{
    g_autoptr(JsonObject) object = json_object_new();

    json_object_set_string_member(object, "event", "sources");
    json_object_set_int_member(object, "up", control->up);
    if (!control->up && control->down_reason) {
        json_object_set_string_member(object, "reason", control->down_reason);
    }
    say(control, object, NULL, 0);
}

static void say_state(Control *control)
{
    if (control->lost) {
        say_event(control, "lost", control->lost);
    }
    if (control->complete) {
        say_event(control, "complete", NULL);
    }
    if (control->sources->len) {
        say_sources(control);
    }
}

/* ---- events of the threads ---- */

typedef enum { NEWS_LOST, NEWS_COMPLETE, NEWS_UP, NEWS_DOWN, NEWS_BLOB } NewsKind;

typedef struct {
    Control *control;
    NewsKind kind;
    char *text;
    gboolean whole;      /* BLOB */
    atomic_bool written; /* orders the rest also for ThreadSanitizer, which can't see the lock inside GLib */
} News;

static void say_blob(Control *control, const char *id, gboolean whole)
{
    g_autoptr(JsonObject) object = json_object_new();

    json_object_set_string_member(object, "event", "blob");
    json_object_set_string_member(object, "blob", id);
    json_object_set_boolean_member(object, "whole", whole);
    say(control, object, NULL, 0);
}

static void on_down(Control *control, const char *reason)
{
    gboolean changed = control->up || g_strcmp0(reason, control->down_reason) != 0;

    control->up = FALSE;
    if (changed) {
        g_message("snapshot %s: page source %s", control->snapshot, reason);
        g_free(control->down_reason);
        control->down_reason = g_strdup(reason);
        say_sources(control);
    }
}

static gboolean on_news(gpointer data)
{
    News *news = data;
    bool written = atomic_load_explicit(&news->written, memory_order_acquire);
    Control *control = news->control;

    g_assert(written);
    if (news->kind == NEWS_LOST && !control->lost) {
        control->lost = g_strdup(news->text);
        g_warning("snapshot %s: %s", control->snapshot, control->lost);
        say_event(control, "lost", control->lost);
    } else if (news->kind == NEWS_COMPLETE && !control->complete) {
        control->complete = TRUE;
        g_message("snapshot %s: complete", control->snapshot);
        say_event(control, "complete", NULL);
    } else if (news->kind == NEWS_UP && !control->up) {
        control->up = TRUE;
        g_message("snapshot %s: page source %s is connected", control->snapshot, news->text);
        say_sources(control);
    } else if (news->kind == NEWS_DOWN) {
        on_down(control, news->text);
    } else if (news->kind == NEWS_BLOB) {
        say_blob(control, news->text, news->whole);
    }
    return G_SOURCE_REMOVE;
}

static void news_free(gpointer data)
{
    News *news = data;

    g_free(news->text);
    g_free(news);
}

/* From any thread. text: taken. */
static void post(Control *control, NewsKind kind, char *text, gboolean whole)
{
    News *news = g_new0(News, 1);

    news->control = control;
    news->kind = kind;
    news->text = text;
    news->whole = whole;
    atomic_store_explicit(&news->written, true, memory_order_release);
    g_idle_add_full(G_PRIORITY_DEFAULT, on_news, news, news_free);
}

static void post_news(Control *control, NewsKind kind, const char *text)
{
    post(control, kind, g_strdup(text), FALSE);
}

static void on_lost(const char *reason, void *owner)
{
    post_news(owner, NEWS_LOST, reason);
}

static void on_source(bool up, const char *uri, const char *reason, void *owner)
{
    post_news(owner, up ? NEWS_UP : NEWS_DOWN, up ? uri : reason);
}

static void on_complete(void *owner)
{
    post_news(owner, NEWS_COMPLETE, NULL);
}

static void on_blob(uint64_t id, bool whole, void *owner)
{
    post(owner, NEWS_BLOB, g_strdup_printf("%016" G_GINT64_MODIFIER "x", (guint64)id), whole);
}

/* memtap's connection says the same. */
static void on_prefetch_down(const char *uri, const char *reason, void *owner)
{
}

/* ---- orders ---- */

/* What the descriptors are reached by. */
static char *keys_path(SfPagerSecurity security, int directory)
{
    return security == SF_PAGER_PSK ? g_strdup_printf("/proc/self/fd/%d/" SF_PAGER_KEYS_FILE, directory)
                                    : g_strdup_printf("/proc/self/fd/%d", directory);
}

static gboolean do_serve(Control *control, const Entry *entry, GError **error)
{
    g_autofree char *keys = entry->n_fds > 1 ? keys_path(entry->request->security, entry->fds[1]) : NULL;
    struct nbd_server_options options = { .listen_fd = duplicate(entry->fds[0]), .snapshot = control->snapshot };

    if (control->server) {
        close(options.listen_fd);
        return fail(error, G_IO_ERROR_EXISTS, "it serves already");
    }
    if (options.listen_fd < 0) {
        return fail_errno(error, "no more descriptors");
    }
    if (entry->request->security == SF_PAGER_X509) {
        options.tls_directory = keys;
        options.tls_unit = TLS_UNIT;
    } else {
        options.psk_file = keys;
    }
    control->server = nbd_server_new(control->store, &options, error);
    if (control->server && control->allowed) {
        nbd_server_allow(control->server, (const char *const *)control->allowed, g_strv_length(control->allowed));
    }
    return control->server && nbd_server_start(control->server, error);
}

/* n extents of a memfd, checked. *extents is malloc'd. */
static gboolean read_extents(int fd, guint32 n, guint64 length, const struct sf_qc_extent **extents, GError **error)
{
    gsize size = n * sizeof(struct sf_qc_extent);
    struct sf_qc_extent *array = malloc(MAX(size, 1));

    *extents = array;
    if (!array) {
        return fail(error, G_IO_ERROR_NO_SPACE, "no memory for %u extents", n);
    }
    for (gsize done = 0; done < size;) {
        ssize_t got = pread(fd, (char *)array + done, size - done, done);
        if (got <= 0) {
            return fail(error, G_IO_ERROR_INVALID_DATA, "a list of %u extents can't be read", n);
        }
        done += got;
    }
    return sf_qc_check_extents(array, n, length, error);
}

static gboolean check_memory(int fd, guint64 length, gboolean writable, GError **error)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (guint64)st.st_size < length || flags < 0 ||
        (writable && (flags & O_ACCMODE) != O_RDWR)) {
        return fail(error, G_IO_ERROR_INVALID_DATA, "a descriptor is no memory file of %" G_GUINT64_FORMAT " bytes%s",
                    length, writable ? " that can be written" : "");
    }
    return TRUE;
}

static gboolean fill_block(struct page_block *block, const SfPagerBlock *from, const int *fds, guint *next,
                           GError **error)
{
    memcpy(block->id, from->id, sizeof(block->id));
    block->length = from->length;
    block->is_cache = from->is_cache;
    block->base = duplicate(fds[(*next)++]);
    if (!check_memory(block->base, from->length, from->is_cache, error)) {
        return FALSE;
    }
    if (from->is_cache) {
        block->n_present = from->n_present;
        if (!read_extents(fds[(*next)++], from->n_present, from->length, &block->present, error)) {
            return FALSE;
        }
    }
    for (guint i = 0; i < from->n_layers; i++) {
        struct page_layer *layer = &block->layers[block->n_layers++];
        layer->delta = duplicate(fds[(*next)++]);
        layer->n_extents = from->n_extents[i];
        if (!check_memory(layer->delta, from->length, FALSE, error) ||
            !read_extents(fds[(*next)++], layer->n_extents, from->length, &layer->extents, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static void free_blocks(struct page_block *blocks, guint n)
{
    for (guint i = 0; i < n; i++) {
        if (blocks[i].base >= 0) {
            close(blocks[i].base);
        }
        free((void *)blocks[i].present);
        for (guint j = 0; j < blocks[i].n_layers; j++) {
            if (blocks[i].layers[j].delta >= 0) {
                close(blocks[i].layers[j].delta);
            }
            free((void *)blocks[i].layers[j].extents);
        }
    }
    free(blocks);
}

static void on_store_set(void *data)
{
    Control *control = data;

    memtap_store_is_set(control->memtap);
    prefetch_store_is_set(control->prefetch);
    if (control->multicast) {
        multicast_store_is_set(control->multicast);
    }
}

static gboolean do_snapshot(Control *control, const Entry *entry, GError **error)
{
    const SfPagerRequest *request = entry->request;
    struct page_block *blocks;
    int state;
    guint next = 1;

    if (page_store_is_set(control->store) || strcmp(request->text, control->snapshot) != 0) {
        return fail(error, G_IO_ERROR_EXISTS, "it is for snapshot %s alone, once", control->snapshot);
    }
    blocks = calloc(request->n_blocks, sizeof(*blocks));
    for (guint i = 0; blocks && i < request->n_blocks; i++) {
        blocks[i].base = -1;
        for (guint j = 0; j < SF_QC_MAX_LAYERS; j++) {
            blocks[i].layers[j].delta = -1;
        }
    }
    for (guint i = 0; blocks && i < request->n_blocks; i++) {
        if (!fill_block(&blocks[i], &request->blocks[i], entry->fds, &next, error)) {
            free_blocks(blocks, request->n_blocks);
            return FALSE;
        }
    }
    state = duplicate(entry->fds[0]);
    if (!blocks || !check_memory(state, request->number, FALSE, error)) {
        free_blocks(blocks, blocks ? request->n_blocks : 0);
        if (state >= 0) {
            close(state);
        }
        return blocks ? FALSE : fail(error, G_IO_ERROR_NO_SPACE, "no memory");
    }
    page_store_set(control->store, request->text, blocks, request->n_blocks, state, request->number);
    return TRUE;
}

static gboolean do_source(Control *control, const Entry *entry, GError **error)
{
    const SfPagerRequest *request = entry->request;
    const char *wrong = source_check_uri(request->text);
    struct source *source;

    if (wrong) {
        return fail(error, G_IO_ERROR_INVALID_ARGUMENT, "%s: %s", request->text, wrong);
    }
    if (request->security == SF_PAGER_X509 && g_str_has_prefix(request->text, "nbds+unix")) {
        return fail(error, G_IO_ERROR_INVALID_ARGUMENT,
                    "%s: libnbd verifies no certificate on a unix socket; use a key (psk), or nbd+unix:// where the "
                    "socket's permissions protect it",
                    request->text);
    }
    if (control->sources->len == SOURCES_MAX) {
        return fail(error, G_IO_ERROR_NO_SPACE, "at most %d page sources", SOURCES_MAX);
    }
    source = g_new0(struct source, 1);
    source->uri = g_strdup(request->text);
    source->user = g_strdup(request->user);
    source->security = request->security == SF_PAGER_X509  ? SOURCE_X509
                       : request->security == SF_PAGER_PSK ? SOURCE_PSK
                                                           : SOURCE_PLAIN;
    source->keys = entry->n_fds ? keys_path(request->security, entry->fds[0]) : NULL;
    g_ptr_array_add(control->sources, source);
    memtap_add_source(control->memtap, source);
    prefetch_add_source(control->prefetch, source);
    return TRUE;
}

static gboolean do_attach(Control *control, const Entry *entry, GError **error)
{
    const SfPagerRequest *request = entry->request;
    struct memtap_area areas[SF_QC_MAX_BLOCKS];
    int uffd;

    if (!page_store_is_set(control->store)) {
        return fail(error, G_IO_ERROR_NOT_INITIALIZED, "%s is attached before the snapshot is known", request->text);
    }
    for (guint i = 0; i < request->n_blocks; i++) {
        const SfPagerBlock *block = &request->blocks[i];
        int index = page_store_find(control->store, block->id);
        if (index < 0 || !page_store_block(control->store, index)->is_cache ||
            page_store_block(control->store, index)->length != block->length) {
            return fail(error, G_IO_ERROR_INVALID_ARGUMENT,
                        "block %s of %s, %" G_GUINT64_FORMAT " bytes, is none of the snapshot's", block->id,
                        request->text, block->length);
        }
        areas[i] = (struct memtap_area){ .block = index, .address = block->address, .length = block->length };
    }
    uffd = duplicate(entry->fds[0]);
    if (uffd < 0) {
        return fail_errno(error, "no more descriptors");
    }
    if (fcntl(uffd, F_SETFL, O_NONBLOCK) < 0) { /* a read must not stop the others */
        close(uffd);
        return fail_errno(error, "userfaultfd");
    }
    memtap_attach(control->memtap, request->text, uffd, areas, request->n_blocks);
    return TRUE;
}

static gboolean do_working_set(Control *control, const Entry *entry, GError **error)
{
    guint n = entry->request->number;
    g_autofree struct sf_pager_run *runs = g_try_new(struct sf_pager_run, MAX(n, 1));

    if (!runs || pread(entry->fds[0], runs, n * sizeof(*runs), 0) != (ssize_t)(n * sizeof(*runs))) {
        return fail(error, G_IO_ERROR_INVALID_DATA, "the working set of %u runs can't be read", n);
    }
    for (guint i = 0; i < n; i++) {
        if (runs[i].offset % SF_PAGE_SIZE || runs[i].block >= SF_QC_MAX_BLOCKS || runs[i].offset > SF_QC_MAX_LENGTH) {
            return fail(error, G_IO_ERROR_INVALID_DATA, "run %u of the working set is malformed", i);
        }
    }
    prefetch_set_working_set(control->prefetch, runs, n);
    if (control->multicast) {
        multicast_set_working_set(control->multicast, runs, n);
    }
    return TRUE;
}

static gboolean do_multicast(Control *control, const Entry *entry, GError **error)
{
    const MulticastParts parts = { control->store, control->memtap, control->prefetch, on_complete, on_blob, control };

    if (control->multicast) {
        return fail(error, G_IO_ERROR_EXISTS, "it is in a multicast group already");
    }
    control->multicast = multicast_new(&parts, entry->request, entry->fds[0], entry->fds[1], error);
    return control->multicast != NULL;
}

static gboolean do_order(Control *control, const Entry *entry, GError **error)
{
    const SfPagerRequest *request = entry->request;

    switch (request->what) {
    case SF_PAGER_DO_SERVE:
        return do_serve(control, entry, error);
    case SF_PAGER_DO_SNAPSHOT:
        return do_snapshot(control, entry, error);
    case SF_PAGER_DO_SOURCE:
        return do_source(control, entry, error);
    case SF_PAGER_DO_ATTACH:
        return do_attach(control, entry, error);
    case SF_PAGER_DO_DETACH:
        memtap_detach(control->memtap, request->text);
        return TRUE;
    case SF_PAGER_DO_ALLOW:
        g_strfreev(control->allowed);
        control->allowed = g_strdupv(request->names);
        if (control->server) {
            nbd_server_allow(control->server, (const char *const *)request->names, g_strv_length(request->names));
        }
        return TRUE;
    case SF_PAGER_DO_PREFETCH:
        memtap_set_neighbours(control->memtap, request->neighbours);
        prefetch_set(control->prefetch, request->working_set, request->complete);
        return TRUE;
    case SF_PAGER_DO_WORKING_SET:
        return do_working_set(control, entry, error);
    case SF_PAGER_DO_MULTICAST:
        return do_multicast(control, entry, error);
    case SF_PAGER_DO_BLOB:
        return control->multicast ? multicast_blob(control->multicast, request, entry->fds[0], error)
                                  : fail(error, G_IO_ERROR_NOT_INITIALIZED, "it is in no multicast group");
    default:
        return TRUE; /* questions: answered in their own way */
    }
}

/* ---- the ledger ---- */

static void ledger_remove(Control *control, SfPagerDo what, const char *text)
{
    for (guint i = control->ledger->len; i-- > 0;) {
        const Entry *entry = g_ptr_array_index(control->ledger, i);
        if (entry->request->what == what && (!text || strcmp(entry->request->text, text) == 0)) {
            g_ptr_array_remove_index(control->ledger, i);
        }
    }
}

/* Takes the entry. */
static void ledger_add(Control *control, Entry *entry)
{
    switch (entry->request->what) {
    case SF_PAGER_DO_DETACH:
        ledger_remove(control, SF_PAGER_DO_ATTACH, entry->request->text);
        entry_free(entry);
        return;
    case SF_PAGER_DO_BLOB: /* who waits for it has another way */
    case SF_PAGER_DO_RECORDED:
    case SF_PAGER_DO_STATS:
    case SF_PAGER_DO_RECALL:
        entry_free(entry);
        return;
    case SF_PAGER_DO_ALLOW:
    case SF_PAGER_DO_PREFETCH:
    case SF_PAGER_DO_WORKING_SET:
        ledger_remove(control, entry->request->what, NULL);
        break;
    default:
        break;
    }
    g_ptr_array_add(control->ledger, entry);
}

/* ---- answers ---- */

static int compare_latencies(const void *a, const void *b)
{
    const guint32 *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

static void add_latencies(const struct memtap_stats *stats, JsonObject *answer)
{
    guint64 n = MIN(atomic_load(&stats->n_latencies), MEMTAP_LATENCIES);
    g_autofree guint32 *sorted = g_new(guint32, MAX(n, 1));

    for (guint i = 0; i < n; i++) {
        sorted[i] = atomic_load_explicit(&stats->latency_ns[i], memory_order_relaxed);
    }
    qsort(sorted, n, sizeof(*sorted), compare_latencies);
    json_object_set_int_member(answer, "fault_ns_median", n ? sorted[n / 2] : 0);
    json_object_set_int_member(answer, "fault_ns_p99", n ? sorted[n * 99 / 100] : 0);
}

static guint count_entries(const Control *control, SfPagerDo what)
{
    guint n = 0;

    for (guint i = 0; i < control->ledger->len; i++) {
        n += ((const Entry *)g_ptr_array_index(control->ledger, i))->request->what == what;
    }
    return n;
}

static void answer_stats(Control *control, JsonObject *answer)
{
    const struct memtap_stats *stats = memtap_stats(control->memtap);
    struct nbd_server_stats served = { 0 };
    guint64 prefetched = prefetch_bytes(control->prefetch);

    if (control->server) {
        nbd_server_get_stats(control->server, &served);
    }
    json_object_set_int_member(answer, "faults", atomic_load(&stats->faults));
    json_object_set_int_member(answer, "demand_faults", atomic_load(&stats->demand_faults));
    json_object_set_int_member(answer, "fetched_bytes", atomic_load(&stats->fetched_bytes) + prefetched);
    json_object_set_int_member(answer, "demand_bytes", atomic_load(&stats->demand_bytes));
    json_object_set_int_member(answer, "prefetched_bytes", atomic_load(&stats->neighbour_bytes) + prefetched);
    json_object_set_int_member(answer, "resident_bytes", page_store_resident(control->store));
    json_object_set_int_member(answer, "served_bytes", served.served_bytes);
    json_object_set_int_member(answer, "sources", control->sources->len);
    json_object_set_int_member(answer, "sources_up", control->up);
    json_object_set_int_member(answer, "clones", count_entries(control, SF_PAGER_DO_ATTACH));
    json_object_set_boolean_member(answer, "complete", control->complete);
    add_latencies(stats, answer);
    if (control->multicast) {
        json_object_set_object_member(answer, "multicast", multicast_stats(control->multicast));
    }
}

/*
 * Which pages came unasked: the bits of each cached block, whole words, one block after the other. -1: none, or no
 * memory.
 */
static int answer_unasked(Control *control)
{
    int fd = page_store_is_cache(control->store) ? memfd_create("unasked", MFD_CLOEXEC) : -1;

    for (guint i = 0; fd >= 0 && i < page_store_n_blocks(control->store); i++) {
        const struct page_block *block = page_store_block(control->store, i);
        guint64 n = block->is_cache ? (block->length / SF_PAGE_SIZE + 63) / 64 : 0;
        g_autofree guint64 *words = g_new(guint64, MAX(n, 1));
        gsize size = n ? page_store_unasked(control->store, i, words, n) * sizeof(*words) : 0;
        if (write(fd, words, size) != (ssize_t)size) {
            close(fd);
            fd = -1;
        }
    }
    return fd;
}

/* What was given, then what has been fetched for faults beyond it. The fd is the caller's; -1 + error. */
static int answer_recorded(Control *control, JsonObject *answer, GError **error)
{
    g_autofree struct sf_pager_run *runs = g_new(struct sf_pager_run, SF_PAGER_MAX_RUNS);
    guint n = 0;
    int fd;

    for (guint i = 0; i < control->ledger->len; i++) {
        const Entry *entry = g_ptr_array_index(control->ledger, i);
        if (entry->request->what == SF_PAGER_DO_WORKING_SET) {
            ssize_t got = pread(entry->fds[0], runs, entry->request->number * sizeof(*runs), 0);
            n = got > 0 ? got / sizeof(*runs) : 0;
        }
    }
    n += memtap_recorded(control->memtap, runs + n, SF_PAGER_MAX_RUNS - n);
    fd = memfd_create("working-set", MFD_CLOEXEC);
    if (fd < 0 || write(fd, runs, n * sizeof(*runs)) != (ssize_t)(n * sizeof(*runs))) {
        fail_errno(error, "the working set");
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    json_object_set_int_member(answer, "n", n);
    return fd;
}

static const Entry *answer_recall(Control *control, const SfPagerRequest *request, JsonObject *answer)
{
    const Entry *entry = request->number < control->ledger->len ? g_ptr_array_index(control->ledger, request->number)
                                                                : NULL;

    json_object_set_boolean_member(answer, "last", !entry);
    if (entry) {
        json_object_set_object_member(answer, "message", json_object_ref(entry->object));
    }
    return entry;
}

static void answer(Control *control, const SfPagerRequest *request, GError *error)
{
    g_autoptr(JsonObject) object = json_object_new();
    const Entry *recalled = NULL;
    int fd = -1;

    json_object_set_int_member(object, "id", request->id);
    if (!error && request->what == SF_PAGER_DO_STATS) {
        answer_stats(control, object);
        fd = answer_unasked(control);
    } else if (!error && request->what == SF_PAGER_DO_RECALL) {
        recalled = answer_recall(control, request, object);
    } else if (!error && request->what == SF_PAGER_DO_RECORDED) {
        fd = answer_recorded(control, object, &error);
    }
    if (error) {
        json_object_set_string_member(object, "error", error->message);
    } else {
        json_object_set_boolean_member(object, "ok", TRUE);
    }
    say(control, object, recalled ? recalled->fds : fd >= 0 ? &fd : NULL, recalled ? recalled->n_fds : fd >= 0);
    if (fd >= 0) {
        close(fd);
    }
    g_clear_error(&error);
}

static gboolean handle_packet(Control *control, SfPagerPacket *packet, GError **error)
{
    SfPagerRequest *request = sf_pager_request_parse(packet->object, packet->n_fds, error);
    GError *failure = NULL;
    Entry *entry;

    if (!request) {
        return FALSE;
    }
    entry = g_new0(Entry, 1);
    entry->object = json_object_ref(packet->object);
    entry->n_fds = packet->n_fds;
    memcpy(entry->fds, packet->fds, packet->n_fds * sizeof(int));
    packet->n_fds = 0;
    entry->request = request;
    if (do_order(control, entry, &failure)) {
        answer(control, request, NULL);
        ledger_add(control, entry);
    } else {
        answer(control, request, failure);
        entry_free(entry);
    }
    return TRUE;
}

/* ---- the socket ---- */

static gboolean on_readable(int fd, GIOCondition condition, gpointer data)
{
    Control *control = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(SfPagerPacket) packet = sf_pager_receive(control->socket, &error);

    if (packet && handle_packet(control, packet, &error)) {
        return control->socket == fd ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
    }
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
        return G_SOURCE_CONTINUE;
    }
    g_message("%s", error ? error->message : "the connection of sfvmmd ends");
    control->socket_source = 0;
    disconnect(control);
    return G_SOURCE_REMOVE;
}

static gboolean on_connection(int fd, GIOCondition condition, gpointer data)
{
    Control *control = data;
    int socket = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (socket >= 0) {
        disconnect(control);
        control->socket = socket;
        control->socket_source = g_unix_fd_add(socket, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable, control);
        say_state(control);
    }
    return G_SOURCE_CONTINUE;
}

/* ---- the object ---- */

Control *control_new(const char *snapshot, int listener, guint fault_seconds, GError **error)
{
    Control *control = g_new0(Control, 1);
    struct memtap_options memtap = { .fault_seconds = fault_seconds,
                                     .handlers = { on_lost, on_source, on_complete },
                                     .owner = control };
    struct prefetch_options prefetch = { .complete = on_complete, .down = on_prefetch_down, .owner = control };

    control->snapshot = g_strdup(snapshot);
    control->listener = listener;
    control->socket = -1;
    control->ledger = g_ptr_array_new_with_free_func(entry_free);
    control->sources = g_ptr_array_new_with_free_func(source_free);
    control->store = page_store_new();
    control->memtap = control->store ? memtap_new(control->store, &memtap) : NULL;
    control->prefetch = control->store ? prefetch_new(control->store, &prefetch) : NULL;
    if (!control->memtap || !control->prefetch || !memtap_start(control->memtap) ||
        !prefetch_start(control->prefetch)) {
        fail_errno(error, "no memory, descriptors or threads");
        control_free(control);
        return NULL;
    }
    page_store_when_set(control->store, on_store_set, control);
    g_unix_set_fd_nonblocking(listener, TRUE, NULL);
    control->listen_source = g_unix_fd_add(listener, G_IO_IN, on_connection, control);
    return control;
}

void control_free(Control *control)
{
    g_clear_handle_id(&control->listen_source, g_source_remove);
    disconnect(control);
    close(control->listener);
    if (control->server) {
        nbd_server_stop(control->server);
    }
    prefetch_free(control->prefetch);
    memtap_free(control->memtap);
    multicast_free(control->multicast);
    if (control->server) {
        nbd_server_free(control->server);
    }
    page_store_free(control->store);
    while (g_main_context_iteration(NULL, FALSE)) { /* news that name us */
    }
    g_ptr_array_unref(control->ledger);
    g_ptr_array_unref(control->sources);
    g_strfreev(control->allowed);
    g_free(control->snapshot);
    g_free(control->lost);
    g_free(control->down_reason);
    g_free(control);
}

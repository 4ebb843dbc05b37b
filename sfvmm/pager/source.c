/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A link drives one libnbd handle: its socket stands in the thread's epoll, and every event goes to the handle's
 * state machine, which never blocks. What libnbd calls back from within only marks reads; link_turn() hands them to
 * the owner afterwards, as the handle must not be used from a callback.
 *
 *     ends a connection            bound            then
 *     TCP, TLS, NBD not done       CONNECT_MS       the next source, or a pause
 *     export unknown               PATIENCE_MS      asked again every few ms (the source's snapshot is being made)
 *     reads out, no byte comes     STALL_MS         connected anew: a cut link is noticed before TCP gives up
 *     protocol error, hang-up      at once
 *
 * The pause before another try grows from RETRY_MS_FIRST to RETRY_MS_MAX; each source of the list is tried once
 * without one. Reads that were in flight go back to the owner with an error; it decides whether to send them again.
 *
 * A reply is believed only when it covers the whole range; the export must be as long as the block. What else a
 * server may do wrong, libnbd refuses by ending the connection.
 */
#include "sfvmm/pager/source.h"

#include <errno.h>
#include <glib.h>
#include <libnbd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECT_MS          5000
#define STALL_MS            5000
#define PATIENCE_MS         3000
#define ASK_AGAIN_MS        2 /* then twice as long each time */
#define ASK_DOUBLINGS       7
#define RETRY_MS_FIRST      20
#define RETRY_MS_MAX        1000
#define KEEPALIVE_SECONDS   10 /* an idle connection is asked after */
#define KEEPALIVE_PROBES    3
#define KEEPALIVE_INTERVAL  2

enum state { BROKEN, CONNECTING, WAITING, ASKING, READY };

struct link {
    struct loop_target target; /* must be first */
    struct loop *loop;
    const struct sources *sources;
    const char *role;
    const struct link_handlers *handlers;
    void *owner;

    bool assigned;
    unsigned block;
    char *name;
    uint64_t length;

    enum state state;
    struct nbd_handle *nbd;
    unsigned source;   /* index */
    int fd;            /* polled */
    uint32_t events;   /* polled for */
    int64_t since;     /* when the state began; of READY: when bytes came last */
    int64_t ask_since; /* first question for the export on this connection; 0: not asked yet */
    int64_t retry_at;  /* BROKEN: connect; WAITING: ask */
    unsigned asked;    /* how often on this connection */
    unsigned failures; /* in a row, over all sources */
    bool go_answered;
    int go_error;
    bool told_ready;

    struct read *first, **last; /* in flight, in order of sending */
    unsigned in_flight;
    bool any_completed;
};

/* ---- URIs ---- */

const char *source_check_uri(const char *uri)
{
    static const char *const schemes[] = { "nbd://", "nbds://", "nbd+unix://", "nbds+unix://" };

    for (unsigned i = 0; i < G_N_ELEMENTS(schemes); i++) {
        if (g_str_has_prefix(uri, schemes[i])) {
            return NULL;
        }
    }
    return "a page source is nbd://, nbds://, nbd+unix:// or nbds+unix://";
}

/* Where path and query of a URI begin. */
static const char *uri_path(const char *uri)
{
    const char *authority = strstr(uri, "://") + strlen("://");

    return authority + strcspn(authority, "/?");
}

char *source_export_name(const char *uri, const char *block)
{
    const char *path = uri_path(uri);
    size_t length = strcspn(path, "?");
    g_autofree char *escaped = g_strndup(path + (length > 0), length > 0 ? length - 1 : 0);
    g_autofree char *name = g_uri_unescape_string(escaped, NULL);
    GString *result = g_string_new(name ? name : escaped);

    g_string_replace(result, "{block}", block, 0);
    return g_string_free(result, FALSE);
}

/* Without its path: braces are none of a URI's characters, and the export is asked for later. */
static char *connect_uri(const char *uri)
{
    const char *path = uri_path(uri);
    const char *query = strchr(path, '?');

    return g_strdup_printf("%.*s/%s", (int)(path - uri), uri, query ? query : "");
}

/* ---- reads ---- */

struct read *read_new(unsigned block, uint64_t offset, uint32_t length)
{
    struct read *read = calloc(1, sizeof(*read));

    if (!read || !(read->data = malloc(length))) {
        abort();
    }
    read->block = block;
    read->offset = offset;
    read->length = length;
    return read;
}

void read_free(struct read *read)
{
    if (read) {
        free(read->data);
        free(read);
    }
}

bool read_page_is_zero(const struct read *read, uint32_t page)
{
    return read->zero[page / 64] >> (page % 64) & 1;
}

bool read_keep(const struct read *read, struct page_store *store, bool unasked)
{
    int fd = page_store_block(store, read->block)->base;
    uint32_t n_pages = read->length / SF_PAGE_SIZE;

    for (uint32_t first = 0, page = 0; first < n_pages; first = page) {
        bool zero = read_page_is_zero(read, first);
        size_t start = (size_t)first * SF_PAGE_SIZE, length;
        while (page < n_pages && read_page_is_zero(read, page) == zero) {
            page++;
        }
        length = (size_t)(page - first) * SF_PAGE_SIZE;
        for (size_t done = 0; !zero && done < length;) {
            ssize_t n = pwrite(fd, read->data + start + done, length - done, read->offset + start + done);
            if (n < 0 && errno != EINTR) {
                return false;
            }
            done += n > 0 ? n : 0;
        }
        if (unasked && !zero) {
            page_store_mark_unasked(store, read->block, read->offset + start, length);
        }
        page_store_note(store, read->block, read->offset + start, length, zero);
    }
    return true;
}

static void read_end(struct read *read, int error)
{
    read->completed = true;
    read->error = error;
    read->link->any_completed = true;
}

/* From within libnbd: a part of the reply. */
static int on_chunk(void *data, const void *bytes, size_t count, uint64_t offset, unsigned status, int *error)
{
    struct read *read = data;

    if (offset < read->offset || count > read->length || offset - read->offset > read->length - count) {
        *error = EPROTO;
        return -1;
    }
    read->seen += count;
    if (status == LIBNBD_READ_HOLE) {
        uint64_t start = (offset - read->offset + SF_PAGE_SIZE - 1) / SF_PAGE_SIZE;
        uint64_t end = (offset - read->offset + count) / SF_PAGE_SIZE;
        for (uint64_t page = start; page < end; page++) {
            read->zero[page / 64] |= 1ull << (page % 64);
        }
    }
    return 0;
}

/* From within libnbd: the end of the reply. */
static int on_read(void *data, int *error)
{
    struct read *read = data;

    read_end(read, *error ? *error : read->seen != read->length ? EPROTO : 0);
    return 1; /* libnbd forgets it */
}

/* ---- connecting ---- */

static const struct source *current(const struct link *link)
{
    return link->sources->all[link->source % link->sources->n];
}

static void set_state(struct link *link, enum state state)
{
    link->state = state;
    link->since = loop_now();
}

static void link_close(struct link *link)
{
    if (link->nbd) {
        nbd_close(link->nbd);
        link->nbd = NULL;
    }
    link->fd = -1;
    link->events = 0;
    for (struct read *read = link->first; read; read = read->next_in_flight) {
        if (!read->completed) {
            read_end(read, ENOTCONN);
        }
    }
}

/* libnbd's last word, without the name of the call, and with what it means for keys. NULL: none. free() it. */
static char *last_problem(void)
{
    const char *text = nbd_get_error(), *hint = "";

    if (!text || !*text) {
        return NULL;
    }
    if (g_str_has_prefix(text, "nbd_") && strstr(text, ": ")) {
        text = strstr(text, ": ") + strlen(": ");
    }
    if (strstr(text, "certificate verification")) {
        hint = "; the source's certificate has expired, is of another CA, or not for this address";
    } else if (strstr(text, "fatal alert")) {
        hint = "; it does not accept our certificate or key: expired, or of another CA";
    }
    return g_strconcat(text, hint, NULL);
}

static void link_break(struct link *link, const char *reason)
{
    g_autofree char *text = g_strdup_printf("%s: %s", current(link)->uri, reason);
    unsigned pause = RETRY_MS_FIRST;

    link_close(link);
    set_state(link, BROKEN);
    link->told_ready = false;
    link->failures++;
    if (link->sources->n > 0) {
        unsigned rounds = link->failures / link->sources->n; /* of the whole list */
        for (unsigned i = 1; i < rounds && pause < RETRY_MS_MAX; i++) {
            pause *= 2;
        }
        link->source = (link->source + 1) % link->sources->n;
        pause = link->failures % link->sources->n ? 0 : pause;
    }
    link->retry_at = link->since + MIN(pause, RETRY_MS_MAX) * LOOP_NS_PER_MS;
    link->handlers->down(link, text, link->owner);
}

static int set_keys(struct nbd_handle *nbd, const struct source *source)
{
    switch (source->security) {
    case SOURCE_X509:
        return nbd_set_tls(nbd, LIBNBD_TLS_REQUIRE) < 0 || nbd_set_tls_certificates(nbd, source->keys) < 0 ||
                       nbd_set_tls_verify_peer(nbd, true) < 0
                   ? -1
                   : 0;
    case SOURCE_PSK:
        return nbd_set_tls(nbd, LIBNBD_TLS_REQUIRE) < 0 || nbd_set_tls_psk_file(nbd, source->keys) < 0 ||
                       nbd_set_tls_username(nbd, source->user) < 0
                   ? -1
                   : 0;
    default:
        return nbd_set_tls(nbd, LIBNBD_TLS_DISABLE);
    }
}

static void poll_socket(struct link *link)
{
    int fd = nbd_aio_get_fd(link->nbd);
    unsigned direction = nbd_aio_get_direction(link->nbd);
    uint32_t events = (direction & LIBNBD_AIO_DIRECTION_READ ? EPOLLIN : 0) |
                      (direction & LIBNBD_AIO_DIRECTION_WRITE ? EPOLLOUT : 0);

    /* While it connects libnbd may try one address after the other, and a new socket may have the number of the old. */
    if (fd >= 0 && (fd != link->fd || events != link->events || link->state == CONNECTING)) {
        loop_poll(link->loop, fd, events, &link->target);
        link->fd = fd;
        link->events = events;
    }
}

/*
 * A peer that has silently gone is noticed while the connection is idle. Not for unix sockets, where it fails
 * harmlessly.
 */
static void set_keepalive(int fd)
{
    int on = 1, idle = KEEPALIVE_SECONDS, interval = KEEPALIVE_INTERVAL, probes = KEEPALIVE_PROBES;

    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

static void review(struct link *link, const char *problem);

static void link_connect(struct link *link)
{
    const struct source *source = current(link);
    g_autofree char *uri = connect_uri(source->uri);

    link->nbd = nbd_create();
    link->ask_since = 0;
    link->asked = 0;
    link->go_answered = false;
    link->go_error = 0;
    set_state(link, CONNECTING);
    if (!link->nbd || nbd_set_handle_name(link->nbd, link->role) < 0 || nbd_set_opt_mode(link->nbd, true) < 0 ||
        nbd_set_pread_initialize(link->nbd, false) < 0 || set_keys(link->nbd, source) < 0 ||
        nbd_aio_connect_uri(link->nbd, uri) < 0) {
        g_autofree char *reason = last_problem();
        link_break(link, reason ? reason : "no memory");
        return;
    }
    review(link, NULL);
}

static int on_go(void *data, int *error)
{
    struct link *link = data;

    link->go_answered = true;
    link->go_error = *error;
    return 1;
}

static void ask(struct link *link)
{
    g_autofree char *export = source_export_name(current(link)->uri, link->name);

    link->go_answered = false;
    link->asked++;
    if (link->ask_since == 0) {
        link->ask_since = loop_now();
    }
    set_state(link, ASKING);
    if (nbd_set_export_name(link->nbd, export) < 0 ||
        nbd_aio_opt_go(link->nbd, (nbd_completion_callback){ .callback = on_go, .user_data = link }) < 0) {
        g_autofree char *reason = last_problem();
        link_break(link, reason ? reason : "its export can't be asked for");
    }
}

static char *refusal(const struct link *link)
{
    g_autofree char *export = source_export_name(current(link)->uri, link->name);

    return g_strdup_printf("it has no export \"%s\", or we may not read it (%s)", export, g_strerror(link->go_error));
}

/* The source's snapshot may be on its way: asked again, ever later. */
static void go_refused(struct link *link)
{
    if (loop_now() - link->ask_since < PATIENCE_MS * LOOP_NS_PER_MS) {
        set_state(link, WAITING);
        link->retry_at = link->since + ((ASK_AGAIN_MS * LOOP_NS_PER_MS) << MIN(link->asked - 1, ASK_DOUBLINGS));
        return;
    }
    g_autofree char *reason = refusal(link);
    link_break(link, reason);
}

static void go_granted(struct link *link)
{
    int64_t size = nbd_get_size(link->nbd);

    if (size < 0 || (uint64_t)size != link->length) {
        g_autofree char *reason =
            g_strdup_printf("its export for block %s has %" G_GINT64_FORMAT " bytes, %" G_GUINT64_FORMAT
                            " expected: it is of another snapshot",
                            link->name, size, link->length);
        link_break(link, reason);
        return;
    }
    set_keepalive(nbd_aio_get_fd(link->nbd));
    link->failures = 0;
    set_state(link, READY);
}

/* Follows libnbd's state machine after it has been moved. problem: libnbd's last word if that failed, or NULL. */
static void review(struct link *link, const char *problem)
{
    if (nbd_aio_is_dead(link->nbd) || nbd_aio_is_closed(link->nbd)) {
        g_autofree char *reason = link->state != READY && link->go_error ? refusal(link)
                                  : problem && *problem                  ? g_strdup(problem)
                                                        : g_strdup("it has closed the connection");
        link_break(link, reason);
        return;
    }
    if (link->state == CONNECTING && nbd_aio_is_negotiating(link->nbd)) {
        set_state(link, WAITING);
        link->retry_at = 0;
    } else if (link->state == CONNECTING && nbd_aio_is_ready(link->nbd)) {
        link_break(link, "it speaks the old NBD handshake");
        return;
    }
    if (link->state == WAITING && link->assigned && loop_now() >= link->retry_at) {
        ask(link);
    }
    if (link->state == ASKING && link->go_answered) { /* perhaps from within ask() */
        if (link->go_error) {
            go_refused(link);
        } else {
            go_granted(link);
        }
    }
    if (link->nbd) {
        poll_socket(link);
    }
}

static void on_socket(struct loop_target *target, uint32_t events)
{
    struct link *link = (struct link *)target;
    unsigned direction;
    int result = 0;

    if (!link->nbd) {
        return;
    }
    direction = nbd_aio_get_direction(link->nbd);
    if ((direction & LIBNBD_AIO_DIRECTION_READ) && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
        result = nbd_aio_notify_read(link->nbd);
    } else if ((direction & LIBNBD_AIO_DIRECTION_WRITE) && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))) {
        result = nbd_aio_notify_write(link->nbd);
    }
    g_autofree char *problem = result < 0 ? last_problem() : NULL;
    if (link->state == READY) {
        link->since = loop_now();
    }
    review(link, problem);
}

/* ---- the link ---- */

struct link *link_new(struct loop *loop, const struct sources *sources, const char *role,
                      const struct link_handlers *handlers, void *owner)
{
    struct link *link = calloc(1, sizeof(*link));

    if (!link) {
        abort();
    }
    link->target.handle = on_socket;
    link->loop = loop;
    link->sources = sources;
    link->role = role;
    link->handlers = handlers;
    link->owner = owner;
    link->fd = -1;
    link->last = &link->first;
    link_sources_changed(link);
    return link;
}

void link_free(struct link *link)
{
    struct read *read;

    if (!link) {
        return;
    }
    link_close(link);
    while ((read = link->first)) {
        link->first = read->next_in_flight;
        read_free(read);
    }
    free(link->name);
    free(link);
}

void link_assign(struct link *link, unsigned block, const char *name, uint64_t length)
{
    link->block = block;
    link->name = g_strdup(name);
    link->length = length;
    link->assigned = true;
    if (link->state == WAITING) {
        review(link, NULL);
    }
}

void link_sources_changed(struct link *link)
{
    if (link->state == BROKEN && link->sources->n > 0) {
        link->retry_at = 0;
        link_connect(link);
    }
}

bool link_is_ready(const struct link *link)
{
    return link->state == READY;
}

bool link_is_connected(const struct link *link)
{
    return link->state == READY || link->state == WAITING || link->state == ASKING;
}

unsigned link_block(const struct link *link)
{
    return link->block;
}

unsigned link_in_flight(const struct link *link)
{
    return link->in_flight;
}

const char *link_source(const struct link *link)
{
    return link->sources->n ? current(link)->uri : "no page source";
}

void link_read(struct link *link, struct read *read)
{
    if (link->in_flight == 0) {
        link->since = loop_now(); /* from now on bytes should come */
    }
    read->link = link;
    read->completed = false;
    read->error = 0;
    read->seen = 0;
    memset(read->zero, 0, sizeof(read->zero));
    read->next_in_flight = NULL;
    *link->last = read;
    link->last = &read->next_in_flight;
    link->in_flight++;
    if (nbd_aio_pread_structured(link->nbd, read->data, read->length, read->offset,
                                 (nbd_chunk_callback){ .callback = on_chunk, .user_data = read },
                                 (nbd_completion_callback){ .callback = on_read, .user_data = read }, 0) < 0) {
        if (!read->completed) {
            read_end(read, nbd_get_errno() ? nbd_get_errno() : EIO);
        }
    }
    poll_socket(link);
}

static void hand_over_completed(struct link *link)
{
    struct read **place = &link->first, *read, *done = NULL, **last_done = &done;

    link->any_completed = false;
    while ((read = *place)) {
        if (read->completed) {
            *place = read->next_in_flight;
            read->next_in_flight = NULL;
            *last_done = read;
            last_done = &read->next_in_flight;
            link->in_flight--;
        } else {
            place = &read->next_in_flight;
        }
    }
    link->last = place;
    while ((read = done)) {
        done = read->next_in_flight;
        link->handlers->done(link, read, link->owner);
    }
}

/* The end of the present state's patience, ns; INT64_MAX: it may last. */
static int64_t bound_of(const struct link *link)
{
    switch (link->state) {
    case BROKEN:
        return link->sources->n ? link->retry_at : INT64_MAX;
    case WAITING:
        return link->assigned ? link->retry_at : INT64_MAX;
    case READY:
        return link->in_flight ? link->since + STALL_MS * LOOP_NS_PER_MS : INT64_MAX;
    default:
        return link->since + CONNECT_MS * LOOP_NS_PER_MS;
    }
}

static void bound_reached(struct link *link)
{
    switch (link->state) {
    case BROKEN:
        link_connect(link);
        break;
    case WAITING:
        review(link, NULL);
        break;
    case READY:
        link_break(link, "it has not answered for some seconds");
        break;
    default:
        link_break(link, link->state == ASKING ? "it does not answer when asked for its export"
                                               : "it does not answer when connected to");
        break;
    }
}

int link_turn(struct link *link, int64_t now)
{
    int64_t bound = bound_of(link);

    if (now >= bound) {
        bound_reached(link);
    }
    if (link->any_completed) {
        hand_over_completed(link);
    }
    if (link->state == READY && !link->told_ready) {
        link->told_ready = true;
        link->handlers->ready(link, link->owner);
    }
    bound = bound_of(link);
    return link->any_completed ? 0
           : bound == INT64_MAX ? -1
           : bound <= now      ? 0
                               : (bound - now + LOOP_NS_PER_MS - 1) / LOOP_NS_PER_MS;
}

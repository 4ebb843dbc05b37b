/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The connection to one sf-pager, and the ledger.
 *
 * Answers come in the order of the orders; an order that the process refuses is logged, and told to who asked.
 * Packets that the socket does not take are queued with copies of their descriptors: few, as each is small and the
 * process reads all the time.
 *
 * An order that makes the process what it is goes into the ledger first, then out.
 */
#include "sfvmm/pager/pager_private.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* An order under way. */
typedef struct {
    gint64 id;
    GTask *task; /* or NULL */
    char *what;  /* for the log */
} Waiting;

typedef struct {
    JsonObject *object;
    int fds[SF_PAGER_MAX_FDS];
    guint n_fds;
} Unsent;

/* ---- answers and events ---- */

static void unsent_free(gpointer data)
{
    Unsent *unsent = data;

    for (guint i = 0; i < unsent->n_fds; i++) {
        close(unsent->fds[i]);
    }
    json_object_unref(unsent->object);
    g_free(unsent);
}

static void waiting_end(Waiting *waiting, JsonObject *answer, GError *error)
{
    if (waiting->task && error) {
        g_task_return_error(waiting->task, error);
    } else if (waiting->task) {
        g_task_return_pointer(waiting->task, json_object_ref(answer), (GDestroyNotify)json_object_unref);
    } else {
        g_clear_error(&error);
    }
    g_clear_object(&waiting->task);
    g_free(waiting->what);
    g_free(waiting);
}

void sf_pager_disconnect(SfPager *pager, const char *reason)
{
    Waiting *waiting;

    g_clear_handle_id(&pager->in_source, g_source_remove);
    g_clear_handle_id(&pager->out_source, g_source_remove);
    if (pager->socket >= 0) {
        close(pager->socket);
        pager->socket = -1;
    }
    g_queue_clear_full(&pager->unsent, unsent_free);
    while ((waiting = g_queue_pop_head(&pager->waiting))) {
        waiting_end(waiting, NULL,
                    g_error_new(G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED, "pager of %s: %s", pager->id, reason));
    }
}

const char *sf_pager_text_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);

    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING
               ? json_node_get_string(node)
               : NULL;
}

guint64 sf_pager_int_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);

    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_INT64 &&
                   json_node_get_int(node) > 0
               ? json_node_get_int(node)
               : 0;
}

gboolean sf_pager_flag_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);

    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_BOOLEAN &&
           json_node_get_boolean(node);
}

/* Words of a process that talks to the network: for people, short and printable. */
static char *printable(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text ? text : "no reason given", -1);

    for (char *p = valid; *p; p++) {
        if (g_ascii_iscntrl(*p)) {
            *p = ' ';
        }
    }
    return g_utf8_substring(valid, 0, MIN(g_utf8_strlen(valid, -1), (glong)SF_PAGER_MAX_TEXT));
}

void sf_pager_handle_event(SfPager *pager, const char *event, JsonObject *object)
{
    g_autofree char *reason = printable(sf_pager_text_of(object, "reason"));

    if (strcmp(event, "lost") == 0) {
        g_signal_emit_by_name(pager, "lost", reason);
    } else if (strcmp(event, "complete") == 0) {
        pager->complete = TRUE;
        g_signal_emit_by_name(pager, "complete");
    } else if (strcmp(event, "sources") == 0) {
        guint up = sf_pager_int_of(object, "up");
        if (up == 0 && sf_pager_text_of(object, "reason")) {
            g_message("pager of %s: page source %s", pager->id, reason);
        }
        g_signal_emit_by_name(pager, "sources", up);
    } else if (strcmp(event, "blob") == 0) {
        const char *text = sf_pager_text_of(object, "blob");
        guint64 id;
        if (text && g_ascii_string_to_unsigned(text, 16, 0, G_MAXUINT64, &id, NULL)) {
            g_signal_emit_by_name(pager, "blob", id, sf_pager_flag_of(object, "whole"));
        }
    }
}

static void handle_answer(SfPager *pager, SfPagerPacket *packet)
{
    Waiting *waiting = g_queue_peek_head(&pager->waiting);
    const char *failure = sf_pager_text_of(packet->object, "error");

    if (!waiting || (gint64)sf_pager_int_of(packet->object, "id") != waiting->id) {
        g_warning("pager of %s: it answers what nobody asked", pager->id);
        return;
    }
    g_queue_pop_head(&pager->waiting);
    if (failure) {
        g_autofree char *text = printable(failure);
        g_warning("pager of %s: %s: %s", pager->id, waiting->what, text);
        waiting_end(waiting, NULL,
                    g_error_new(G_IO_ERROR, G_IO_ERROR_FAILED, "pager of %s: %s: %s", pager->id, waiting->what, text));
        return;
    }
    if (waiting->task && packet->n_fds) {
        g_object_set_data(G_OBJECT(waiting->task), "fd", GINT_TO_POINTER(packet->fds[0] + 1));
        packet->fds[0] = -1;
    }
    waiting_end(waiting, packet->object, NULL);
}

static gboolean on_readable(int fd, GIOCondition condition, gpointer data)
{
    g_autoptr(SfPager) pager = g_object_ref(SF_PAGER(data));
    g_autoptr(GError) error = NULL;
    g_autoptr(SfPagerPacket) packet = sf_pager_receive(pager->socket, &error);
    const char *event = packet ? sf_pager_text_of(packet->object, "event") : NULL;

    if (event) {
        sf_pager_handle_event(pager, event, packet->object);
    } else if (packet) {
        handle_answer(pager, packet);
    } else if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
        /* It has died, which the pidfd tells, or talks nonsense: then it is of no use any more. */
        pager->in_source = 0;
        sf_pager_disconnect(pager, error->message);
        if (pager->pidfd >= 0 && !pager->stopped) {
            syscall(SYS_pidfd_send_signal, pager->pidfd, SIGKILL, NULL, 0);
        }
        return G_SOURCE_REMOVE;
    }
    return pager->socket == fd ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

void sf_pager_read(SfPager *pager)
{
    pager->in_source = g_unix_fd_add(pager->socket, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable, pager);
}

/* ---- requests ---- */

/* Copies descriptors; n_copied tells how far it came. */
static gboolean copy_fds(SfPager *pager, const int *fds, guint n, int *copies, guint *n_copied, GError **error)
{
    for (guint i = 0; i < n; i++) {
        copies[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (copies[i] < 0) {
            return sf_pager_fail_errno(pager, error, "a descriptor can't be duplicated; raise the limit of open files");
        }
        ++*n_copied;
    }
    return TRUE;
}

static gboolean on_writable(int fd, GIOCondition condition, gpointer data)
{
    SfPager *pager = data;
    Unsent *unsent;

    while ((unsent = g_queue_peek_head(&pager->unsent))) {
        g_autoptr(GError) error = NULL;
        if (!sf_pager_send(pager->socket, unsent->object, unsent->fds, unsent->n_fds, &error) &&
            g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
            return G_SOURCE_CONTINUE;
        }
        unsent_free(g_queue_pop_head(&pager->unsent));
    }
    pager->out_source = 0;
    return G_SOURCE_REMOVE;
}

/* A broken socket shows at the reading side. */
static gboolean send_or_queue(SfPager *pager, JsonObject *object, const int *fds, guint n_fds, GError **error)
{
    g_autoptr(GError) failure = NULL;

    if (!pager->out_source && (sf_pager_send(pager->socket, object, fds, n_fds, &failure) ||
                               !g_error_matches(failure, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))) {
        return TRUE;
    }
    Unsent *unsent = g_new0(Unsent, 1);
    unsent->object = json_object_ref(object);
    if (!copy_fds(pager, fds, n_fds, unsent->fds, &unsent->n_fds, error)) {
        unsent_free(unsent);
        return FALSE;
    }
    g_queue_push_tail(&pager->unsent, unsent);
    if (!pager->out_source) {
        pager->out_source = g_unix_fd_add(pager->socket, G_IO_OUT, on_writable, pager);
    }
    return TRUE;
}

/* Sends; the request gets its number here. task: gets the answer (a JsonObject), taken in every case; or NULL. */
gboolean sf_pager_send_request(SfPager *pager, SfPagerRequest *request, const int *fds, guint n_fds, GTask *task,
                               GError **error)
{
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(GError) failure = NULL;
    Waiting *waiting = g_new0(Waiting, 1);

    waiting->id = request->id = ++pager->last_id;
    waiting->task = task;
    object = sf_pager_request_format(request);
    waiting->what = g_strdup_printf("%s %s", sf_pager_text_of(object, "do"), request->text ? request->text : "");
    if (pager->socket < 0) {
        failure = g_error_new(G_IO_ERROR, G_IO_ERROR_NOT_CONNECTED, "pager of %s: it is not running", pager->id);
    } else {
        send_or_queue(pager, object, fds, n_fds, &failure);
    }
    if (failure) {
        g_propagate_error(error, g_error_copy(failure));
        waiting_end(waiting, NULL, g_steal_pointer(&failure));
        return FALSE;
    }
    g_queue_push_tail(&pager->waiting, waiting);
    return TRUE;
}

SfPagerRequest *sf_pager_request_new(SfPagerDo what, const char *text)
{
    SfPagerRequest *request = g_new0(SfPagerRequest, 1);

    request->what = what;
    request->text = g_strdup(text);
    return request;
}

/* ---- the ledger ---- */

void sf_pager_order_free(gpointer data)
{
    SfPagerOrder *order = data;

    for (guint i = 0; i < order->n_fds; i++) {
        close(order->fds[i]);
    }
    sf_pager_request_free(order->request);
    g_free(order);
}

void sf_pager_ledger_remove(SfPager *pager, SfPagerDo what, const char *text)
{
    for (guint i = pager->ledger->len; i-- > 0;) {
        const SfPagerOrder *order = g_ptr_array_index(pager->ledger, i);
        if (order->request->what == what && (!text || strcmp(order->request->text, text) == 0)) {
            g_ptr_array_remove_index(pager->ledger, i);
        }
    }
}

const SfPagerOrder *sf_pager_ledger_find(SfPager *pager, SfPagerDo what, const char *text)
{
    for (guint i = 0; i < pager->ledger->len; i++) {
        const SfPagerOrder *order = g_ptr_array_index(pager->ledger, i);
        if (order->request->what == what && (!text || strcmp(order->request->text, text) == 0)) {
            return order;
        }
    }
    return NULL;
}

/*
 * Into the ledger and out. Takes the request; copies the descriptors. While the process is being replaced, the ledger
 * alone counts: TRUE.
 */
gboolean sf_pager_order(SfPager *pager, SfPagerRequest *request, const int *fds, guint n_fds, GError **error)
{
    SfPagerOrder *entry = g_new0(SfPagerOrder, 1);

    entry->request = request;
    g_assert(n_fds == sf_pager_request_n_fds(request));
    if (pager->failed) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_CONNECTED, "pager of %s: it was given up", pager->id);
    }
    if (pager->failed || !copy_fds(pager, fds, n_fds, entry->fds, &entry->n_fds, error)) {
        sf_pager_order_free(entry);
        return FALSE;
    }
    g_ptr_array_add(pager->ledger, entry);
    if (pager->socket < 0) {
        return TRUE;
    }
    if (!sf_pager_send_request(pager, request, fds, n_fds, NULL, error)) {
        g_ptr_array_remove(pager->ledger, entry);
        return FALSE;
    }
    return TRUE;
}

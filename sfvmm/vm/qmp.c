/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     execute() --> out: segments --> sendmsg ====> QEMU
 *                   pending: ids in order
 *     reply()  <-- message_parse <-- json lines <---- recv
 *
 * Commands are pipelined: a load is several commands for each disk, and a round trip for each would cost more than the
 * commands. QEMU's monitor (without the oob capability, which is never asked for) takes the next command only when the
 * last is done, so order is kept. A descriptor must reach QEMU with its own command: the kernel ends a read behind
 * bytes that carry one, and QEMU reads no further before the command behind it is done. So a command with a descriptor
 * begins a new segment (one sendmsg with the descriptor), and commands without one are appended to the last segment.
 *
 * qmp_capabilities is simply the first command; the greeting arrives before its answer.
 *
 * Answers come in the order of the commands; the oldest that waits bounds the time. A QEMU that does not answer within
 * COMMAND_SECONDS, or sends what is no QMP, loses the connection: the owner connects anew.
 */
#include "sfvmm/vm/qmp.h"

#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "sfvmm/vm/vm.h"
#include "sfvmm/wire/json_line.h"

#define COMMAND_SECONDS 60 /* a loaded host is slow, a QEMU that hangs longer than this is lost */
#define READ_BYTES      16384u
#define READS_PER_TURN  4          /* then others of the main loop get their turn */
#define QUEUE_BYTES_MAX (4u << 20) /* waiting to be sent; QEMU has stopped reading */

/* ---- what QEMU says ---- */

static gboolean bad(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "QMP: %s", what);
    return FALSE;
}

static JsonObject *object_member(JsonObject *object, const char *name)
{
    JsonNode *node = json_object_get_member(object, name);

    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

static const char *string_member(JsonObject *object, const char *name)
{
    JsonNode *node = json_object_get_member(object, name);

    return node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : NULL;
}

static gboolean parse_event(JsonObject *object, SfQmpMessage *message, GError **error)
{
    const char *name = string_member(object, "event");
    JsonObject *data = object_member(object, "data");

    if (!name || (json_object_has_member(object, "data") && !data)) {
        return bad(error, "an event without name, or with data that is no object");
    }
    message->kind = SF_QMP_EVENT;
    message->text = g_strdup(name);
    message->data = data ? json_object_ref(data) : NULL;
    return TRUE;
}

static gboolean parse_id(JsonObject *object, SfQmpMessage *message, GError **error)
{
    JsonNode *id = json_object_get_member(object, "id");

    if (!id || json_node_get_value_type(id) != G_TYPE_INT64 || json_node_get_int(id) < 1) {
        return bad(error, "an answer without the id of a command");
    }
    message->id = json_node_get_int(id);
    return TRUE;
}

gboolean sf_qmp_message_parse(JsonObject *object, SfQmpMessage *message, GError **error)
{
    memset(message, 0, sizeof(*message));
    if (json_object_has_member(object, "event")) {
        return parse_event(object, message, error);
    }
    if (json_object_has_member(object, "QMP")) {
        message->kind = SF_QMP_GREETING;
        return TRUE;
    }
    if (json_object_has_member(object, "error")) {
        JsonObject *details = object_member(object, "error");
        const char *text = details ? string_member(details, "desc") : NULL;
        if (!text) {
            return bad(error, "an error without description");
        }
        if (!parse_id(object, message, error)) {
            g_prefix_error(error, "QEMU could not read a command (%s): ", text);
            return FALSE;
        }
        message->kind = SF_QMP_ERROR;
        message->text = g_strdup(text);
        return TRUE;
    }
    if (json_object_has_member(object, "return")) {
        if (!parse_id(object, message, error)) {
            return FALSE;
        }
        message->kind = SF_QMP_RETURN;
        message->result = json_node_copy(json_object_get_member(object, "return"));
        return TRUE;
    }
    return bad(error, "a message that is no greeting, answer or event");
}

void sf_qmp_message_clear(SfQmpMessage *message)
{
    g_clear_pointer(&message->result, json_node_unref);
    g_clear_pointer(&message->data, json_object_unref);
    g_clear_pointer(&message->text, g_free);
}

/* ---- a connection ---- */

/* Bytes that go out in one sendmsg, with at most one descriptor in front. */
typedef struct {
    GString *bytes;
    gsize sent;
    int fd; /* -1: none, or sent already */
} Segment;

typedef struct {
    guint64 id;
    char *command;
    gint64 deadline; /* g_get_monotonic_time() */
    SfQmpReply reply;
    gpointer data;
} Pending;

struct SfQmp {
    int refs;
    int fd; /* -1: closed */
    guint64 last_id;
    GQueue out; /* of Segment */
    gsize out_bytes;
    GQueue pending; /* of Pending, in the order of ids */
    SfJsonLineReader *lines;
    guint in_source, out_source, timer;
    const SfQmpHandlers *handlers; /* NULL after free */
    gpointer owner;
};

static void segment_free(gpointer data)
{
    Segment *segment = data;

    if (segment->fd >= 0) {
        close(segment->fd);
    }
    g_string_free(segment->bytes, TRUE);
    g_free(segment);
}

static void qmp_unref(SfQmp *qmp)
{
    if (--qmp->refs == 0) {
        sf_json_line_reader_free(qmp->lines);
        g_free(qmp);
    }
}

static void pending_end(Pending *pending, JsonNode *result, const GError *error)
{
    if (pending->reply) {
        pending->reply(result, error, pending->data);
    } else if (error && !g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_GONE)) {
        g_debug("%s: %s", pending->command, error->message);
    }
    g_free(pending->command);
    g_free(pending);
}

/* The end of the connection. Whatever the handlers do, qmp is valid until the caller's reference goes. */
static void qmp_close(SfQmp *qmp, const GError *reason)
{
    Pending *pending;

    if (qmp->fd < 0) {
        return;
    }
    qmp->refs++;
    g_clear_handle_id(&qmp->in_source, g_source_remove);
    g_clear_handle_id(&qmp->out_source, g_source_remove);
    g_clear_handle_id(&qmp->timer, g_source_remove);
    close(qmp->fd);
    qmp->fd = -1;
    g_queue_clear_full(&qmp->out, segment_free);
    while ((pending = g_queue_pop_head(&qmp->pending))) {
        pending_end(pending, NULL, reason);
    }
    if (qmp->handlers) {
        qmp->handlers->closed(reason, qmp->owner);
    }
    qmp_unref(qmp);
}

static void qmp_close_with(SfQmp *qmp, SfVmError code, const char *text)
{
    g_autoptr(GError) reason = g_error_new_literal(SF_VM_ERROR, code, text);

    qmp_close(qmp, reason);
}

static gboolean on_timer(gpointer data)
{
    SfQmp *qmp = data;
    Pending *oldest = g_queue_peek_head(&qmp->pending);
    gint64 now = g_get_monotonic_time();

    if (oldest && oldest->deadline <= now) {
        g_autofree char *text =
            g_strdup_printf("QEMU has not answered \"%s\" for %d s", oldest->command, COMMAND_SECONDS);
        qmp->timer = 0;
        qmp_close_with(qmp, SF_VM_ERROR_TIMEOUT, text);
        return G_SOURCE_REMOVE;
    }
    if (!oldest) {
        qmp->timer = 0;
        return G_SOURCE_REMOVE;
    }
    return G_SOURCE_CONTINUE;
}

static Pending *take_pending(SfQmp *qmp, guint64 id)
{
    Pending *oldest = g_queue_peek_head(&qmp->pending);

    return oldest && oldest->id == id ? g_queue_pop_head(&qmp->pending) : NULL;
}

static gboolean handle_message(SfQmp *qmp, SfQmpMessage *message, GError **error)
{
    g_autoptr(GError) failure = NULL;
    Pending *pending;

    switch (message->kind) {
    case SF_QMP_GREETING:
        return TRUE;
    case SF_QMP_EVENT:
        if (qmp->handlers) {
            qmp->handlers->event(message->text, message->data, qmp->owner);
        }
        return TRUE;
    case SF_QMP_ERROR:
    case SF_QMP_RETURN:
        break;
    }
    pending = take_pending(qmp, message->id);
    if (!pending) {
        return bad(error, "an answer to no command, or out of order");
    }
    if (message->kind == SF_QMP_ERROR) {
        failure = g_error_new(SF_VM_ERROR, SF_VM_ERROR_FAILED, "QEMU: %s: %s", pending->command, message->text);
    }
    pending_end(pending, message->result, failure);
    return TRUE;
}

/* All whole lines. FALSE: the connection has ended. */
static gboolean handle_lines(SfQmp *qmp)
{
    while (qmp->fd >= 0) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) object = NULL;
        SfQmpMessage message = { 0 };
        gboolean ok;

        if (!sf_json_line_reader_next(qmp->lines, &object, &error)) {
            qmp_close(qmp, error);
            return FALSE;
        }
        if (!object) {
            return TRUE;
        }
        ok = sf_qmp_message_parse(object, &message, &error) && handle_message(qmp, &message, &error);
        sf_qmp_message_clear(&message);
        if (!ok) {
            qmp_close(qmp, error);
            return FALSE;
        }
    }
    return FALSE;
}

/* FALSE: nothing more to read now, or the connection has ended. */
static gboolean read_once(SfQmp *qmp)
{
    char buf[READ_BYTES];
    ssize_t n = recv(qmp->fd, buf, sizeof(buf), MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return FALSE;
    }
    if (n <= 0) {
        qmp_close_with(qmp, SF_VM_ERROR_GONE, "QEMU has closed its monitor");
        return FALSE;
    }
    sf_json_line_reader_push(qmp->lines, buf, n);
    return handle_lines(qmp) && n == sizeof(buf);
}

static gboolean on_readable(int fd, GIOCondition condition, gpointer data)
{
    SfQmp *qmp = data;
    gboolean open;

    qmp->refs++;
    for (guint i = 0; i < READS_PER_TURN && qmp->fd >= 0 && read_once(qmp); i++) {
    }
    open = qmp->fd >= 0;
    qmp_unref(qmp);
    return open ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

void sf_qmp_drain(SfQmp *qmp)
{
    qmp->refs++;
    while (qmp->fd >= 0 && read_once(qmp)) {
    }
    qmp_unref(qmp);
}

static gboolean send_segment(SfQmp *qmp, Segment *segment)
{
    struct iovec iov = { segment->bytes->str + segment->sent, segment->bytes->len - segment->sent };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { 0 };
    ssize_t n;

    if (segment->fd >= 0) {
        struct cmsghdr *cmsg;
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof(control.bytes);
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &segment->fd, sizeof(int));
    }
    n = sendmsg(qmp->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0) {
        return FALSE;
    }
    if (segment->fd >= 0) {
        close(segment->fd);
        segment->fd = -1;
    }
    segment->sent += n;
    qmp->out_bytes -= n;
    return segment->sent == segment->bytes->len;
}

/* A lost connection shows itself at the reading side, in the main loop; so sending needs no error path of its own. */
static gboolean on_writable(int fd, GIOCondition condition, gpointer data)
{
    SfQmp *qmp = data;
    Segment *segment;

    while ((segment = g_queue_peek_head(&qmp->out))) {
        if (!send_segment(qmp, segment)) {
            if (errno == EAGAIN || errno == EINTR) {
                return G_SOURCE_CONTINUE;
            }
            g_queue_clear_full(&qmp->out, segment_free);
            break;
        }
        segment_free(g_queue_pop_head(&qmp->out));
    }
    qmp->out_source = 0;
    return G_SOURCE_REMOVE;
}

static void queue_line(SfQmp *qmp, const char *line, gsize length, int fd)
{
    Segment *last = g_queue_peek_tail(&qmp->out);

    if (!last || fd >= 0) {
        last = g_new0(Segment, 1);
        last->bytes = g_string_sized_new(length);
        last->fd = fd;
        g_queue_push_tail(&qmp->out, last);
    }
    g_string_append_len(last->bytes, line, length);
    qmp->out_bytes += length;
    if (!qmp->out_source) {
        /* Before anything else of the main loop, but after the caller has added all commands of its batch. */
        qmp->out_source = g_unix_fd_add_full(G_PRIORITY_HIGH, qmp->fd, G_IO_OUT, on_writable, qmp, NULL);
    }
}

static char *format_command(guint64 id, const char *command, JsonObject *args, gsize *length)
{
    g_autoptr(JsonObject) object = json_object_new();

    json_object_set_string_member(object, "execute", command);
    if (args) {
        json_object_set_object_member(object, "arguments", args);
    }
    json_object_set_int_member(object, "id", id);
    return sf_json_line_format(object, length);
}

void sf_qmp_execute(SfQmp *qmp, const char *command, JsonObject *args, int fd, SfQmpReply reply, gpointer data)
{
    gsize length = 0;
    guint64 id = ++qmp->last_id;
    g_autofree char *line = format_command(id, command, args, &length);
    Pending *pending;

    if (qmp->fd < 0 || qmp->out_bytes > QUEUE_BYTES_MAX) {
        g_autoptr(GError) error =
            g_error_new(SF_VM_ERROR, SF_VM_ERROR_GONE, "%s: QEMU's monitor is not connected or does not read", command);
        if (fd >= 0) {
            close(fd);
        }
        if (reply) {
            reply(NULL, error, data);
        }
        return;
    }
    pending = g_new0(Pending, 1);
    pending->id = id;
    pending->command = g_strdup(command);
    pending->deadline = g_get_monotonic_time() + COMMAND_SECONDS * G_USEC_PER_SEC;
    pending->reply = reply;
    pending->data = data;
    g_queue_push_tail(&qmp->pending, pending);
    if (!qmp->timer) {
        qmp->timer = g_timeout_add_seconds(COMMAND_SECONDS / 4, on_timer, qmp);
    }
    queue_line(qmp, line, length, fd);
}

SfQmp *sf_qmp_new(int fd, const SfQmpHandlers *handlers, gpointer owner)
{
    SfQmp *qmp = g_new0(SfQmp, 1);

    qmp->refs = 1;
    qmp->fd = fd;
    qmp->handlers = handlers;
    qmp->owner = owner;
    g_queue_init(&qmp->out);
    g_queue_init(&qmp->pending);
    qmp->lines = sf_json_line_reader_new();
    qmp->in_source = g_unix_fd_add(fd, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable, qmp);
    sf_qmp_execute(qmp, "qmp_capabilities", NULL, -1, NULL, NULL);
    return qmp;
}

void sf_qmp_free(SfQmp *qmp)
{
    if (!qmp) {
        return;
    }
    qmp->handlers = NULL;
    qmp_close_with(qmp, SF_VM_ERROR_GONE, "the VM has ended");
    qmp_unref(qmp);
}

/* ---- several commands, one end ---- */

struct SfQmpBatch {
    SfQmp *qmp;
    guint waiting; /* commands without answer, and one for the adding itself */
    GError *error;
    SfQmpBatchDone done;
    gpointer data;
};

static void batch_review(SfQmpBatch *batch)
{
    if (--batch->waiting > 0) {
        return;
    }
    batch->done(batch->error, batch->data);
    g_clear_error(&batch->error);
    g_free(batch);
}

static void on_batch_reply(JsonNode *result, const GError *error, gpointer data)
{
    SfQmpBatch *batch = data;

    if (error && !batch->error) {
        batch->error = g_error_copy(error);
    }
    batch_review(batch);
}

SfQmpBatch *sf_qmp_batch_new(SfQmp *qmp)
{
    SfQmpBatch *batch = g_new0(SfQmpBatch, 1);

    batch->qmp = qmp;
    batch->waiting = 1;
    return batch;
}

void sf_qmp_batch_add(SfQmpBatch *batch, const char *command, JsonObject *args, int fd)
{
    batch->waiting++;
    sf_qmp_execute(batch->qmp, command, args, fd, on_batch_reply, batch);
}

void sf_qmp_batch_run(SfQmpBatch *batch, SfQmpBatchDone done, gpointer data)
{
    batch->done = done;
    batch->data = data;
    batch_review(batch);
}

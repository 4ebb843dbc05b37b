/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * The socket of a domain's agent lies in a folder of libvirt's that its QEMU and root alone may enter. Who may use
 * libvirtd all the same (a member of the group libvirt) gets to it as `virsh console` gets to a console, by a stream:
 *
 *     SfGuestChannel ==== socket pair ==== Port ~~~~ virStream over the connection ~~~~ libvirtd ---- QEMU
 *
 * The stream is opened in a worker thread. All else happens in the main thread, which libvirt's events and those of the
 * socket come to; neither side waits for the other: of each direction one buffer's worth is kept, and no more is taken
 * before that is gone. The end of either is the end of both; the VM connects anew later.
 */
#include "sfvmm/vm/domain_port.h"

#include <errno.h>
#include <glib-unix.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libsf/wire/guest_protocol.h"
#include "sfvmm/process/socket.h"

#define BUFFER_BYTES 16384u

typedef struct {
    guint8 bytes[BUFFER_BYTES];
    gsize from, to; /* what waits */
} Buffer;

typedef struct {
    SfDomain *domain;
    virStreamPtr stream; /* NULL: not opened */
    int fd;              /* our end of the pair */
    guint source;        /* of fd */
    Buffer to_guest, to_us;
} Port;

static void port_review(Port *port);

/* Blocks, as libvirtd answers: in a thread. */
static void abort_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    virStreamAbort(data);
    virStreamFree(data);
}

static gboolean port_free(gpointer data)
{
    Port *port = data;

    if (port->stream) {
        g_autoptr(GTask) task = g_task_new(NULL, NULL, NULL, NULL);
        g_task_set_task_data(task, port->stream, NULL);
        g_task_run_in_thread(task, abort_thread);
    }
    close(port->fd);
    sf_domain_unref(port->domain);
    g_free(port);
    return G_SOURCE_REMOVE;
}

/* It is freed when libvirt's callback, which this is perhaps called from, is over. */
static void port_close(Port *port)
{
    g_clear_handle_id(&port->source, g_source_remove);
    shutdown(port->fd, SHUT_RDWR);
    virStreamEventRemoveCallback(port->stream);
    g_idle_add(port_free, port);
}

/* FALSE: the stream has ended. */
static gboolean receive(Port *port)
{
    Buffer *buffer = &port->to_us;
    int n;

    if (buffer->from < buffer->to) {
        return TRUE;
    }
    n = virStreamRecv(port->stream, (char *)buffer->bytes, BUFFER_BYTES);
    if (n == 0 || n == -1) {
        return FALSE;
    }
    buffer->from = 0;
    buffer->to = n > 0 ? (gsize)n : 0; /* -2: nothing there */
    return TRUE;
}

static gboolean pass_to_guest(Port *port)
{
    Buffer *buffer = &port->to_guest;

    while (buffer->from < buffer->to) {
        int n = virStreamSend(port->stream, (char *)buffer->bytes + buffer->from, buffer->to - buffer->from);
        if (n < 0) {
            return n == -2;
        }
        buffer->from += (gsize)n;
    }
    return TRUE;
}

static gboolean pass_to_us(Port *port)
{
    Buffer *buffer = &port->to_us;

    while (buffer->from < buffer->to) {
        ssize_t n =
            send(port->fd, buffer->bytes + buffer->from, buffer->to - buffer->from, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            return errno == EAGAIN || errno == EINTR;
        }
        buffer->from += (gsize)n;
    }
    return TRUE;
}

/* FALSE: the VM has closed its end. */
static gboolean read_ours(Port *port)
{
    Buffer *buffer = &port->to_guest;
    ssize_t n;

    if (buffer->from < buffer->to) {
        return TRUE;
    }
    n = recv(port->fd, buffer->bytes, BUFFER_BYTES, MSG_DONTWAIT);
    buffer->from = 0;
    buffer->to = n > 0 ? (gsize)n : 0;
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static gboolean on_ours(int fd, GIOCondition condition, gpointer data)
{
    Port *port = data;

    port->source = 0; /* this one ends; port_review() makes the next */
    if (read_ours(port) && pass_to_guest(port) && pass_to_us(port)) {
        port_review(port);
    } else {
        port_close(port);
    }
    return G_SOURCE_REMOVE;
}

static void on_stream(virStreamPtr stream, int events, void *data)
{
    Port *port = data;

    if (receive(port) && pass_to_us(port) && pass_to_guest(port) &&
        !(events & (VIR_STREAM_EVENT_HANGUP | VIR_STREAM_EVENT_ERROR) && port->to_us.from == port->to_us.to)) {
        port_review(port);
    } else {
        port_close(port);
    }
}

/* Waits for something to take where there is room, and for room where something waits. */
static void port_review(Port *port)
{
    gboolean guest_waits = port->to_us.from < port->to_us.to, we_wait = port->to_guest.from < port->to_guest.to;

    virStreamEventUpdateCallback(port->stream, (guest_waits ? 0 : VIR_STREAM_EVENT_READABLE) |
                                                   (we_wait ? VIR_STREAM_EVENT_WRITABLE : 0));
    g_clear_handle_id(&port->source, g_source_remove);
    port->source =
        g_unix_fd_add(port->fd, (we_wait ? 0 : G_IO_IN) | (guest_waits ? G_IO_OUT : 0) | G_IO_HUP, on_ours, port);
}

/* ---- opening ---- */

static void open_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    Port *port = data;
    g_autoptr(GError) error = NULL;
    virConnectPtr connection = sf_libvirt_connect(sf_domain_libvirt(port->domain), SF_LIBVIRT_QUICK, &error);
    virDomainPtr found = connection ? virDomainLookupByUUIDString(connection, sf_domain_uuid(port->domain)) : NULL;
    virStreamPtr stream = found ? virStreamNew(connection, VIR_STREAM_NONBLOCK) : NULL;

    if (stream && virDomainOpenChannel(found, SF_GP_PORT, stream, VIR_DOMAIN_CHANNEL_FORCE) == 0) {
        port->stream = stream;
    } else {
        const char *why = error ? error->message : virGetLastErrorMessage();
        g_debug("domain %s: the port of its agent can't be opened by libvirtd: %s", sf_domain_name(port->domain), why);
        if (stream) {
            virStreamFree(stream);
        }
    }
    if (found) {
        virDomainFree(found);
    }
    if (connection) {
        virConnectClose(connection);
    }
    g_task_return_boolean(task, port->stream != NULL);
}

static void on_opened(GObject *source, GAsyncResult *result, gpointer data)
{
    Port *port = data;

    if (g_task_propagate_boolean(G_TASK(result), NULL) &&
        virStreamEventAddCallback(port->stream, VIR_STREAM_EVENT_READABLE, on_stream, port, NULL) == 0) {
        port_review(port);
    } else {
        port_free(port);
    }
}

int sf_domain_port_open(SfDomain *domain, GError **error)
{
    g_autoptr(GTask) task = NULL;
    Port *port;
    int pair[2];

    if (!sf_socket_pair(SOCK_STREAM, pair, error)) {
        return -1;
    }
    port = g_new0(Port, 1);
    port->domain = sf_domain_ref(domain);
    port->fd = pair[1];
    task = g_task_new(NULL, NULL, on_opened, port);
    g_task_set_task_data(task, port, NULL);
    g_task_run_in_thread(task, open_thread);
    return pair[0];
}

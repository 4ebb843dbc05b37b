/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     QEMU ==stream==  port  --+
 *     QEMU ==stream==  port  --+-- who has this MAC? --+-- port
 *     QEMU ==stream==  port  --+                       +-- gateway (outside.c), if the policy lets anything out
 *
 * Nothing is learned from frames: sfvmmd says which MAC and address a port's member has, so a frame is held against
 * that (frame.c) and goes where the MAC is, or is dropped. What is for a group goes to all members, in bounds.
 *
 * A port whose member is not admitted takes frames and loses them, and gets none.
 *
 * One loop around poll(). Of each port one buffer is read in a round, so none keeps the others waiting. A guest that
 * sends more than is read waits by itself, for its socket is full; one that reads too little loses frames.
 *
 * Nobody else needs to know when it ends: each QEMU's end closes its port. Without sfvmmd it goes on; without sfvmmd
 * and members it ends, as a network namespace would.
 */
#include "sfvmm/net/switch.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "libsf/wire/message.h"
#include "sfvmm/net/dhcp.h"
#include "sfvmm/net/network.h"
#include "sfvmm/net/outside.h"
#include "sfvmm/net/port.h"

enum { POLL_LISTENER, POLL_CONTROL, POLL_PORTS };

struct SfSwitch {
    SfSwitchOptions options;
    int listener, control; /* control -1: there is no sfvmmd now */
    gboolean had_control, ended;
    GPtrArray *ports; /* of SfPort */
    guint8 gateway_mac[SF_FRAME_MAC];
    SfOutside *outside; /* NULL: nothing is reachable outside */
    GArray *pollfds;    /* of struct pollfd */
    gint64 now;         /* microseconds, as of this round */
};

/* ---- frames ---- */

static SfPort *member_by_mac(SfSwitch *self, const guint8 *mac)
{
    for (guint i = 0; i < self->ports->len; i++) {
        SfPort *port = g_ptr_array_index(self->ports, i);
        if (port->admitted && memcmp(port->mac, mac, SF_FRAME_MAC) == 0) {
            return port;
        }
    }
    return NULL;
}

static const guint8 *mac_of(gpointer owner, guint32 address)
{
    SfSwitch *self = owner;

    for (guint i = 0; i < self->ports->len; i++) {
        SfPort *port = g_ptr_array_index(self->ports, i);
        if (port->admitted && port->address == address) {
            return port->mac;
        }
    }
    return NULL;
}

static void give(SfSwitch *self, SfPort *port, const guint8 *frame, gsize length)
{
    if (sf_limit_take(&port->receiving, length, self->now)) {
        sf_port_send(port, frame, length);
    }
}

static void deliver(gpointer owner, const guint8 *frame, gsize length)
{
    SfPort *port = member_by_mac(owner, frame);

    if (port) {
        give(owner, port, frame, length);
    }
}

static void give_to_all(SfSwitch *self, const SfPort *from, const guint8 *frame, gsize length)
{
    for (guint i = 0; i < self->ports->len; i++) {
        SfPort *port = g_ptr_array_index(self->ports, i);
        if (port != from && port->admitted) {
            give(self, port, frame, length);
        }
    }
    if (self->outside) {
        sf_outside_input(self->outside, frame, length, self->now);
    }
}

/* What it asks by DHCP is for nobody else. */
static void answer_dhcp(SfSwitch *self, SfPort *from, const guint8 *frame, gsize length)
{
    SfDhcpSubnet subnet = {
        .server = sf_network_gateway_address(self->options.address, self->options.prefix),
        .router = self->outside ? sf_network_gateway_address(self->options.address, self->options.prefix) : 0,
        .prefix = self->options.prefix,
        .mtu = SF_NET_MTU,
        .mac = self->gateway_mac,
    };
    guint8 answer[SF_DHCP_ANSWER_MAX];
    gsize size = sf_dhcp_answer(&subnet, from->mac, from->address, frame, length, answer);

    if (size > 0 && sf_limit_take(&from->groups, 1, self->now)) {
        give(self, from, answer, size);
    }
}

static void pass(SfSwitch *self, SfPort *from, const guint8 *frame, gsize length)
{
    if (from->admitted && sf_dhcp_is_request(frame, length)) {
        answer_dhcp(self, from, frame, length);
        return;
    }
    if (!from->admitted || !sf_frame_may_pass(frame, length, from->mac, from->address) ||
        !sf_limit_take(&from->sending, length, self->now)) {
        return;
    }
    if (sf_frame_is_for_group(frame)) {
        if (sf_limit_take(&from->groups, 1, self->now)) {
            give_to_all(self, from, frame, length);
        }
    } else if (self->outside && memcmp(frame, self->gateway_mac, SF_FRAME_MAC) == 0) {
        sf_outside_input(self->outside, frame, length, self->now);
    } else {
        deliver(self, frame, length);
    }
}

/* FALSE: its QEMU has gone. */
static gboolean serve_port(SfSwitch *self, SfPort *port, short events)
{
    const guint8 *frame;
    gsize at = 0, length;

    if (events & POLLOUT) {
        sf_port_flush(port);
    }
    if (!(events & (POLLIN | POLLHUP | POLLERR))) {
        return TRUE;
    }
    if (!sf_port_fill(port)) {
        return FALSE;
    }
    while ((length = sf_port_next(port, &at, &frame)) > 0) {
        pass(self, port, frame, length);
    }
    sf_port_consume(port, at);
    return TRUE;
}

/* ---- orders ---- */

static SfPort *port_of(SfSwitch *self, const char *device)
{
    for (guint i = 0; i < self->ports->len; i++) {
        SfPort *port = g_ptr_array_index(self->ports, i);
        if (strcmp(port->device, device) == 0) {
            return port;
        }
    }
    return NULL;
}

/* Takes the socket. */
static int open_port(SfSwitch *self, const char *device, int socket)
{
    int type = 0;
    socklen_t size = sizeof(type);
    int error = port_of(self, device)                                                              ? EEXIST
                : getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_STREAM ? EINVAL
                                                                                                   : 0;

    if (error) {
        close(socket);
    } else {
        g_ptr_array_add(self->ports, sf_port_new(device, socket, self->options.rate, self->now));
    }
    return error;
}

static int admit(SfSwitch *self, const struct sf_switch_order *order)
{
    SfPort *port = port_of(self, order->device);

    if (!port) {
        return ENODEV;
    }
    memcpy(port->mac, order->mac, sizeof(port->mac));
    port->address = order->address;
    port->admitted = port->confirmed = TRUE;
    return 0;
}

static void settle(SfSwitch *self)
{
    for (guint i = 0; i < self->ports->len; i++) {
        SfPort *port = g_ptr_array_index(self->ports, i);
        port->admitted = port->admitted && port->confirmed;
    }
}

static int obey(SfSwitch *self, const struct sf_switch_order *order, int fd)
{
    switch (order->what) {
    case SF_SWITCH_OPEN:
        return open_port(self, order->device, fd);
    case SF_SWITCH_ADMIT:
        return admit(self, order);
    case SF_SWITCH_DISMISS:
        g_ptr_array_remove(self->ports, port_of(self, order->device));
        return 0;
    case SF_SWITCH_SETTLE:
        settle(self);
        return 0;
    default:
        self->ended = TRUE;
        return 0;
    }
}

static void drop_control(SfSwitch *self)
{
    close(self->control);
    self->control = -1;
}

static void serve_control(SfSwitch *self)
{
    g_autoptr(GError) error = NULL;
    struct sf_switch_order order;
    int fd;

    if (!sf_switch_order_receive(self->control, &order, &fd, &error)) {
        if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED)) {
            g_warning("%s", error->message);
        }
        drop_control(self);
    } else if (!sf_switch_answer_send(self->control, order.what, obey(self, &order, fd), &error)) {
        g_warning("%s", error->message);
        drop_control(self);
    }
}

/* The newest sfvmmd is the one that counts. */
static void accept_control(SfSwitch *self)
{
    int control = accept4(self->listener, NULL, NULL, SOCK_CLOEXEC);

    if (control < 0) {
        return;
    }
    if (self->control >= 0) {
        drop_control(self);
    }
    self->control = control;
    self->had_control = TRUE;
    for (guint i = 0; i < self->ports->len; i++) {
        ((SfPort *)g_ptr_array_index(self->ports, i))->confirmed = FALSE;
    }
}

/* ---- the loop ---- */

static void add_poll(SfSwitch *self, int fd, short events)
{
    struct pollfd entry = { .fd = fd, .events = events };

    g_array_append_val(self->pollfds, entry);
}

static short seen(SfSwitch *self, guint index)
{
    return g_array_index(self->pollfds, struct pollfd, index).revents;
}

static void round_once(SfSwitch *self)
{
    guint n = self->ports->len;
    int timeout = -1, result;

    g_array_set_size(self->pollfds, 0);
    add_poll(self, self->listener, POLLIN);
    add_poll(self, self->control, POLLIN); /* poll() passes over -1 */
    for (guint i = 0; i < n; i++) {
        const SfPort *port = g_ptr_array_index(self->ports, i);
        add_poll(self, port->socket, port->out_length > 0 ? POLLIN | POLLOUT : POLLIN);
    }
    if (self->outside) {
        sf_outside_prepare(self->outside, self->pollfds, &timeout);
    }
    result = poll((struct pollfd *)(void *)self->pollfds->data, self->pollfds->len, timeout);
    self->now = g_get_monotonic_time();
    if (self->outside) {
        sf_outside_dispatch(self->outside, self->pollfds, result < 0);
    }
    if (result < 0) {
        return;
    }
    for (guint i = n; i > 0; i--) { /* from behind: ports go while they are served */
        if (!serve_port(self, g_ptr_array_index(self->ports, i - 1), seen(self, POLL_PORTS + i - 1))) {
            g_ptr_array_remove_index(self->ports, i - 1);
        }
    }
    if (seen(self, POLL_CONTROL)) {
        serve_control(self);
    }
    if (seen(self, POLL_LISTENER)) {
        accept_control(self);
    }
}

void sf_switch_run(SfSwitch *self)
{
    while (!self->ended && (self->control >= 0 || !self->had_control || self->ports->len > 0)) {
        round_once(self);
    }
}

/* ---- life ---- */

static gboolean open_outside(SfSwitch *self, GError **error)
{
    SfOutsideOptions options = {
        .gateway = sf_network_gateway_address(self->options.address, self->options.prefix),
        .prefix = self->options.prefix,
        .mac = self->gateway_mac,
        .rules = self->options.rules,
        .owner = self,
        .mac_of = mac_of,
        .deliver = deliver,
    };

    sf_gp_mac_of_address(self->gateway_mac, options.gateway);
    self->outside = self->options.rules->len > 0 ? sf_outside_new(&options, error) : NULL;
    return self->outside || self->options.rules->len == 0;
}

SfSwitch *sf_switch_new(const SfSwitchOptions *options, int listener, GError **error)
{
    SfSwitch *self = g_new0(SfSwitch, 1);

    self->options = *options;
    self->listener = listener;
    self->control = -1;
    self->ports = g_ptr_array_new_with_free_func((GDestroyNotify)sf_port_free);
    self->pollfds = g_array_new(FALSE, FALSE, sizeof(struct pollfd));
    if (!open_outside(self, error)) {
        sf_switch_free(self);
        return NULL;
    }
    return self;
}

void sf_switch_free(SfSwitch *self)
{
    if (self) {
        g_ptr_array_unref(self->ports);
        sf_outside_free(self->outside);
        g_array_unref(self->pollfds);
        if (self->control >= 0) {
            close(self->control);
        }
        g_free(self);
    }
}

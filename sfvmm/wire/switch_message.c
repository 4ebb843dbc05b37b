/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/wire/switch_message.h"

#include <string.h>
#include "sfvmm/wire/packet.h"

static const SfPacketKind orders = { "sf-switch's socket", "sfvmmd", sizeof(struct sf_switch_order), 1 };
static const SfPacketKind answers = { "sf-switch's socket", "sf-switch", sizeof(struct sf_switch_answer), 0 };

static gboolean bad(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "sf-switch's socket: %s", what);
    return FALSE;
}

static gboolean has_device(guint32 what)
{
    return what == SF_SWITCH_OPEN || what == SF_SWITCH_ADMIT || what == SF_SWITCH_DISMISS;
}

/* Letters and digits, then zeros to the end. */
static gboolean device_is_right(const struct sf_switch_order *order)
{
    gsize length = strnlen(order->device, SF_SWITCH_DEVICE_LEN);

    for (gsize i = 0; i < SF_SWITCH_DEVICE_LEN; i++) {
        if (i < length ? !g_ascii_isalnum(order->device[i]) : order->device[i] != '\0') {
            return FALSE;
        }
    }
    return length < SF_SWITCH_DEVICE_LEN && (length > 0) == has_device(order->what);
}

static gboolean is_nothing(const guint8 *bytes, gsize length)
{
    static const guint8 nothing[SF_SWITCH_MAC_LENGTH] = { 0 };

    return memcmp(bytes, nothing, length) == 0;
}

gboolean sf_switch_order_check(const void *bytes, gsize length, guint n_fds, struct sf_switch_order *order,
                               GError **error)
{
    if (length != sizeof(*order)) {
        return bad(error, "an order has another length");
    }
    memcpy(order, bytes, sizeof(*order));
    if (order->version != SF_SWITCH_VERSION) {
        return bad(error, "sfvmmd and sf-switch are of different versions");
    }
    if (order->what < SF_SWITCH_OPEN || order->what > SF_SWITCH_END) {
        return bad(error, "an unknown order");
    }
    if (!device_is_right(order)) {
        return bad(error, "the name of a device is not one");
    }
    if (n_fds != (order->what == SF_SWITCH_OPEN ? 1 : 0)) {
        return bad(error, "an order has too few or too many descriptors");
    }
    if (order->what == SF_SWITCH_ADMIT ? order->address == 0 || (order->mac[0] & 1)
                                       : order->address != 0 || !is_nothing(order->mac, sizeof(order->mac))) {
        return bad(error, "an address is missing, or is there for nothing");
    }
    return is_nothing(order->zero, sizeof(order->zero)) || bad(error, "what should be zero is not");
}

gboolean sf_switch_order_receive(int socket, struct sf_switch_order *order, int *fd, GError **error)
{
    guint8 bytes[sizeof(*order)];
    int fds[1] = { -1 };
    guint n_fds = 0;
    gsize length = sf_packet_receive(&orders, socket, bytes, fds, &n_fds, error);

    *fd = -1;
    if (length == 0) {
        return FALSE;
    }
    if (!sf_switch_order_check(bytes, length, n_fds, order, error)) {
        sf_packet_close_fds(fds, n_fds);
        return FALSE;
    }
    *fd = n_fds ? fds[0] : -1;
    return TRUE;
}

gboolean sf_switch_answer_send(int socket, guint32 what, int error_number, GError **error)
{
    struct sf_switch_answer answer = { what, error_number };

    return sf_packet_send(&answers, socket, &answer, sizeof(answer), NULL, 0, error);
}

gboolean sf_switch_order_send(int socket, struct sf_switch_order *order, int fd, GError **error)
{
    struct sf_switch_answer answer;
    guint n_fds = 0;
    int none;
    gsize length;

    order->version = SF_SWITCH_VERSION;
    memset(order->zero, 0, sizeof(order->zero));
    if (!sf_packet_send(&orders, socket, order, sizeof(*order), &fd, fd >= 0 ? 1 : 0, error)) {
        return FALSE;
    }
    length = sf_packet_receive(&answers, socket, &answer, &none, &n_fds, error);
    if (length == 0) {
        return FALSE;
    }
    if (length != sizeof(answer) || answer.what != order->what) {
        return bad(error, "an answer is not one to the order");
    }
    if (answer.error != 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(answer.error), "sf-switch: %s: %s", order->device,
                    g_strerror(answer.error));
    }
    return answer.error == 0;
}

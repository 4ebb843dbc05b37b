/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The port of the guest's agent: connected while the process lives, whether a guest listens or not.
 */
#include "sfvmm/vm/vm_private.h"

#include <sys/socket.h>

#include "sfvmm/process/socket.h"

#define GUEST_RETRY_MS 500u

static void on_guest_connected(gpointer owner)
{
    SfVm *vm = owner;

    if (!vm->agent_seen) {
        vm->agent_seen = TRUE;
        sf_vm_save(vm, NULL);
    }
    g_signal_emit_by_name(vm, "guest-connected");
}

static void on_guest_message(const struct sf_gp_header *header, const guint8 *payload, gpointer owner)
{
    SfVm *vm = g_object_ref(SF_VM(owner));
    struct sf_gp_header copy = *header;
    g_autoptr(GBytes) bytes = g_bytes_new(payload, header->length);

    g_signal_emit_by_name(vm, "guest-message", &copy, bytes);
    g_object_unref(vm);
}

static gboolean on_guest_retry(gpointer data)
{
    SfVm *vm = data;

    vm->guest_timer = 0;
    sf_vm_connect_guest(vm);
    return G_SOURCE_REMOVE;
}

static void connect_guest_later(SfVm *vm)
{
    if (!vm->gone && !vm->guest_timer) {
        vm->guest_timer = g_timeout_add(GUEST_RETRY_MS, on_guest_retry, vm);
    }
}

static void on_guest_closed(gpointer owner)
{
    SfVm *vm = owner;

    g_clear_pointer(&vm->guest, sf_guest_channel_free);
    connect_guest_later(vm);
}

static const SfGuestChannelHandlers guest_handlers = { on_guest_connected, on_guest_message, on_guest_closed };

void sf_vm_connect_guest(SfVm *vm)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *folder = vm->agent_socket ? g_path_get_dirname(vm->agent_socket) : g_strdup(vm->directory);
    g_autofree char *file = g_path_get_basename(vm->agent_socket ? vm->agent_socket : SF_VM_FILE_AGENT);
    int fd = sf_socket_connect(folder, file, SOCK_STREAM | SOCK_NONBLOCK, &error);

    if (vm->keeper && g_error_matches(error, G_IO_ERROR, G_IO_ERROR_PERMISSION_DENIED)) {
        g_clear_error(&error);
        fd = vm->keeper->open_port(vm->keeper_data, &error);
    }
    if (fd < 0) {
        g_debug("VM %s: the port of its agent: %s", vm->name, error->message); /* it has most likely just ended */
        connect_guest_later(vm);
        return;
    }
    vm->guest = sf_guest_channel_new(fd, vm->name, &guest_handlers, vm);
    if (!vm->guest_hello_held) {
        sf_guest_channel_hello(vm->guest);
    }
}

void sf_vm_guest_greet(SfVm *vm)
{
    if (vm->guest_hello_held && vm->role != SF_VM_SHELL) {
        vm->guest_hello_held = FALSE;
        if (vm->guest) {
            sf_guest_channel_hello(vm->guest);
        }
    }
}

gboolean sf_vm_guest_send(SfVm *vm, guint8 type, guint32 request, const void *payload, gsize length, GError **error)
{
    if (vm->gone || !vm->guest) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", vm->name,
                    vm->gone ? "it has ended" : "the port of its agent is not connected");
        return FALSE;
    }
    return sf_guest_channel_send(vm->guest, type, request, payload, length, error);
}

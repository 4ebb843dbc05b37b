/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation: a clone whose memory comes on demand.
 *
 *     MAP  -->  QEMU maps the page cache and makes a userfaultfd
 *          <--  the userfaultfd, its number in QEMU, where the blocks lie
 *     handler->attach(): from now on somebody fills what is touched
 *     LOAD (MAPPED)  -->  device state, which touches some
 *
 * QEMU keeps its copy of the userfaultfd for ever, and vm.json its number: when sfvmmd and the pager have both died,
 * the next sfvmmd takes it from the process (pidfd_getfd) and attaches it to a new pager. Until then who touches a
 * missing page waits; that may be QEMU's main thread, so it happens before QEMU is asked anything.
 */
#include "sfvmm/vm/vm_private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sfvmm/wire/qemu_message.h"

#define USERFAULTFD_PATH "/dev/userfaultfd"

typedef struct {
    SfVm *vm;
    void (*mapped)(SfVm *vm, GError *error);
} MapOp;

static void set_handler(SfVm *vm, const SfFaultHandler *handler)
{
    gpointer old = vm->handler.owner;

    vm->handler = *handler;
    g_object_ref(vm->handler.owner);
    g_free(vm->handler_id);
    vm->handler_id = g_strdup(handler->id);
    g_clear_object((GObject **)&old);
}

gboolean sf_vm_lazy_begin(SfVm *vm, const SfFaultHandler *handler, const SfSnapshot *snapshot, GError **error)
{
    if (!handler) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                    "VM %s: load: the memory of snapshot %s comes on demand, and nobody is there to bring it", vm->name,
                    snapshot->id);
        return FALSE;
    }
    set_handler(vm, handler);
    vm->lazy = TRUE;
    return TRUE;
}

static gboolean attach(SfVm *vm, int uffd, GError **error)
{
    return vm->handler.attach(vm->handler.owner, vm->name, vm->pid, uffd, vm->mapped, vm->n_mapped, error);
}

/* Notes where the blocks lie, and hands the userfaultfd over. */
static gboolean take_mapping(SfVm *vm, SfQcMessage *message, GError **error)
{
    struct sf_qc_map_reply reply;
    struct sf_qc_mapped_block blocks[SF_QC_MAX_BLOCKS];

    if (!sf_qc_parse_map(message->payload, message->n_fds, &reply, blocks, error)) {
        return FALSE;
    }
    if (reply.n_blocks == 0 || message->n_fds != 1) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "QEMU has mapped nothing on demand");
        return FALSE;
    }
    vm->uffd_number = reply.uffd;
    vm->n_mapped = reply.n_blocks;
    for (guint i = 0; i < reply.n_blocks; i++) {
        memcpy(vm->mapped[i].id, blocks[i].id, sizeof(blocks[i].id));
        vm->mapped[i].address = blocks[i].address;
        vm->mapped[i].length = blocks[i].length;
    }
    g_debug("VM %s: mapped in %" G_GUINT64_FORMAT " us", vm->name, (guint64)reply.total / 1000);
    return attach(vm, message->fds[0], error);
}

static void on_map_reply(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autofree MapOp *op = data;
    g_autoptr(SfVm) vm = op->vm;
    GError *failure = NULL;

    if (error) {
        failure = g_error_new_literal(SF_VM_ERROR, vm->gone ? SF_VM_ERROR_GONE : SF_VM_ERROR_FAILED, error->message);
    } else {
        take_mapping(vm, message, &failure);
    }
    op->mapped(vm, failure);
}

gboolean sf_vm_lazy_map(SfVm *vm, SfSnapshot *snapshot, void (*mapped)(SfVm *vm, GError *error), GError **error)
{
    int device = open(USERFAULTFD_PATH, O_RDWR | O_CLOEXEC);
    int fds[SF_QC_MAX_FDS];
    g_autoptr(GBytes) payload = NULL;
    GBytes *packet;
    MapOp *op;
    guint n;

    if (device < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                    USERFAULTFD_PATH ": %s; sfvmmd must be able to open it for memory on demand",
                    g_strerror(errno));
        return FALSE;
    }
    payload = sf_snapshot_map_request(snapshot, device, fds, &n, error);
    if (payload) {
        op = g_new0(MapOp, 1);
        op->vm = g_object_ref(vm);
        op->mapped = mapped;
        packet = sf_qc_request_map(sf_qemu_channel_serial(vm->channel), payload);
        sf_qemu_channel_request(vm->channel, SF_QC_MAP, packet, fds, n, on_map_reply, op);
    }
    close(device);
    return payload != NULL;
}

void sf_vm_lazy_end(SfVm *vm)
{
    if (vm->handler.owner) {
        vm->handler.detach(vm->handler.owner, vm->name);
        g_clear_object((GObject **)&vm->handler.owner);
    }
}

gboolean sf_vm_is_lazy(SfVm *vm)
{
    return vm->lazy;
}

static void on_avoided(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    g_autoptr(GError) failure = NULL;
    struct sf_qc_avoided_reply reply;

    vm->asks_avoided = FALSE;
    if (!error && sf_qc_parse_avoided(message->payload, message->n_fds, &reply, &failure)) {
        vm->overwritten = reply.overwritten;
    } else {
        g_debug("VM %s: how much it has not fetched is not known: %s", vm->name, (error ? error : failure)->message);
    }
}

guint64 sf_vm_overwritten(SfVm *vm)
{
    if (vm->lazy && !vm->gone && vm->channel && vm->greeted && !vm->asks_avoided) {
        vm->asks_avoided = TRUE;
        sf_qemu_channel_request(vm->channel, SF_QC_AVOIDED, sf_qc_request_avoided(sf_qemu_channel_serial(vm->channel)),
                                NULL, 0, on_avoided, g_object_ref(vm));
    }
    return vm->overwritten;
}

const char *sf_vm_fault_handler_id(SfVm *vm)
{
    return vm->handler_id;
}

gboolean sf_vm_set_fault_handler(SfVm *vm, const SfFaultHandler *handler, gboolean attached, GError **error)
{
    int uffd;
    gboolean ok;

    if (!vm->lazy || vm->gone) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", vm->name,
                    vm->gone ? "it has ended" : "its memory does not come on demand");
        return FALSE;
    }
    set_handler(vm, handler);
    if (attached) {
        return TRUE;
    }
    uffd = syscall(SYS_pidfd_getfd, vm->pidfd, vm->uffd_number, 0);
    if (uffd < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                    "VM %s: its userfaultfd can't be taken from the process: %s; missing pages can't be brought any "
                    "more",
                    vm->name, g_strerror(errno));
        return FALSE;
    }
    ok = attach(vm, uffd, error);
    close(uffd);
    return ok;
}

/* ---- vm.json ---- */

void sf_vm_lazy_to_json(SfVm *vm, JsonObject *object)
{
    JsonObject *lazy;
    JsonArray *blocks;

    if (vm->n_mapped == 0) {
        return;
    }
    lazy = json_object_new();
    blocks = json_array_new();
    for (guint i = 0; i < vm->n_mapped; i++) {
        JsonObject *block = json_object_new();
        json_object_set_string_member(block, "id", vm->mapped[i].id);
        json_object_set_int_member(block, "address", vm->mapped[i].address);
        json_object_set_int_member(block, "length", vm->mapped[i].length);
        json_array_add_object_element(blocks, block);
    }
    json_object_set_int_member(lazy, "uffd", vm->uffd_number);
    json_object_set_string_member(lazy, "handler", vm->handler_id ? vm->handler_id : "");
    json_object_set_array_member(lazy, "blocks", blocks);
    json_object_set_object_member(object, "lazy", lazy);
}

static gboolean invalid(GError **error)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "\"lazy\" is malformed");
    return FALSE;
}

gboolean sf_vm_lazy_from_json(SfVm *vm, JsonObject *object, GError **error)
{
    JsonNode *node = json_object_get_member(object, "lazy");
    JsonObject *lazy = node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    JsonNode *list = lazy ? json_object_get_member(lazy, "blocks") : NULL;
    JsonArray *blocks = list && JSON_NODE_HOLDS_ARRAY(list) ? json_node_get_array(list) : NULL;

    if (!node) {
        return TRUE;
    }
    if (!blocks || json_array_get_length(blocks) > SF_QC_MAX_BLOCKS) {
        return invalid(error);
    }
    for (guint i = 0; i < json_array_get_length(blocks); i++) {
        JsonNode *element = json_array_get_element(blocks, i);
        JsonObject *block = JSON_NODE_HOLDS_OBJECT(element) ? json_node_get_object(element) : NULL;
        const char *id = block ? json_object_get_string_member_with_default(block, "id", NULL) : NULL;
        SfMappedBlock *mapped = &vm->mapped[i];
        if (!id || g_strlcpy(mapped->id, id, sizeof(mapped->id)) >= sizeof(mapped->id)) {
            return invalid(error);
        }
        mapped->address = json_object_get_int_member_with_default(block, "address", 0);
        mapped->length = json_object_get_int_member_with_default(block, "length", 0);
    }
    vm->n_mapped = json_array_get_length(blocks);
    vm->uffd_number = json_object_get_int_member_with_default(lazy, "uffd", -1);
    g_free(vm->handler_id);
    vm->handler_id = g_strdup(json_object_get_string_member_with_default(lazy, "handler", ""));
    vm->lazy = TRUE;
    return TRUE;
}

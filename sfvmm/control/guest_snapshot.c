/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Checkpoints: saved snapshots that a guest takes of its own VM, and clones that it makes of them.
 *
 * A checkpoint NAME of VM is the saved snapshot "VM.NAME". Its `request` is the id of the agent's CHECKPOINT: in each clone
 * the agent answers that request with the clone's id. Guests reach what their own VM has saved so, and nothing else: an
 * operator's snapshots have no request.
 */
#include <errno.h>
#include <string.h>

#include "libsf/wire/message.h"
#include "sfvmm/control/guest_api_private.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/snapshot_remove.h"

/* Of one VM: a guest must not fill its host's disk. */
#define CHECKPOINTS_MAX 8u

/* A request that is being carried out. */
typedef struct {
    SfHost *host;
    SfVm *vm;
    guint32 request;
    char *key;
    SfFork *fork; /* of CREATE: until its clones are placed */
    gulong placed;
    guint64 ticket;
} Order;

static GHashTable *orders; /* set of char *: "VM REQUEST" */

/* NULL: it is being carried out already. */
static Order *order_new(const SfGuestRequest *request)
{
    g_autofree char *key = g_strdup_printf("%s %u", sf_vm_name(request->hvm->vm), request->header->request);
    Order *order;

    if (!orders) {
        orders = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    }
    if (!g_hash_table_add(orders, g_strdup(key))) {
        return NULL;
    }
    order = g_new0(Order, 1);
    order->host = request->host;
    order->vm = g_object_ref(request->hvm->vm);
    order->request = request->header->request;
    order->key = g_steal_pointer(&key);
    return order;
}

static void order_free(Order *order)
{
    if (order->fork) {
        g_clear_signal_handler(&order->placed, order->fork);
        g_object_unref(order->fork);
    }
    g_hash_table_remove(orders, order->key);
    g_object_unref(order->vm);
    g_free(order->key);
    g_free(order);
}

static void refuse(const SfGuestRequest *request, int code, const char *text)
{
    sf_guest_answer_error(request->hvm, request->header->request, code, text);
}

/* Of what the store and the snapshots say. */
static int error_number(const GError *error)
{
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_EXISTS)) {
        return EEXIST;
    }
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND)) {
        return ENOENT;
    }
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE)) {
        return ENOSPC;
    }
    if (g_error_matches(error, SF_HOST_ERROR, SF_HOST_ERROR_BUSY)) {
        return EBUSY;
    }
    return sf_guest_error_number(error);
}

static char *saved_name(const SfHostVm *hvm, const char *name)
{
    return g_strdup_printf("%s.%s", sf_vm_name(hvm->vm), name);
}

static guint count_checkpoints(SfHost *host, const SfHostVm *hvm)
{
    SfStore *store = sf_snapshots_store(sf_snapshots_of(host));
    g_auto(GStrv) names = sf_store_names(store);
    g_auto(GStrv) busy = sf_store_busy(store);
    g_autofree char *prefix = saved_name(hvm, "");
    guint n = 0;

    for (char **name = names; *name; name++) {
        n += g_str_has_prefix(*name, prefix);
    }
    for (char **name = busy; *name; name++) {
        n += g_str_has_prefix(*name, prefix);
    }
    return n;
}

/* ---- CHECKPOINT ---- */

static void answer_saved(SfHostVm *hvm, guint32 request)
{
    struct sf_gp_cloned cloned = { .id = 0, .count = 0 };
    guint8 payload[SF_GP_CLONED_LENGTH];

    sf_guest_answer(hvm, SF_GP_CHECKPOINT | SF_GP_REPLY, request, payload, sf_gp_cloned_pack(payload, &cloned));
}

static void on_saved(GObject *source, GAsyncResult *result, gpointer data)
{
    Order *order = data;
    SfHostVm *hvm = sf_host_vm_of(order->host, order->vm);
    g_autoptr(GError) error = NULL;
    gboolean ok = sf_snapshots_save_finish(sf_snapshots_of(order->host), result, &error);

    if (hvm && ok) {
        answer_saved(hvm, order->request);
    } else if (hvm) {
        sf_guest_answer_error(hvm, order->request, error_number(error), error->message);
    }
    order_free(order);
}

void sf_guest_checkpoint(const SfGuestRequest *request)
{
    SfSnapshots *snapshots = sf_snapshots_of(request->host);
    struct sf_gp_checkpoint asked;
    g_autofree char *name = NULL;
    g_autoptr(SfSaved) saved = NULL;
    Order *order;

    if (!sf_gp_checkpoint_parse(&asked, request->payload, request->length)) {
        refuse(request, EINVAL, "malformed checkpoint request");
        return;
    }
    if (request->hvm->ticket) {
        refuse(request, EOPNOTSUPP, "this VM is a clone; only a VM that was started can be saved as a checkpoint");
        return;
    }
    name = saved_name(request->hvm, asked.name);
    saved = sf_store_read(sf_snapshots_store(snapshots), name, NULL);
    if (saved && saved->request == request->header->request) {
        answer_saved(request->hvm, request->header->request); /* the answer was lost when sfvmmd ended */
        return;
    }
    if (saved) {
        refuse(request, EEXIST, "this VM has a checkpoint of that name; choose another, or forget it first");
        return;
    }
    order = order_new(request);
    if (!order) {
        return;
    }
    if (count_checkpoints(request->host, request->hvm) >= CHECKPOINTS_MAX) {
        refuse(request, EDQUOT, "this VM has as many checkpoints as it may; forget one");
        order_free(order);
        return;
    }
    sf_snapshots_save_async(snapshots, name, request->hvm, NULL, request->header->request, on_saved, order);
}

/* ---- CREATE ---- */

static void answer_granted(SfHostVm *hvm, guint32 request, const SfHostTicket *ticket)
{
    struct sf_gp_granted granted = { .ticket = ticket->grant->id, .granted = ticket->grant->granted };
    guint8 payload[SF_GP_GRANTED_LENGTH];

    sf_guest_answer(hvm, SF_GP_CREATE | SF_GP_REPLY, request, payload, sf_gp_granted_pack(payload, &granted));
}

static void on_placed(SfFork *fork, Order *order)
{
    SfHostVm *hvm = sf_host_vm_of(order->host, order->vm);
    SfHostTicket *ticket = sf_host_ticket(order->host, order->ticket, NULL);

    if (hvm && ticket && sf_fork_state(fork) != SF_FORK_FAILED) {
        answer_granted(hvm, order->request, ticket);
    } else if (hvm) {
        sf_guest_answer_error(hvm, order->request, EAGAIN,
                              sf_fork_reason(fork) ? sf_fork_reason(fork) : "the ticket was released");
        if (ticket) {
            sf_host_release_ticket_later(ticket);
        }
    }
    order_free(order);
}

static void on_created(GObject *source, GAsyncResult *result, gpointer data)
{
    Order *order = data;
    SfHostVm *hvm = sf_host_vm_of(order->host, order->vm);
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_snapshots_clone_finish(sf_snapshots_of(order->host), result, &error);

    if (!ticket || !hvm) {
        if (hvm) {
            sf_guest_answer_error(hvm, order->request, error_number(error), error->message);
        } else if (ticket) {
            sf_host_release_ticket_later(ticket); /* nobody is left to join it */
        }
        order_free(order);
        return;
    }
    order->ticket = ticket->grant->id;
    order->fork = g_object_ref(ticket->fork);
    if (sf_fork_is_placed(order->fork)) {
        on_placed(order->fork, order);
    } else {
        order->placed = g_signal_connect(order->fork, "placed", G_CALLBACK(on_placed), order);
    }
}

/* The ticket that this request has got already. */
static SfHostTicket *find_created(const SfGuestRequest *request)
{
    g_autoptr(GList) tickets = sf_host_tickets(request->host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (ticket->saved && ticket->grant->request == request->header->request &&
            sf_host_ticket_is_of(ticket, sf_vm_name(request->hvm->vm))) {
            return ticket;
        }
    }
    return NULL;
}

void sf_guest_create(const SfGuestRequest *request)
{
    SfSnapshots *snapshots = sf_snapshots_of(request->host);
    SfHostTicket *created = find_created(request);
    struct sf_gp_create asked;
    g_autofree char *name = NULL;
    g_autoptr(SfSaved) saved = NULL;
    Order *order;

    if (!sf_gp_create_parse(&asked, request->payload, request->length) || asked.flags != 0 || asked.count < 1 ||
        asked.count > SF_GP_MAX_CLONES) {
        refuse(request, EINVAL, "malformed request for clones of a checkpoint");
        return;
    }
    if (created && created->fork && sf_fork_is_placed(created->fork)) {
        answer_granted(request->hvm, request->header->request, created);
        return;
    }
    name = saved_name(request->hvm, asked.name);
    saved = sf_store_read(sf_snapshots_store(snapshots), name, NULL);
    if (!saved || saved->request == 0) {
        refuse(request, ENOENT, "this VM has no checkpoint of that name");
        return;
    }
    order = order_new(request);
    if (order) {
        sf_snapshots_clone_async(snapshots, name, asked.count, request->hvm->family->user, sf_vm_name(request->hvm->vm),
                                 request->header->request, on_created, order);
    }
}

/* ---- FORGET ---- */

static void on_forgotten(GObject *source, GAsyncResult *result, gpointer data)
{
    Order *order = data;
    SfHostVm *hvm = sf_host_vm_of(order->host, order->vm);
    g_autoptr(GError) error = NULL;
    gboolean removed = sf_snapshot_remove_finish(order->host, result, &error);

    if (hvm && removed) {
        sf_guest_answer(hvm, SF_GP_FORGET | SF_GP_REPLY, order->request, NULL, 0);
    } else if (hvm) {
        sf_guest_answer_error(hvm, order->request, error_number(error), error->message);
    }
    order_free(order);
}

void sf_guest_forget(const SfGuestRequest *request)
{
    SfSnapshots *snapshots = sf_snapshots_of(request->host);
    struct sf_gp_checkpoint asked;
    g_autofree char *name = NULL;
    g_autoptr(SfSaved) saved = NULL;
    Order *order;

    if (!sf_gp_checkpoint_parse(&asked, request->payload, request->length)) {
        refuse(request, EINVAL, "malformed request to forget a checkpoint");
        return;
    }
    name = saved_name(request->hvm, asked.name);
    saved = sf_store_read(sf_snapshots_store(snapshots), name, NULL);
    if (!saved || saved->request == 0) {
        refuse(request, ENOENT, "this VM has no checkpoint of that name");
    } else if ((order = order_new(request))) {
        sf_snapshot_remove_async(request->host, name, on_forgotten, order);
    }
}

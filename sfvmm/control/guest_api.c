/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/guest_api_private.h"
#include "sfvmm/control/networks.h"

#include <errno.h>
#include <string.h>

#include "libsf/wire/message.h"

/* Calls of one VM that wait for something (CLONE, JOIN): more than any agent has programs. */
#define PENDING_MAX 1024u
#define MS_PER_S    1000u

struct SfGuestApi {
    SfHost *host;
    GHashTable *pending; /* PendingKey -> PendingCall */
    GHashTable *tickets; /* set of PendingKey, of the TicketCalls under way */
    gulong message_handler, exited_handler;
};

typedef struct {
    SfVm *vm; /* compared, not used */
    guint32 request;
} PendingKey;

/*
 * A CLONE or JOIN that is answered when its fork is placed or done. The agent may send it again: it is the same call.
 */
typedef struct {
    PendingKey key;
    SfGuestApi *api;
    SfHostVm *hvm;
    guint8 type;
    guint32 first; /* JOIN: id of the first member wanted */
    SfFork *fork;
    gulong placed_handler, done_handler;
} PendingCall;

typedef SfGuestRequest Request;

/* ---- answers ---- */

void sf_guest_answer(SfHostVm *hvm, guint8 type, guint32 request, const void *payload, gsize length)
{
    g_autoptr(GError) error = NULL;

    if (!sf_vm_guest_send(hvm->vm, type, request, payload, length, &error)) {
        g_debug("VM \"%s\": answer to its agent is lost: %s", sf_vm_name(hvm->vm), error->message);
    }
}

static void answer_ok(const Request *request)
{
    sf_guest_answer(request->hvm, request->header->type | SF_GP_REPLY, request->header->request, NULL, 0);
}

void sf_guest_answer_error(SfHostVm *hvm, guint32 request, int code, const char *text)
{
    struct sf_gp_error error = { .error = (guint32)code };
    guint8 payload[sizeof(error)];

    sf_gp_text_set(error.text, sizeof(error.text), "%s", text);
    sf_guest_answer(hvm, SF_GP_ERROR, request, payload, sf_gp_error_pack(payload, &error));
}

static void refuse(const Request *request, int code, const char *text)
{
    sf_guest_answer_error(request->hvm, request->header->request, code, text);
}

int sf_guest_error_number(const GError *error)
{
    if (error->domain == SF_CLUSTER_ERROR) {
        return EAGAIN;
    }
    if (g_error_matches(error, SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS) ||
        g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT)) {
        return EINVAL;
    }
    if (g_error_matches(error, SF_HOST_ERROR, SF_HOST_ERROR_BUSY)) {
        return EALREADY;
    }
    if (g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_NOSPC)) {
        return ENOSPC;
    }
    if (g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_REFUSED)) {
        return EOPNOTSUPP;
    }
    return EIO;
}

static void refuse_error(const Request *request, const GError *error)
{
    refuse(request, sf_guest_error_number(error), error->message);
}

/* The ticket, if the asking VM may use it; otherwise it has been answered. */
static SfHostTicket *own_ticket(const Request *request, guint64 id)
{
    SfHostTicket *ticket = sf_host_ticket(request->api->host, id, NULL);

    if (!ticket || !sf_host_ticket_is_of(ticket, sf_vm_name(request->hvm->vm))) {
        g_autofree char *text =
            g_strdup_printf("ticket %016" G_GINT64_MODIFIER "x is not one of this VM; a clone can't use its "
                            "parent's tickets, and a released one is gone",
                            id);
        refuse(request, ECHILD, text);
        return NULL;
    }
    return ticket;
}

/* ---- CLONE and JOIN: answered later ---- */

static guint pending_hash(gconstpointer key)
{
    const PendingKey *k = key;

    return g_direct_hash(k->vm) ^ k->request;
}

static gboolean pending_equal(gconstpointer a, gconstpointer b)
{
    const PendingKey *left = a, *right = b;

    return left->vm == right->vm && left->request == right->request;
}

static void pending_free(gpointer data)
{
    PendingCall *call = data;

    g_clear_signal_handler(&call->placed_handler, call->fork);
    g_clear_signal_handler(&call->done_handler, call->fork);
    g_object_unref(call->fork);
    g_free(call);
}

static void answer_cloned(SfHostVm *hvm, guint32 request, SfFork *fork)
{
    struct sf_gp_cloned cloned = { .id = 0, .count = sf_fork_placed_count(fork) };
    guint8 payload[sizeof(cloned)];

    if (sf_fork_state(fork) == SF_FORK_FAILED) {
        sf_guest_answer_error(hvm, request, sf_fork_is_refused(fork) ? EOPNOTSUPP : EAGAIN, sf_fork_reason(fork));
        return;
    }
    sf_guest_answer(hvm, SF_GP_CLONE | SF_GP_REPLY, request, payload, sf_gp_cloned_pack(payload, &cloned));
}

static void answer_members(SfHostVm *hvm, guint32 request, SfFork *fork, guint32 first)
{
    guint count = sf_fork_count(fork);
    guint last = MIN(count, first + SF_GP_MEMBERS_PER_REPLY - 1);
    g_autoptr(GByteArray) payload = g_byte_array_new();

    for (guint id = first; id <= last; id++) {
        const SfClone *clone = sf_fork_clone(fork, id);
        struct sf_gp_member member = {
            .id = id,
            .state = clone->state,
            .status = clone->status,
            .count = count,
            .result_length = clone->result_length,
        };
        guint8 entry[sizeof(member)];
        sf_gp_text_set(member.text, sizeof(member.text), "%s", clone->reason ? clone->reason : "");
        g_byte_array_append(payload, entry, (guint)sf_gp_member_pack(entry, &member));
    }
    sf_guest_answer(hvm, SF_GP_JOIN | SF_GP_REPLY, request, payload->data, payload->len);
}

static void pending_finish(PendingCall *call)
{
    if (call->type == SF_GP_CLONE) {
        answer_cloned(call->hvm, call->key.request, call->fork);
    } else {
        answer_members(call->hvm, call->key.request, call->fork, call->first);
    }
    g_hash_table_remove(call->api->pending, &call->key);
}

static gboolean pending_is_due(const PendingCall *call)
{
    return call->type == SF_GP_CLONE ? sf_fork_is_placed(call->fork) : sf_fork_is_done(call->fork);
}

static void on_fork_signal(SfFork *fork, PendingCall *call)
{
    if (pending_is_due(call)) {
        pending_finish(call);
    }
}

static void wait_for_fork(const Request *request, SfFork *fork, guint32 first)
{
    PendingKey key = { request->hvm->vm, request->header->request };
    PendingCall *call;

    if (g_hash_table_contains(request->api->pending, &key)) {
        return; /* sent again after a reconnection; it is answered when it is due */
    }
    if (g_hash_table_size(request->api->pending) >= PENDING_MAX) {
        refuse(request, EAGAIN, "too many calls of this host's guests are waiting");
        return;
    }
    call = g_new0(PendingCall, 1);
    call->key = key;
    call->api = request->api;
    call->hvm = request->hvm;
    call->type = request->header->type;
    call->first = first;
    call->fork = g_object_ref(fork);
    g_hash_table_insert(request->api->pending, &call->key, call);
    if (pending_is_due(call)) {
        pending_finish(call);
        return;
    }
    call->placed_handler = g_signal_connect(fork, "placed", G_CALLBACK(on_fork_signal), call);
    call->done_handler = g_signal_connect(fork, "done", G_CALLBACK(on_fork_signal), call);
}

/* ---- requests ---- */

static void answer_granted(SfHostVm *hvm, guint32 request, const SfHostTicket *ticket)
{
    struct sf_gp_granted granted = { .ticket = ticket->grant->id, .granted = ticket->grant->granted };
    guint8 payload[sizeof(granted)];

    sf_guest_answer(hvm, SF_GP_TICKET | SF_GP_REPLY, request, payload, sf_gp_granted_pack(payload, &granted));
}

/* A TICKET for which other hosts are being asked. Its agent may send it again meanwhile: it is the same one. */
typedef struct {
    PendingKey key;
    SfGuestApi *api;
} TicketCall;

static void on_ticket(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autofree TicketCall *call = data;
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_host_request_ticket_finish(SF_HOST(source), result, &error);
    g_autoptr(SfVm) vm = call->key.vm;
    SfHostVm *hvm = sf_host_vm_of(SF_HOST(source), vm);

    g_hash_table_remove(call->api->tickets, &call->key);
    if (!hvm) {
        return; /* it has ended, and its unused tickets with it */
    }
    if (ticket) {
        answer_granted(hvm, call->key.request, ticket);
    } else {
        sf_guest_answer_error(hvm, call->key.request, sf_guest_error_number(error), error->message);
    }
}

static void handle_ticket(const Request *request)
{
    SfHost *host = request->api->host;
    PendingKey key = { request->hvm->vm, request->header->request };
    struct sf_gp_ticket asked;
    SfHostTicketOrder order;
    SfHostTicket *ticket;
    TicketCall *call;

    if (!sf_gp_ticket_parse(&asked, request->payload, request->length) || asked.queue > SF_GP_MAX_QUEUE) {
        refuse(request, EINVAL, "malformed ticket request");
        return;
    }
    ticket = sf_host_ticket_of_request(host, sf_vm_name(request->hvm->vm), request->header->request);
    if (ticket) {
        answer_granted(request->hvm, request->header->request, ticket);
        return;
    }
    if (g_hash_table_contains(request->api->tickets, &key)) {
        return;
    }
    if (g_hash_table_size(request->api->tickets) >= PENDING_MAX) {
        refuse(request, EAGAIN, "too many calls of this host's guests are waiting");
        return;
    }
    call = g_new0(TicketCall, 1);
    call->key = (PendingKey){ g_object_ref(request->hvm->vm), request->header->request };
    call->api = request->api;
    g_hash_table_add(request->api->tickets, &call->key);
    order = (SfHostTicketOrder){ .count = asked.count,
                                 .request = request->header->request,
                                 .queue_ms = asked.queue * MS_PER_S };
    sf_host_request_ticket_async(host, request->hvm, &order, on_ticket, call);
}

static void handle_clone(const Request *request)
{
    struct sf_gp_clone asked;
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket;
    SfFork *fork;

    if (!sf_gp_clone_parse(&asked, request->payload, request->length)) {
        refuse(request, EINVAL, "malformed clone request");
        return;
    }
    ticket = own_ticket(request, asked.ticket);
    if (!ticket) {
        return;
    }
    fork = ticket->fork;
    if (!fork || sf_fork_clone_request(fork) != request->header->request) {
        fork = sf_host_fork(request->api->host, ticket, request->header->request, &error);
    }
    if (!fork) {
        refuse_error(request, error);
        return;
    }
    wait_for_fork(request, fork, 0);
}

static void handle_join(const Request *request)
{
    struct sf_gp_join asked;
    SfHostTicket *ticket;

    if (!sf_gp_join_parse(&asked, request->payload, request->length)) {
        refuse(request, EINVAL, "malformed join request");
        return;
    }
    ticket = own_ticket(request, asked.ticket);
    if (!ticket) {
        return;
    }
    if (!ticket->fork) {
        refuse(request, EINVAL, "the ticket has not forked, so there is nothing to join");
    } else if (asked.first < 1 || asked.first > sf_fork_count(ticket->fork)) {
        refuse(request, EINVAL, "no clone has that id");
    } else if (asked.flags & SF_GP_JOIN_NOHANG) {
        answer_members(request->hvm, request->header->request, ticket->fork, asked.first);
    } else {
        wait_for_fork(request, ticket->fork, asked.first);
    }
}

static void handle_fetch(const Request *request)
{
    struct sf_gp_fetch asked;
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) data = NULL;
    SfHostTicket *ticket;
    SfClone *clone;

    if (!sf_gp_fetch_parse(&asked, request->payload, request->length)) {
        refuse(request, EINVAL, "malformed fetch request");
        return;
    }
    ticket = own_ticket(request, asked.ticket);
    if (!ticket) {
        return;
    }
    clone = ticket->fork ? sf_fork_clone(ticket->fork, asked.id) : NULL;
    if (!clone) {
        refuse(request, EINVAL, "no clone has that id");
        return;
    }
    data = sf_fork_clone_fetch(clone, asked.offset, asked.length, &error);
    if (!data) {
        refuse_error(request, error);
        return;
    }
    sf_guest_answer(request->hvm, SF_GP_FETCH | SF_GP_REPLY, request->header->request, g_bytes_get_data(data, NULL),
                    g_bytes_get_size(data));
}

static void handle_kill(const Request *request)
{
    struct sf_gp_kill asked;
    SfHostTicket *ticket;

    if (!sf_gp_kill_parse(&asked, request->payload, request->length)) {
        refuse(request, EINVAL, "malformed request");
        return;
    }
    ticket = own_ticket(request, asked.ticket);
    if (!ticket) {
        return;
    }
    if (request->header->type == SF_GP_RELEASE) {
        sf_host_release_ticket(request->api->host, ticket);
    } else if (ticket->fork) {
        sf_fork_kill(ticket->fork, "killed by its parent");
    }
    answer_ok(request);
}

/* The clone that the asking VM is; otherwise it has been answered. */
static SfClone *own_clone(const Request *request)
{
    SfClone *clone = sf_host_clone_of(request->api->host, request->hvm);

    if (!clone) {
        refuse(request, ENOTSUP, "this VM is no clone");
    }
    return clone;
}

static void handle_sync(const Request *request)
{
    struct sf_gp_sync piece;
    const guint8 *data;
    gsize length;
    g_autoptr(GError) error = NULL;
    SfClone *clone;

    if (!sf_gp_sync_parse(&piece, &data, &length, request->payload, request->length)) {
        refuse(request, EINVAL, "malformed piece of a result");
        return;
    }
    clone = own_clone(request);
    if (!clone) {
        return;
    }
    if (!sf_fork_clone_sync(clone, piece.offset, piece.total, data, length, &error)) {
        refuse_error(request, error);
        return;
    }
    answer_ok(request);
}

static void handle_exit(const Request *request)
{
    struct sf_gp_exit asked;
    SfClone *clone;

    if (!sf_gp_exit_parse(&asked, request->payload, request->length)) {
        refuse(request, EINVAL, "malformed exit request");
        return;
    }
    clone = own_clone(request);
    if (clone) {
        sf_fork_clone_exit(clone, asked.status); /* ends the VM: nobody is left to answer */
    }
}

static void handle_identified(const Request *request)
{
    SfClone *clone = sf_host_clone_of(request->api->host, request->hvm);
    struct sf_gp_error refused;

    if (!clone || request->header->request != clone->id) {
        return;
    }
    if (request->header->type != SF_GP_ERROR) {
        sf_fork_clone_identified(clone, NULL);
    } else if (sf_gp_error_parse(&refused, request->payload, request->length)) {
        g_autofree char *text = g_utf8_make_valid(refused.text, -1);
        sf_fork_clone_identified(clone, text);
    } else {
        sf_fork_clone_identified(clone, "its agent sent a malformed error");
    }
}

/* Answers of a clone's agent to what connect.c (fork/) sends it, or of a parent's. */
static void handle_network_told(const Request *request)
{
    SfClone *clone = sf_host_clone_of(request->api->host, request->hvm);

    sf_networks_told(request->hvm, request->header->request);
    if (clone && request->header->request == clone->id) {
        sf_fork_clone_network_told(clone);
    }
}

static void handle_who(const Request *request)
{
    SfClone *clone = sf_host_clone_of(request->api->host, request->hvm);

    if (clone) {
        sf_fork_clone_remind(clone);
    }
}

static void handle_linked(const Request *request)
{
    SfClone *clone = sf_host_clone_of(request->api->host, request->hvm);

    if (clone && request->header->request == clone->id) {
        sf_fork_clone_linked(clone);
    }
}

typedef struct {
    guint8 type;
    void (*handle)(const Request *request);
} Handler;

static const Handler handlers[] = {
    { SF_GP_TICKET, handle_ticket },
    { SF_GP_CLONE, handle_clone },
    { SF_GP_SYNC, handle_sync },
    { SF_GP_EXIT, handle_exit },
    { SF_GP_JOIN, handle_join },
    { SF_GP_FETCH, handle_fetch },
    { SF_GP_KILL, handle_kill },
    { SF_GP_RELEASE, handle_kill },
    { SF_GP_CHECKPOINT, sf_guest_checkpoint },
    { SF_GP_CREATE, sf_guest_create },
    { SF_GP_FORGET, sf_guest_forget },
    { SF_GP_WHO, handle_who },
    { SF_GP_NETWORK | SF_GP_REPLY, handle_network_told },
    { SF_GP_IDENTITY | SF_GP_REPLY, handle_identified },
    { SF_GP_LINK | SF_GP_REPLY, handle_linked },
    { SF_GP_ERROR, handle_identified },
};

static void on_guest_message(SfHost *host, SfHostVm *hvm, const struct sf_gp_header *header, GBytes *payload,
                             SfGuestApi *api)
{
    gsize length;
    const guint8 *data = g_bytes_get_data(payload, &length);
    Request request = { host, api, hvm, header, data, length };
    const SfClone *clone = sf_host_clone_of(host, hvm);

    if (clone && clone->state == SF_GP_STATE_STARTING && !(header->type & SF_GP_REPLY)) {
        return; /* not identified yet: its parent's request, which IDENTITY ends in the clone */
    }
    for (guint i = 0; i < G_N_ELEMENTS(handlers); i++) {
        if (handlers[i].type == header->type) {
            handlers[i].handle(&request);
            return;
        }
    }
    if (!(header->type & SF_GP_REPLY)) {
        refuse(&request, ENOSYS, "this host does not know that request; it is older than the guest's agent");
    }
}

static gboolean call_is_of_vm(gpointer key, gpointer value, gpointer vm)
{
    return ((PendingKey *)key)->vm == vm;
}

static void on_vm_exited(SfHost *host, SfHostVm *hvm, SfGuestApi *api)
{
    g_hash_table_foreach_remove(api->pending, call_is_of_vm, hvm->vm);
}

SfGuestApi *sf_guest_api_new(SfHost *host)
{
    SfGuestApi *api = g_new0(SfGuestApi, 1);

    api->host = g_object_ref(host);
    api->pending = g_hash_table_new_full(pending_hash, pending_equal, NULL, pending_free);
    api->tickets = g_hash_table_new(pending_hash, pending_equal);
    api->message_handler = g_signal_connect(host, "guest-message", G_CALLBACK(on_guest_message), api);
    api->exited_handler = g_signal_connect(host, "vm-exited", G_CALLBACK(on_vm_exited), api);
    return api;
}

void sf_guest_api_free(SfGuestApi *api)
{
    g_clear_signal_handler(&api->message_handler, api->host);
    g_clear_signal_handler(&api->exited_handler, api->host);
    g_hash_table_unref(api->pending);
    g_hash_table_unref(api->tickets);
    g_object_unref(api->host);
    g_free(api);
}

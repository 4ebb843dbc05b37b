/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * What a peer sends is untrusted: each parameter is checked for type and bounds, names for their characters, and a
 * descriptor is decoded strictly and compared with what this host reserved and can run, before a shell is touched.
 * "reserve" and "place" may be sent again, after a lost connection: what was done already is answered, not done twice.
 *
 *     RUNDIR/tickets/HEX/   ticket.json (with origin)  descriptor.dtb  disks.json  fork.json  result-N
 *     RUNDIR/pager/s-HEX/   the sf-pager, which keeps the memory while sfvmmd is restarted
 */
#include "sfvmm/control/lend.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include "sfvmm/control/cluster.h"
#include "sfvmm/control/facts.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/page_uri.h"
#include "sfvmm/control/pager_record.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/descriptor/descriptor.h"
#include "sfvmm/fork/fork_record.h"
#include "sfvmm/fork/remote.h"
#include "sfvmm/vm/disk_server.h"
#include "sfvmm/wire/state_file.h"

#define VM_NAME_MAX      63u /* of a clone of a clone: names grow with each level */
#define TEXT_MAX         1024u
#define REASON_MAX       4096u
#define IDENTIFY_MAX     86400
#define AVOID_TEXT_MAX   64u
#define TICKETS_MAX      65536u /* in one sync */
#define RESULT_PIECE_MAX (512 << 10)
#define RECORD_MS        3000u /* after the order: what the first clone has touched by then is its working set */
#define KEEP_SECONDS     86400 /* a finished ticket waits so long for its origin */
#define US_PER_S         1000000
#define SNAPSHOT_FORMAT  "s-%016" G_GINT64_MODIFIER "x" /* as fork/ names it */
#define DESCRIPTOR_FILE  "descriptor.dtb"
#define DISKS_FILE       "disks.json"
#define PAGER_CUT_OFF    "sf-lend-cut-off"
#define RESERVES         "sf-lend-reserves"
#define TICKET4_SHIFT    48 /* a ticket's first four digits, as in the names of clones */

/* ---- parameters ---- */

static gboolean bad(GError **error, const char *member, const char *what)
{
    g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_BAD_REQUEST, "\"%s\" must be %s", member, what);
    return FALSE;
}

static gboolean text_param(JsonObject *params, const char *member, gsize max, const char **value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : NULL;
    return (*value && strlen(*value) <= max) || bad(error, member, "a text, not too long");
}

static gboolean int_param(JsonObject *params, const char *member, gint64 min, gint64 max, gint64 *value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && json_node_get_value_type(node) == G_TYPE_INT64 ? json_node_get_int(node) : min - 1;
    return (*value >= min && *value <= max) || bad(error, member, "an integer within its bounds");
}

static gboolean bool_param(JsonObject *params, const char *member, gboolean *value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && json_node_get_value_type(node) == G_TYPE_BOOLEAN && json_node_get_boolean(node);
    return (node && json_node_get_value_type(node) == G_TYPE_BOOLEAN) || bad(error, member, "true or false");
}

static gboolean object_param(JsonObject *params, const char *member, JsonObject **value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    return *value || bad(error, member, "an object");
}

static gboolean array_param(JsonObject *params, const char *member, guint max, JsonArray **value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
    return (*value && json_array_get_length(*value) <= max) || bad(error, member, "an array, not too long");
}

static gboolean texts_param(JsonObject *params, const char *member, guint max, JsonArray **value, GError **error)
{
    if (!array_param(params, member, max, value, error)) {
        return FALSE;
    }
    for (guint i = 0; i < json_array_get_length(*value); i++) {
        if (json_node_get_value_type(json_array_get_element(*value, i)) != G_TYPE_STRING) {
            return bad(error, member, "an array of texts");
        }
    }
    return TRUE;
}

static gboolean id_param(JsonObject *params, guint64 *id, GError **error)
{
    const char *text;

    return text_param(params, "ticket", TEXT_MAX, &text, error) &&
           (sf_ticket_id_from_text(text, id) || bad(error, "ticket", "16 hexadecimal digits"));
}

/* The ticket that the peer speaks of, lent to it; NULL + error. */
static SfHostTicket *lent_ticket(SfHost *host, const char *origin, JsonObject *params, GError **error)
{
    SfHostTicket *ticket = NULL;
    guint64 id;

    if (!id_param(params, &id, error)) {
        return NULL;
    }
    ticket = sf_host_ticket(host, id, NULL);
    if (!ticket || g_strcmp0(ticket->grant->origin, origin) != 0) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "ticket %016" G_GINT64_MODIFIER "x is not known here",
                    id);
        return NULL;
    }
    return ticket;
}

/* ---- what this host can run ---- */

static JsonObject *own_facts(SfHost *host)
{
    return sf_cluster_facts(sf_cluster_of(host));
}

static gboolean refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
static gboolean refuse(GError **error, const char *format, ...)
{
    va_list args;
    g_autofree char *text = NULL;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, SF_PEER_ERROR, SF_PEER_ERROR_REFUSED, text);
    return FALSE;
}

/* NULL + error while it is not known. */
static const char *own_qemu_version(SfHost *host, GError **error)
{
    const char *version = sf_facts_text(own_facts(host), "qemu_version");

    if (!version) {
        refuse(error, "this host does not know its own QEMU yet");
    }
    return version;
}

/* Each of the features that guests see there must be here. */
static gboolean has_cpu_flags(SfHost *host, JsonArray *wanted, GError **error)
{
    g_autoptr(JsonArray) own = sf_facts_list(own_facts(host), "cpu_flags");
    g_autoptr(GHashTable) flags = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; i < json_array_get_length(own); i++) {
        g_hash_table_add(flags, (gpointer)json_array_get_string_element(own, i));
    }
    for (guint i = 0; i < json_array_get_length(wanted); i++) {
        const char *flag = json_node_get_string(json_array_get_element(wanted, i));
        if (!flag || !g_hash_table_contains(flags, flag)) {
            return refuse(error, "the CPU here lacks \"%.64s\", which the other host's has", flag ? flag : "");
        }
    }
    return TRUE;
}

typedef struct {
    const char *vm, *qemu_version, *machine, *config_hash, *security;
    const char *snapshot; /* whose name the origin's exports have; NULL: the ticket's */
    const char *uri;      /* where the memory is as well, and is fetched first; NULL: at the origin alone */
    JsonArray *cpu_flags; /* of texts; empty: the CPU does not matter */
    gint64 count, port, disks_port;
    JsonObject *multicast; /* of multicast_group.h; NULL: no invitation */
    JsonObject *object;    /* all of them, the request's */
    SfVmConfig *config; /* owned */
} ReserveParams;

static gboolean can_run(SfHost *host, const ReserveParams *params, GError **error)
{
    const char *version = own_qemu_version(host, error);
    g_autofree char *hash = NULL;

    if (!version) {
        return FALSE;
    }
    if (strcmp(version, params->qemu_version) != 0) {
        return refuse(error, "QEMU here has version %s, not %s", version, params->qemu_version);
    }
    if (!sf_facts_has(own_facts(host), "machine_types", params->machine)) {
        return refuse(error, "QEMU here has no machine type %.64s", params->machine);
    }
    if (strcmp(params->config->accel, "kvm") == 0 && access("/dev/kvm", R_OK | W_OK) < 0) {
        return refuse(error, "/dev/kvm can't be used here: %s", g_strerror(errno));
    }
    hash = sf_vm_config_hash(params->config, version);
    if (strcmp(hash, params->config_hash) != 0) {
        return refuse(error, "the configuration is not what its hash says");
    }
    return strcmp(params->config->accel, "kvm") != 0 || has_cpu_flags(host, params->cpu_flags, error);
}

/* A shell of the family says what the snapshot must fit. */
static void note_shell(SfVm *shell, gpointer data)
{
    *(SfVm **)data = shell;
}

static gboolean fits_shell(SfFamily *family, const SfDescriptor *descriptor, GError **error)
{
    SfVm *shell = NULL;

    sf_shell_pool_foreach(family->pool, note_shell, &shell);
    if (!shell) {
        return TRUE; /* none is ready: same version, same configuration, so it will */
    }
    if (strcmp(sf_vm_machine(shell), descriptor->machine) != 0) {
        return refuse(error, "the machine type here is %s, not %s", sf_vm_machine(shell), descriptor->machine);
    }
    if (strcmp(sf_vm_cpu(shell), descriptor->cpu) != 0) {
        return refuse(error, "the CPU model here is %s, not %s", sf_vm_cpu(shell), descriptor->cpu);
    }
    return TRUE;
}

/* ---- reserve ---- */

static gboolean name_is_valid(const char *name)
{
    return *name && strlen(name) <= VM_NAME_MAX && g_ascii_isalnum(name[0]) &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") == strlen(name);
}

/* Paths would be read here: the portable form, which the origin sends, has none that mean anything. */
static gboolean config_has_paths(const SfVmConfig *config)
{
    gboolean paths = (config->kernel && strcmp(config->kernel, "/kernel") != 0) || config->initrd || config->append;

    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        paths = paths || strcmp(disk->path, "/disk") != 0 || disk->size == 0 || disk->size > SF_DISK_SIZE_MAX;
    }
    return paths;
}

/* What "pages" has for a saved snapshot. */
static gboolean parse_page_source(JsonObject *pages, ReserveParams *params, GError **error)
{
    if (json_object_has_member(pages, "snapshot") &&
        (!text_param(pages, "snapshot", TEXT_MAX, &params->snapshot, error) ||
         (!sf_page_uri_snapshot_is_valid(params->snapshot) && !bad(error, "snapshot", "a snapshot's name")))) {
        return FALSE;
    }
    return !json_object_has_member(pages, "uri") || text_param(pages, "uri", SF_PAGE_URI_MAX, &params->uri, error);
}

static gboolean parse_reserve(JsonObject *object, ReserveParams *params, GError **error)
{
    JsonObject *config, *pages;

    params->object = object;

    if (!text_param(object, "vm", VM_NAME_MAX, &params->vm, error) ||
        !text_param(object, "qemu_version", TEXT_MAX, &params->qemu_version, error) ||
        !text_param(object, "config_hash", TEXT_MAX, &params->config_hash, error) ||
        !text_param(object, "machine", TEXT_MAX, &params->machine, error) ||
        !texts_param(object, "cpu_flags", SF_FACTS_LIST_MAX, &params->cpu_flags, error) ||
        !int_param(object, "count", 1, SF_GP_MAX_CLONES, &params->count, error) ||
        !object_param(object, "config", &config, error) || !object_param(object, "pages", &pages, error) ||
        !int_param(pages, "port", 1, G_MAXUINT16, &params->port, error) ||
        !int_param(object, "disks_port", 0, G_MAXUINT16, &params->disks_port, error) ||
        !text_param(pages, "security", TEXT_MAX, &params->security, error) ||
        !parse_page_source(pages, params, error)) {
        return FALSE;
    }
    if (json_object_has_member(pages, "multicast") && !object_param(pages, "multicast", &params->multicast, error)) {
        return FALSE;
    }
    if (!name_is_valid(params->vm)) {
        return bad(error, "vm", "a VM's name");
    }
    params->config = sf_vm_config_from_peer(config, error);
    if (!params->config) {
        (*error)->domain = SF_PEER_ERROR;
        (*error)->code = SF_PEER_ERROR_BAD_REQUEST;
        return FALSE;
    }
    return !config_has_paths(params->config) || bad(error, "config", "without paths");
}

static void tell_origin(SfHostTicket *ticket, const char *event, JsonObject *data);

static void on_pager_complete(SfPager *pager, SfHost *host)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (ticket->pager == pager && ticket->grant->origin) {
            tell_origin(ticket, "complete", json_object_new());
        }
    }
}

static void on_pager_sources(SfPager *pager, guint up, SfHost *host)
{
    g_object_set_data(G_OBJECT(pager), PAGER_CUT_OFF, GINT_TO_POINTER(up == 0));
}

static void watch_pager(SfPager *pager, SfHost *host)
{
    g_signal_connect(pager, "complete", G_CALLBACK(on_pager_complete), host);
    g_signal_connect(pager, "sources", G_CALLBACK(on_pager_sources), host);
}

/* Its memory's own place first: the origin may end. */
static gboolean add_sources(SfPager *pager, const SfDaemonConfig *config, const char *own_uri, const char *origin_uri,
                            GError **error)
{
    SfPageSource source = { .security = config->cluster.pages, .keys = config->cluster.pages_directory };

    source.uri = own_uri;
    if (own_uri && !sf_pager_add_source(pager, &source, error)) {
        return FALSE;
    }
    source.uri = origin_uri;
    return sf_pager_add_source(pager, &source, error);
}

/* Into the origin's multicast group; if that can't be, the pager knows why. */
static void join_group(SfHost *host, SfPeer *peer, guint64 id, SfPager *pager, JsonObject *invitation)
{
    g_autoptr(GError) error = NULL;
    const char *reason = NULL;

    if (sf_host_config(host)->cluster.multicast.mode == SF_MULTICAST_OFF) {
        reason = "multicast=off at this host";
    } else if (!invitation) {
        reason = "its origin has not invited this host";
    } else if (!sf_multicast_join(pager, invitation, sf_peer_local_ip(peer), sf_peer_remote_ip(peer), &error)) {
        reason = error->message;
        g_message("ticket %016" G_GINT64_MODIFIER "x: pages come by unicast: %s", id, reason);
    }
    g_object_set_data_full(G_OBJECT(pager), SF_NO_MULTICAST, g_strdup(reason), g_free);
}

/* The sf-pager connects at once: the fork shall not wait for it. */
static SfPager *start_pager(SfHost *host, SfPeer *peer, guint64 id, const ReserveParams *params, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(host);
    g_autofree char *snapshot = g_strdup_printf(SNAPSHOT_FORMAT, id);
    g_autofree char *uri = sf_page_uri_of_host(sf_peer_remote_ip(peer), (guint)params->port, config->cluster.pages,
                                               params->snapshot ? params->snapshot : snapshot);
    SfPagerOptions options = sf_daemon_config_pager(config, snapshot);
    SfPager *pager = sf_pager_start(&options, error);

    if (pager) {
        join_group(host, peer, id, pager, params->multicast);
    }
    if (pager && !add_sources(pager, config, params->uri, uri, error)) {
        sf_pager_stop(pager);
        g_clear_object(&pager);
    }
    if (pager) {
        watch_pager(pager, host);
    }
    return pager;
}

static gboolean has_readonly_disk(const SfVmConfig *config)
{
    gboolean has = FALSE;

    for (guint i = 0; i < config->disks->len; i++) {
        has = has || ((const SfDiskConfig *)g_ptr_array_index(config->disks, i))->readonly;
    }
    return has;
}

/*
 * "ORIGIN:VM": no VM of ours has a name with a colon. Read-only disks are opened by shells, and read through what this
 * ticket makes be served: then the family is the ticket's alone.
 */
static SfFamily *take_family(SfHost *host, const char *origin, guint64 id, const ReserveParams *params, GError **error)
{
    g_autofree char *name = has_readonly_disk(params->config)
                                ? g_strdup_printf("%s:%s:%04x", origin, params->vm, (guint)(id >> TICKET4_SHIFT))
                                : g_strdup_printf("%s:%s", origin, params->vm);
    SfFamily *family = sf_host_family(host, name);
    g_autofree char *hash = family ? sf_vm_config_hash(family->config, params->qemu_version) : NULL;

    if (family && strcmp(hash, params->config_hash) != 0) {
        refuse(error, "clones of an earlier VM \"%s\" are still here", params->vm);
        return NULL;
    }
    return family ? family : sf_host_family_new(host, name, 0, params->config, 0);
}

static void warm_pool(SfHost *host, SfHostTicket *ticket)
{
    guint target = MIN(ticket->grant->granted, sf_host_config(host)->pool_max);

    if (target > sf_shell_pool_target(ticket->family->pool)) {
        sf_host_set_pool(host, ticket->family, target);
    }
}

/* ---- a lent ticket's own ---- */

/* A "place" that has been checked. */
typedef struct {
    SfSnapshot *snapshot;
    SfForkOptions options; /* ticket and so on; texts and objects are the ticket's */
    guint total;
    GArray *ids; /* of guint */
    gboolean has_working_set;
} Place;

struct SfLend {
    SfHostTicket *ticket;
    guint record_timer; /* GSource id, 0: none */
    gboolean answer_recorded;
    SfDiskServer *disks; /* through which clones here read their disks; NULL: they have none */
};

/* What a call to the pager needs when it is answered. */
typedef struct {
    SfHost *host;
    guint64 ticket;
} Call;

static Call *call_new(SfHostTicket *ticket)
{
    Call *call = g_new0(Call, 1);

    call->host = g_object_ref(ticket->host);
    call->ticket = ticket->grant->id;
    return call;
}

static void call_free(Call *call)
{
    g_object_unref(call->host);
    g_free(call);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Call, call_free)

static SfLend *call_lend(const Call *call)
{
    SfHostTicket *ticket = sf_host_ticket(call->host, call->ticket, NULL);

    return ticket ? ticket->lend : NULL;
}

void sf_lend_free(SfLend *lend)
{
    if (!lend) {
        return;
    }
    g_clear_handle_id(&lend->record_timer, g_source_remove);
    g_clear_pointer(&lend->disks, sf_disk_server_unref);
    g_free(lend);
}

static SfLend *lend_new(SfHostTicket *ticket)
{
    SfLend *lend = g_new0(SfLend, 1);

    lend->ticket = ticket;
    ticket->lend = lend;
    return lend;
}

static void reply_granted(SfPeerRequest *request, guint granted)
{
    JsonObject *result = json_object_new();

    json_object_set_int_member(result, "granted", granted);
    sf_peer_request_reply(request, result);
}

/* More places for a ticket that has some: what `count` says is the new sum. */
static gboolean extend(SfHost *host, SfHostTicket *ticket, guint count, GError **error)
{
    g_autoptr(SfTicket) more = NULL;
    guint held = ticket->grant->granted;

    if (count <= held || !ticket->booked) {
        return TRUE;
    }
    more = sf_resource_manager_lend(sf_host_manager(host), ticket->grant->origin, ticket->grant->id, ticket->grant->vm,
                                    ticket->family->config->memory, count - held, FALSE, error);
    if (!more) {
        return held > 0;
    }
    ticket->grant->granted += more->granted; /* booked with this one: released with it */
    sf_ticket_add_place(ticket->grant, "", (gint)more->granted);
    sf_host_ticket_save(ticket);
    warm_pool(host, ticket);
    return TRUE;
}

static SfHostTicket *lend(SfHost *host, SfPeer *peer, guint64 id, const ReserveParams *params, GError **error)
{
    const char *origin = sf_peer_name(peer);
    SfHostTicket *ticket = NULL;
    SfFamily *family = take_family(host, origin, id, params, error);
    SfTicket *grant = NULL;

    if (!family) {
        return NULL;
    }
    sf_host_family_join(family); /* so that it goes again, when it is new and anything below fails */
    grant = sf_networks_accept(host, family, peer, params->object, error)
                ? sf_resource_manager_lend(sf_host_manager(host), origin, id, params->vm, params->config->memory,
                                           (guint)params->count, FALSE, error)
                : NULL;
    if (grant) {
        ticket = sf_host_add_ticket(host, grant, family);
        lend_new(ticket);
        ticket->pager = g_mkdir(ticket->directory, 0700) == 0 ? start_pager(host, peer, id, params, error) : NULL;
        if (!ticket->pager) {
            if (error && !*error) {
                g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "\"%s\": %s", ticket->directory,
                            g_strerror(errno));
            }
            sf_host_release_ticket(host, ticket);
            ticket = NULL;
        } else {
            sf_pager_record_save(host, ticket->pager);
        }
    }
    sf_host_family_leave(host, family);
    return ticket;
}

/* A "reserve" for which libvirt is being looked at, or the disks are being made ready. */
typedef struct {
    SfHost *host;
    SfPeerRequest *request;
    guint64 id;
    ReserveParams params; /* texts are the request's */
    uid_t uid;            /* whose QEMUs will read the disks; 0: the launcher's */
    gid_t gid;
    gboolean released; /* the origin has given it up meanwhile */
} Reserve;

static GHashTable *reserves(SfHost *host)
{
    return sf_host_table(host, RESERVES, g_int64_hash, g_int64_equal, NULL, NULL);
}

static void reserve_end(SfHost *host, SfPeerRequest *request, SfHostTicket *ticket, const ReserveParams *params,
                        const GError *error)
{
    if (ticket) {
        sf_host_ticket_save(ticket);
        warm_pool(host, ticket);
        g_message("ticket %016" G_GINT64_MODIFIER "x: %u places for VM \"%s\" of host %s", ticket->grant->id,
                  ticket->grant->granted, params->vm, ticket->grant->origin);
        reply_granted(request, ticket->grant->granted);
    } else {
        sf_peer_request_fail(request, error);
    }
}

static Reserve *reserve_begin(SfHost *host, SfPeerRequest *request, guint64 id, const ReserveParams *params)
{
    Reserve *reserve = g_new0(Reserve, 1);

    reserve->host = g_object_ref(host);
    reserve->request = request;
    reserve->id = id;
    reserve->params = *params;
    sf_vm_config_ref(params->config);
    g_hash_table_insert(reserves(host), &reserve->id, reserve);
    return reserve;
}

/* All is there, or error says what is not. Takes the server, which may be NULL. */
static void reserve_finish(Reserve *reserve, SfDiskServer *server, GError *failure)
{
    SfPeer *peer = sf_peer_request_peer(reserve->request);
    g_autoptr(SfDiskServer) disks = server;
    g_autoptr(GError) error = failure;
    SfHostTicket *ticket = NULL;

    g_hash_table_remove(reserves(reserve->host), &reserve->id);
    if (!error && (!peer || reserve->released)) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "it was released meanwhile");
    } else if (!error) {
        ticket = lend(reserve->host, peer, reserve->id, &reserve->params, &error);
    }
    if (ticket) {
        ticket->lend->disks = g_steal_pointer(&disks);
    }
    reserve_end(reserve->host, reserve->request, ticket, &reserve->params, error);
    sf_vm_config_unref(reserve->params.config);
    g_object_unref(reserve->host);
    g_free(reserve);
}

/* The read-only disks are what the server serves here. */
static SfVmConfig *config_with_disks(SfVmConfig *config, SfDiskServer *server, GError **error)
{
    g_autoptr(JsonObject) object = sf_vm_config_to_json(config);
    JsonArray *disks = json_object_get_array_member(object, "disks");

    if (!has_readonly_disk(config)) {
        return sf_vm_config_ref(config);
    }
    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        g_autofree char *uri = sf_disk_server_uri(server, disk->id);
        if (disk->readonly) {
            json_object_set_string_member(json_array_get_object_element(disks, i), "path", uri);
            json_object_set_string_member(json_array_get_object_element(disks, i), "format", SF_DISK_FORMAT_NBD);
        }
    }
    return sf_vm_config_from_json(object, error);
}

static void on_disk_server(GObject *source, GAsyncResult *result, gpointer data)
{
    Reserve *reserve = data;
    GError *error = NULL;
    SfDiskServer *server = sf_disk_server_start_finish(result, &error);
    SfVmConfig *config = server ? config_with_disks(reserve->params.config, server, &error) : NULL;

    if (config) {
        sf_vm_config_unref(reserve->params.config);
        reserve->params.config = config;
    } else {
        g_prefix_error(&error, "the disks can't be read here: ");
    }
    reserve_finish(reserve, server, error);
}

/* host:port/SNAPSHOT/DISK of the origin's disk server, which has announced those that are to be frozen. */
static GArray *disk_exports(SfHost *host, guint64 id, const SfVmConfig *config, const char *ip, gint64 port,
                            GPtrArray *uris)
{
    GArray *exports = g_array_new(FALSE, FALSE, sizeof(SfDiskExport));

    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        SfDiskExport export = { .name = disk->id, .size = disk->size };
        g_ptr_array_add(uris, g_strdup_printf("%s://%s:%" G_GINT64_FORMAT "/" SNAPSHOT_FORMAT "/%s",
                                              sf_page_uri_scheme(sf_host_config(host)->cluster.pages), ip, port, id,
                                              disk->id));
        export.uri = g_ptr_array_index(uris, uris->len - 1);
        g_array_append_val(exports, export);
    }
    return exports;
}

/* All clones here read their disks through one process of this host; it is there before their shells. */
static void serve_disks(Reserve *reserve, SfPeer *peer)
{
    const SfDaemonConfig *config = sf_host_config(reserve->host);
    const ReserveParams *params = &reserve->params;
    g_autofree char *snapshot = g_strdup_printf(SNAPSHOT_FORMAT, reserve->id);
    g_autofree char *ip = sf_page_uri_ip(sf_peer_remote_ip(peer));
    g_autoptr(GPtrArray) uris = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) exports = disk_exports(reserve->host, reserve->id, params->config, ip, params->disks_port, uris);
    SfDiskServerOptions options = {
        .id = snapshot,
        .tls_directory = config->cluster.pages == SF_PAGER_X509 ? config->cluster.pages_directory : NULL,
        .listen_fd = -1,
        .client_uid = reserve->uid,
        .client_gid = reserve->gid,
    };

    sf_disk_server_start_async(sf_host_launcher(reserve->host), &options, (const SfDiskExport *)exports->data,
                               exports->len, on_disk_server, reserve);
}

/* Clones of a domain are domains of this host's libvirtd: it answers, and says whose they are. */
static void on_libvirt(GObject *source, GAsyncResult *result, gpointer data)
{
    Reserve *reserve = data;
    SfVmConfig *config = reserve->params.config;
    SfPeer *peer = sf_peer_request_peer(reserve->request);
    GError *error = NULL;
    char *uri;

    if (!sf_launcher_look_at_libvirt_finish(result, &uri, &reserve->uid, &reserve->gid, &error)) {
        g_prefix_error(&error, "it is a domain, and there is no libvirt here: ");
        reserve_finish(reserve, NULL, error);
        return;
    }
    g_free(config->uri);
    config->uri = uri;
    if (config->disks->len > 0 && peer) {
        serve_disks(reserve, peer);
    } else {
        reserve_finish(reserve, NULL, NULL);
    }
}

/* Everything that is checked before anything is begun. */
static gboolean check_reserve(SfHost *host, SfPeerRequest *request, guint64 *id, ReserveParams *params, GError **error)
{
    JsonObject *object = sf_peer_request_params(request);
    const char *security = sf_host_config(host)->cluster.pages == SF_PAGER_X509 ? "tls" : "plain";
    SfHostTicket *ticket;

    if (!id_param(object, id, error) || !parse_reserve(object, params, error)) {
        return FALSE;
    }
    if (!sf_peer_request_peer(request)) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_LOST, "the connection has ended");
        return FALSE;
    }
    if (strcmp(params->security, security) != 0) {
        return refuse(error, "pages are fetched with %s here, not with %s (pages= in sfvmmd.conf)", security,
                      params->security);
    }
    if (params->uri && !sf_page_uri_is_portable(params->uri, sf_host_config(host)->cluster.pages,
                                                sf_peer_remote_ip(sf_peer_request_peer(request)))) {
        return bad(error, "uri", "one of NBD over TCP, encrypted as pages are here, without a query");
    }
    ticket = sf_host_ticket(host, *id, NULL);
    if (ticket && g_strcmp0(ticket->grant->origin, sf_peer_request_from(request)) != 0) {
        return bad(error, "ticket", "of one's own");
    }
    if (g_hash_table_contains(reserves(host), id)) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "it is being reserved already");
        return FALSE;
    }
    return TRUE;
}

static void handle_reserve(SfHost *host, SfPeerRequest *request)
{
    ReserveParams params = { 0 };
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket;
    guint64 id;

    if (!check_reserve(host, request, &id, &params, &error)) {
        sf_peer_request_fail(request, error);
    } else if ((ticket = sf_host_ticket(host, id, NULL))) {
        if (extend(host, ticket, (guint)params.count, &error)) {
            reply_granted(request, MIN(ticket->grant->granted, (guint)params.count));
        } else {
            sf_peer_request_fail(request, error);
        }
    } else if (!can_run(host, &params, &error)) {
        sf_peer_request_fail(request, error);
    } else if (params.config->domain_xml) {
        sf_launcher_look_at_libvirt_async(sf_host_launcher(host), on_libvirt,
                                          reserve_begin(host, request, id, &params));
    } else if (params.config->disks->len > 0) {
        serve_disks(reserve_begin(host, request, id, &params), sf_peer_request_peer(request));
    } else {
        ticket = lend(host, sf_peer_request_peer(request), id, &params, &error);
        reserve_end(host, request, ticket, &params, error);
    }
    sf_vm_config_unref(params.config);
}

/* ---- place ---- */

static gboolean parse_ids(JsonArray *array, guint total, GArray *ids, GError **error)
{
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *node = json_array_get_element(array, i);
        gint64 value = json_node_get_value_type(node) == G_TYPE_INT64 ? json_node_get_int(node) : 0;
        guint id = (guint)CLAMP(value, 0, SF_GP_MAX_CLONES);
        if (id < 1 || id > total || (ids->len > 0 && id <= g_array_index(ids, guint, ids->len - 1))) {
            return bad(error, "ids", "ascending numbers of clones");
        }
        g_array_append_val(ids, id);
    }
    return ids->len > 0 || bad(error, "ids", "at least one");
}

static SfDescriptor *decode(const char *text, GError **error)
{
    gsize length = 0;
    guchar *data = g_base64_decode(text, &length);
    g_autoptr(GBytes) bytes = g_bytes_new_take(data, length);
    SfDescriptor *descriptor = sf_descriptor_decode(bytes, error);

    if (!descriptor) {
        (*error)->domain = SF_PEER_ERROR;
        (*error)->code = SF_PEER_ERROR_REFUSED;
    }
    return descriptor;
}

/* Is it the snapshot of the VM that places were reserved for, and can it run here? */
static gboolean check_descriptor(SfHostTicket *ticket, const SfDescriptor *descriptor, GError **error)
{
    const SfVmConfig *config = ticket->family->config;
    const char *version = own_qemu_version(ticket->host, error);
    g_autofree char *id = g_strdup_printf(SNAPSHOT_FORMAT, ticket->grant->id);
    g_autofree char *hash = NULL;
    guint64 memory = 0;

    if (!version) {
        return FALSE;
    }
    hash = sf_vm_config_hash(config, version);
    if (strcmp(descriptor->qemu_version, version) != 0) {
        return refuse(error, "QEMU here has version %s, not %s", version, descriptor->qemu_version);
    }
    if (strcmp(descriptor->id, id) != 0 || strcmp(descriptor->config_hash, hash) != 0 ||
        strcmp(descriptor->accel, config->accel) != 0 || descriptor->memory != config->memory ||
        descriptor->vcpus != config->vcpus) {
        return refuse(error, "the descriptor is of another machine than places were reserved for");
    }
    for (guint i = 0; i < descriptor->blocks->len; i++) {
        memory += ((const SfDescriptorBlock *)g_ptr_array_index(descriptor->blocks, i))->length;
    }
    if (memory > config->memory) {
        return refuse(error, "the descriptor has more memory than the machine");
    }
    return fits_shell(ticket->family, descriptor, error);
}

/* The memory of the snapshot as it is here: nothing of it has arrived. */
static SfSnapshot *cached_snapshot(const SfDescriptor *descriptor, SfPageCache *cache_or_null, guint avoid,
                                   GError **error)
{
    SfCachedBlockSpec specs[SF_QC_MAX_BLOCKS];
    g_autoptr(SfPageCache) cache = cache_or_null ? sf_page_cache_ref(cache_or_null) : NULL;
    g_autoptr(SfRamBase) base = sf_ram_base_new();
    guint n = descriptor->blocks->len;

    if (n == 0 || n > SF_QC_MAX_BLOCKS) {
        refuse(error, "the descriptor has %u memory blocks; 1 to %u are possible", n, SF_QC_MAX_BLOCKS);
        return NULL;
    }
    for (guint i = 0; i < n; i++) {
        const SfDescriptorBlock *block = g_ptr_array_index(descriptor->blocks, i);
        specs[i] = (SfCachedBlockSpec){ block->id, block->length, block->present };
    }
    if (!cache) {
        cache = sf_page_cache_new(specs, n, avoid, error);
    } else {
        cache->avoid = avoid;
    }
    return cache ? sf_snapshot_new_cached(descriptor->id, base, cache, descriptor->device_state,
                                          g_bytes_get_size(descriptor->device_state), error)
                 : NULL;
}

static gboolean save_descriptor(SfHostTicket *ticket, const char *text, GError **error)
{
    g_autofree char *path = g_build_filename(ticket->directory, DESCRIPTOR_FILE, NULL);
    gsize length = 0;
    g_autofree guchar *data = g_base64_decode(text, &length);

    return g_file_set_contents_full(path, (const char *)data, (gssize)length, G_FILE_SET_CONTENTS_CONSISTENT, 0600,
                                    error);
}

static gboolean save_disks(SfHostTicket *ticket, GPtrArray *chains, GError **error)
{
    g_autofree char *path = g_build_filename(ticket->directory, DISKS_FILE, NULL);
    g_autoptr(JsonObject) object = json_object_new();
    JsonArray *array = json_array_new();

    for (guint i = 0; i < chains->len; i++) {
        json_array_add_object_element(array, sf_disk_chain_to_json(g_ptr_array_index(chains, i)));
    }
    json_object_set_array_member(object, "disks", array);
    return sf_state_write(path, object, error);
}

/*
 * A clone that has forked is not told to have ended while clones of it live, or clones of those: what they lack of
 * memory and disks still comes from the origin, which stops giving it when the last of its own has ended.
 */
static gboolean end_is_held(SfHostTicket *ticket, const SfClone *clone)
{
    g_autoptr(GList) tickets = sf_clone_is_alive(clone) || !ticket->pager ? NULL : sf_host_tickets(ticket->host);

    for (GList *item = tickets; item; item = item->next) {
        const SfHostTicket *other = item->data;
        if (other != ticket && other->pager == ticket->pager && other->fork && sf_fork_alive(other->fork) > 0 &&
            g_str_has_prefix(other->grant->vm, clone->name)) {
            return TRUE;
        }
    }
    return FALSE;
}

static JsonObject *report_of(SfHostTicket *ticket, const SfClone *clone)
{
    JsonObject *report = sf_clone_report(clone);

    if (end_is_held(ticket, clone)) {
        json_object_set_string_member(report, "state", sf_clone_state_name(SF_GP_STATE_RUNNING));
        json_object_set_int_member(report, "exited", 0);
    }
    return report;
}

static JsonArray *reports_of(SfHostTicket *ticket)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; ticket->fork && i < sf_fork_count(ticket->fork); i++) {
        json_array_add_object_element(array, report_of(ticket, sf_fork_nth(ticket->fork, i)));
    }
    return array;
}

static void reply_reports(SfPeerRequest *request, SfHostTicket *ticket)
{
    JsonObject *result = json_object_new();

    json_object_set_array_member(result, "clones", reports_of(ticket));
    sf_peer_request_reply(request, result);
}

/* ---- working sets ---- */

static void on_recorded(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Call) call = data;
    g_autoptr(GArray) runs = sf_pager_working_set_finish(SF_PAGER(source), result, NULL);
    SfLend *lend = call_lend(call);
    JsonObject *object;

    if (lend && runs && runs->len > 0) {
        g_autoptr(GBytes) packed = sf_working_set_pack(runs);
        object = json_object_new();
        sf_working_set_to_json(packed, object, "runs");
        tell_origin(lend->ticket, "working-set", object);
    }
}

static void record(SfLend *lend)
{
    if (lend->ticket->pager) {
        sf_pager_working_set_async(lend->ticket->pager, on_recorded, call_new(lend->ticket));
    }
}

static gboolean on_record_timer(gpointer data)
{
    SfLend *lend = data;

    lend->record_timer = 0;
    record(lend);
    return G_SOURCE_REMOVE;
}

/* Its sf_clone() returns: what it took to get there is known, even if the fork is over before the timer. */
static void record_answer(SfLend *lend, const SfClone *clone)
{
    if (lend->record_timer && clone->answered && !lend->answer_recorded) {
        lend->answer_recorded = TRUE;
        record(lend);
    }
}

void sf_lend_done(SfHostTicket *ticket)
{
    if (ticket->lend && ticket->lend->record_timer) {
        g_clear_handle_id(&ticket->lend->record_timer, g_source_remove);
        record(ticket->lend);
    }
}

/* The disks as the server of this host has them, to put overlays over. */
static GPtrArray *served_disks(const SfLend *lend)
{
    GPtrArray *chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);

    for (guint i = 0; i < lend->ticket->family->config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(lend->ticket->family->config->disks, i);
        SfDiskChain *chain = sf_disk_chain_new(disk->id, disk->size, disk->readonly);
        g_ptr_array_add(chain->layers, sf_disk_server_layer(lend->disks, disk->id));
        g_ptr_array_add(chains, chain);
    }
    return chains;
}

/* Everything is there: the clones get their shells. */
static void place_begin(SfLend *lend, const Place *place, SfPeerRequest *request)
{
    SfHostTicket *ticket = lend->ticket;
    g_autoptr(GPtrArray) disks = served_disks(lend);
    SfForkOptions options = sf_host_fork_options(ticket->host, ticket);
    SfForkPlaced placed = {
        .parent_name = ticket->grant->vm,
        .total = place->total,
        .ids = (const guint *)place->ids->data,
        .snapshot = place->snapshot,
        .frozen_disks = disks,
    };
    g_autoptr(GError) error = NULL;

    if (!save_disks(ticket, disks, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, error->message);
    }
    options.count = place->ids->len;
    options.with_agent = place->options.with_agent;
    options.clone_request = place->options.clone_request;
    options.identify_seconds = place->options.identify_seconds;
    ticket->grant->used = TRUE;
    sf_host_ticket_save(ticket);
    ticket->fork = sf_fork_new_placed(&options, &placed);
    sf_host_connect_fork(ticket);
    reply_reports(request, ticket);
    if (!place->has_working_set) {
        lend->record_timer = g_timeout_add(RECORD_MS, on_record_timer, lend);
    }
    sf_fork_start(ticket->fork);
    sf_pager_record_save(ticket->host, ticket->pager);
}

/* Absent from hosts of an earlier version: as it was. */
static gboolean avoid_param(JsonObject *params, guint *avoid, GError **error)
{
    const char *text;

    if (!json_object_has_member(params, "avoid")) {
        return TRUE;
    }
    return text_param(params, "avoid", AVOID_TEXT_MAX, &text, error) &&
           (sf_avoid_parse(text, avoid, NULL) || bad(error, "avoid", "all, none, free or read"));
}

/* All that is checked before anything is touched. */
static gboolean prepare_place(SfHostTicket *ticket, JsonObject *params, Place *place, GError **error)
{
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(guint));
    g_autoptr(SfDescriptor) descriptor = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;
    gint64 total, clone_request, identify;
    gboolean with_agent, complete;
    const char *text;
    JsonArray *array;

    if (!int_param(params, "total", 1, SF_GP_MAX_CLONES, &total, error) ||
        !array_param(params, "ids", ticket->grant->granted, &array, error) ||
        !parse_ids(array, (guint)total, ids, error) || !bool_param(params, "with_agent", &with_agent, error) ||
        !bool_param(params, "complete", &complete, error) ||
        !int_param(params, "clone_request", 0, G_MAXUINT32, &clone_request, error) ||
        !int_param(params, "identify_seconds", 1, IDENTIFY_MAX, &identify, error) ||
        !text_param(params, "descriptor", SF_PEER_LINE_MAX, &text, error) ||
        !avoid_param(params, &ticket->grant->avoid, error)) {
        return FALSE;
    }
    descriptor = decode(text, error);
    if (!descriptor || !check_descriptor(ticket, descriptor, error) || !sf_networks_take_place(ticket, params, error)) {
        return FALSE;
    }
    snapshot = cached_snapshot(descriptor, NULL, ticket->grant->avoid, error);
    if (!snapshot || !sf_pager_set_snapshot(ticket->pager, snapshot, error) || !save_descriptor(ticket, text, error)) {
        return FALSE;
    }
    if (json_object_has_member(params, "working_set")) {
        if (!text_param(params, "working_set", SF_WORKING_SET_TEXT_MAX, &text, error)) {
            return FALSE;
        }
        g_autoptr(GBytes) packed = sf_working_set_from_json(params, "working_set");
        g_autoptr(GArray) runs = packed ? sf_working_set_unpack(packed, snapshot) : NULL;
        if (!runs) {
            return bad(error, "working_set", "runs of pages");
        }
        if (!sf_pager_set_working_set(ticket->pager, runs, error)) {
            return FALSE;
        }
        place->has_working_set = TRUE;
    }
    if (complete && !sf_pager_complete(ticket->pager, error)) {
        return FALSE;
    }
    place->snapshot = g_steal_pointer(&snapshot);
    place->options.with_agent = with_agent;
    place->options.clone_request = (guint32)clone_request;
    place->options.identify_seconds = (guint)identify;
    place->total = (guint)total;
    place->ids = g_steal_pointer(&ids);
    return TRUE;
}

static void handle_place(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = lent_ticket(host, sf_peer_request_from(request), sf_peer_request_params(request), &error);
    Place place = { 0 };

    if (ticket && ticket->fork) {
        reply_reports(request, ticket); /* its answer was lost */
        return;
    }
    if (ticket &&
        (!ticket->lend || !ticket->pager || (ticket->family->config->disks->len > 0 && !ticket->lend->disks))) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "it can't be placed now");
        ticket = NULL;
    }
    if (ticket && prepare_place(ticket, sf_peer_request_params(request), &place, &error)) {
        place_begin(ticket->lend, &place, request);
    } else {
        sf_peer_request_fail(request, error);
    }
    g_clear_pointer(&place.snapshot, sf_snapshot_unref);
    g_clear_pointer(&place.ids, g_array_unref);
}

/* ---- the others ---- */

static void handle_kill(SfHost *host, SfPeerRequest *request)
{
    JsonObject *params = sf_peer_request_params(request);
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = lent_ticket(host, sf_peer_request_from(request), params, &error);
    const char *reason;
    gint64 id;

    if (!ticket || !int_param(params, "id", 1, SF_GP_MAX_CLONES, &id, &error) ||
        !text_param(params, "reason", REASON_MAX, &reason, &error)) {
        sf_peer_request_fail(request, error);
        return;
    }
    if (ticket->fork && sf_fork_clone(ticket->fork, (guint)id)) {
        sf_fork_clone_kill(sf_fork_clone(ticket->fork, (guint)id), reason);
    }
    sf_peer_request_reply(request, NULL);
}

static void handle_complete(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = lent_ticket(host, sf_peer_request_from(request), sf_peer_request_params(request), &error);

    if (ticket && ticket->pager && sf_pager_complete(ticket->pager, &error)) {
        sf_pager_record_save(host, ticket->pager);
        sf_peer_request_reply(request, NULL);
        return;
    }
    if (!error) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "its memory is gone");
    }
    sf_peer_request_fail(request, error);
}

static void handle_network(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;
    JsonObject *params = sf_peer_request_params(request);
    SfPeer *peer = sf_peer_request_peer(request);
    SfHostTicket *ticket = lent_ticket(host, sf_peer_request_from(request), params, &error);

    if (ticket && peer && sf_networks_take_hosts(ticket, peer, params, &error)) {
        sf_peer_request_reply(request, NULL);
        return;
    }
    if (!error) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_LOST, "the connection has ended");
    }
    sf_peer_request_fail(request, error);
}

static void handle_result(SfHost *host, SfPeerRequest *request)
{
    JsonObject *params = sf_peer_request_params(request), *result;
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) data = NULL;
    g_autoptr(JsonObject) report = NULL;
    g_autofree char *text = NULL;
    SfHostTicket *ticket = lent_ticket(host, sf_peer_request_from(request), params, &error);
    gint64 id, offset, length;
    SfClone *clone;

    if (!ticket || !int_param(params, "id", 1, SF_GP_MAX_CLONES, &id, &error) ||
        !int_param(params, "offset", 0, SF_GP_MAX_RESULT, &offset, &error) ||
        !int_param(params, "length", 1, RESULT_PIECE_MAX, &length, &error)) {
        sf_peer_request_fail(request, error);
        return;
    }
    clone = ticket->fork ? sf_fork_clone(ticket->fork, (guint)id) : NULL;
    if (!clone) {
        error = g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_GONE, "clone %" G_GINT64_FORMAT " is not here", id);
        sf_peer_request_fail(request, error);
        return;
    }
    data = sf_fork_clone_fetch(clone, (guint64)offset, (gsize)length, &error);
    if (!data) {
        sf_peer_request_fail(request, error);
        return;
    }
    text = g_base64_encode(g_bytes_get_data(data, NULL), g_bytes_get_size(data));
    report = sf_clone_report(clone);
    result = json_object_new();
    json_object_set_string_member(result, "data", text);
    json_object_set_int_member(result, "total", (gint64)clone->result_length);
    json_object_set_int_member(result, "synced", json_object_get_int_member(report, "synced"));
    sf_peer_request_reply(request, result);
}

static void handle_release(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = lent_ticket(host, sf_peer_request_from(request), sf_peer_request_params(request), &error);

    Reserve *reserve = NULL;
    guint64 id;

    if (id_param(sf_peer_request_params(request), &id, NULL)) {
        reserve = g_hash_table_lookup(reserves(host), &id);
    }
    if (reserve && strcmp(sf_peer_request_from(reserve->request), sf_peer_request_from(request)) == 0) {
        reserve->released = TRUE;
    }
    if (!ticket) {
        sf_peer_request_fail(request, error);
        return;
    }
    sf_host_release_ticket(host, ticket);
    sf_peer_request_reply(request, NULL);
}

static gboolean parse_tickets(JsonArray *array, GHashTable *listed, GError **error)
{
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *node = json_array_get_element(array, i);
        const char *text = json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : "";
        guint64 id;
        if (!sf_ticket_id_from_text(text, &id)) {
            return bad(error, "tickets", "tickets");
        }
        g_hash_table_add(listed, g_memdup2(&id, sizeof(id)));
    }
    return TRUE;
}

/* The origin says which of its tickets it has; others of its are released here, of these it gets all reports. */
static void handle_sync(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GHashTable) listed = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autoptr(GError) error = NULL;
    JsonArray *asked, *told;
    JsonObject *result;

    if (!array_param(sf_peer_request_params(request), "tickets", TICKETS_MAX, &asked, &error) ||
        !parse_tickets(asked, listed, &error)) {
        sf_peer_request_fail(request, error);
        return;
    }
    told = json_array_new();
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        JsonObject *entry;
        g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);
        if (g_strcmp0(ticket->grant->origin, sf_peer_request_from(request)) != 0) {
            continue;
        }
        if (!g_hash_table_contains(listed, &ticket->grant->id)) {
            g_message("ticket %s: host %s has released it", id, ticket->grant->origin);
            sf_host_release_ticket(host, ticket);
            continue;
        }
        entry = json_object_new();
        json_object_set_string_member(entry, "ticket", id);
        json_object_set_array_member(entry, "clones", reports_of(ticket));
        json_object_set_boolean_member(entry, "complete", ticket->pager && sf_pager_is_complete(ticket->pager));
        json_array_add_object_element(told, entry);
    }
    result = json_object_new();
    json_object_set_array_member(result, "tickets", told);
    sf_peer_request_reply(request, result);
}

typedef struct {
    const char *name;
    void (*handle)(SfHost *host, SfPeerRequest *request);
} Method;

static const Method methods[] = {
    { "reserve", handle_reserve },   { "place", handle_place },     { "kill", handle_kill },
    { "result", handle_result },     { "release", handle_release }, { "sync", handle_sync },
    { "complete", handle_complete }, { "network", handle_network },
};

void sf_lend_request(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;

    for (guint i = 0; i < G_N_ELEMENTS(methods); i++) {
        if (strcmp(methods[i].name, sf_peer_request_method(request)) == 0) {
            methods[i].handle(host, request);
            return;
        }
    }
    error = g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_BAD_REQUEST, "method \"%.64s\": not known",
                        sf_peer_request_method(request));
    sf_peer_request_fail(request, error);
}

/* data: taken. What is lost because the origin is not there, sync makes up for. */
static void tell_origin(SfHostTicket *ticket, const char *event, JsonObject *data)
{
    SfPeers *peers = sf_host_peers(ticket->host);
    SfPeer *peer = peers ? sf_peers_get(peers, ticket->grant->origin) : NULL;
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);

    if (!peer || !sf_peer_is_up(peer)) {
        json_object_unref(data);
        return;
    }
    json_object_set_string_member(data, "ticket", id);
    sf_peer_send_event(peer, event, data);
}

void sf_lend_clone_changed(SfHostTicket *ticket, SfClone *clone)
{
    JsonObject *data = json_object_new();

    json_object_set_object_member(data, "clone", report_of(ticket, clone));
    tell_origin(ticket, "clone", data);
    if (ticket->lend) {
        record_answer(ticket->lend, clone);
    }
}

void sf_lend_pager_used_less(SfHost *host, SfPager *pager)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        for (guint i = 0;
             ticket->grant->origin && ticket->pager == pager && ticket->fork && i < sf_fork_count(ticket->fork); i++) {
            SfClone *clone = sf_fork_nth(ticket->fork, i);
            if (!sf_clone_is_alive(clone)) {
                sf_lend_clone_changed(ticket, clone);
            }
        }
    }
}

/* ---- an origin that stays away ---- */

/*
 * Its clones can't go on, or nobody will ask for what they have done. Those that live go on: their memory may be
 * complete, or come from the origin's sf-pager, which needs no sfvmmd.
 */
static gboolean is_abandoned(const SfHostTicket *ticket, gint64 away_us)
{
    if (!ticket->fork) {
        return TRUE;
    }
    if (sf_fork_alive(ticket->fork) > 0) {
        return !ticket->pager ||
               (g_object_get_data(G_OBJECT(ticket->pager), PAGER_CUT_OFF) && !sf_pager_is_complete(ticket->pager));
    }
    return away_us > KEEP_SECONDS * (gint64)US_PER_S;
}

/* Nothing of it is kept but what the origin may want to know. */
static void lose_clones(SfHostTicket *ticket)
{
    g_autofree char *reason =
        g_strdup_printf("host %s, which has the rest of its memory, was not heard of for %u s", ticket->grant->origin,
                        sf_host_config(ticket->host)->cluster.away_seconds);

    for (guint i = 0; i < sf_fork_count(ticket->fork); i++) {
        sf_fork_clone_lose(sf_fork_nth(ticket->fork, i), reason);
    }
    sf_host_set_pool(ticket->host, ticket->family, 0);
}

static gboolean on_away(gpointer data)
{
    SfHostTicket *ticket = data;

    gint64 away_us = g_get_monotonic_time() - ticket->away;
    gboolean abandoned = is_abandoned(ticket, away_us);

    g_message("ticket %016" G_GINT64_MODIFIER "x: its host %s has not been heard of for %u s; %s", ticket->grant->id,
              ticket->grant->origin, (guint)(away_us / US_PER_S), abandoned ? "given up" : "kept");
    if (!abandoned) {
        return G_SOURCE_CONTINUE;
    }
    if (ticket->fork && sf_fork_alive(ticket->fork) > 0) {
        lose_clones(ticket);
        return G_SOURCE_CONTINUE; /* what became of them is told when the origin is back */
    }
    ticket->expiry = 0;
    sf_host_release_ticket(ticket->host, ticket);
    return G_SOURCE_REMOVE;
}

static void await_origin(SfHostTicket *ticket)
{
    if (!ticket->expiry) {
        ticket->away = g_get_monotonic_time();
        ticket->expiry = g_timeout_add_seconds(sf_host_config(ticket->host)->cluster.away_seconds, on_away, ticket);
    }
}

void sf_lend_peer_down(SfHost *host, SfPeer *peer)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (g_strcmp0(ticket->grant->origin, sf_peer_name(peer)) == 0) {
            await_origin(ticket);
        }
    }
}

void sf_lend_peer_up(SfHost *host, SfPeer *peer)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (g_strcmp0(ticket->grant->origin, sf_peer_name(peer)) == 0) {
            g_clear_handle_id(&ticket->expiry, g_source_remove);
            ticket->away = 0;
        }
    }
}

/* ---- after a restart ---- */

void sf_lend_recover(SfHostTicket *ticket)
{
    g_autofree char *id = g_strdup_printf(SNAPSHOT_FORMAT, ticket->grant->id);

    lend_new(ticket);
    if (ticket->pager) {
        watch_pager(ticket->pager, ticket->host);
    }
    ticket->lend->disks = sf_disk_server_find(sf_host_launcher(ticket->host), id);
    await_origin(ticket);
}

static GPtrArray *restore_disks(SfHostTicket *ticket, GError **error)
{
    g_autofree char *path = g_build_filename(ticket->directory, DISKS_FILE, NULL);
    g_autoptr(GPtrArray) chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    JsonArray *array = object ? json_object_get_array_member(object, "disks") : NULL;

    if (!array) {
        return NULL;
    }
    for (guint i = 0; i < json_array_get_length(array); i++) {
        SfDiskChain *chain = sf_disk_chain_from_json(json_array_get_object_element(array, i), error);
        if (!chain) {
            return NULL;
        }
        g_ptr_array_add(chains, chain);
    }
    return g_steal_pointer(&chains);
}

static gboolean restore_placed(SfHostTicket *ticket, GError **error)
{
    g_autofree char *path = g_build_filename(ticket->directory, DESCRIPTOR_FILE, NULL);
    g_autoptr(GPtrArray) disks = restore_disks(ticket, error);
    g_autoptr(SfDescriptor) descriptor = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;
    g_autoptr(GBytes) bytes = NULL;
    char *data;
    gsize length;

    if (!disks || !g_file_get_contents(path, &data, &length, error)) {
        return FALSE;
    }
    bytes = g_bytes_new_take(data, length);
    descriptor = sf_descriptor_decode(bytes, error);
    if (!descriptor) {
        return FALSE;
    }
    if (!ticket->pager || !sf_pager_cache(ticket->pager)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "its memory on this host is gone");
        return FALSE;
    }
    snapshot = cached_snapshot(descriptor, sf_pager_cache(ticket->pager), ticket->grant->avoid, error);
    if (!snapshot) {
        return FALSE;
    }
    sf_pager_keep_snapshot(ticket->pager, snapshot);
    sf_fork_set_placed(ticket->fork, snapshot, disks);
    return TRUE;
}

void sf_lend_recover_fork(SfHostTicket *ticket)
{
    g_autoptr(GError) error = NULL;

    if (!sf_fork_is_done(ticket->fork) && !restore_placed(ticket, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, error->message);
    }
}

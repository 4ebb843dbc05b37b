/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Every call to a host is answered, fails, or its time is over; whichever it is, the answer finds its ticket by id
 * again, as it may have been released meanwhile. Only an answer that says so means that nothing was done: then the
 * clones go to other hosts. After a lost connection the host may have placed them, and two clones with one id are worse
 * than one less: they wait for the host to come back, or are given up.
 *
 *     reserve: granted < asked  --> resource manager: other places --> reserve there ... none --> a smaller ticket
 *     place:   refused, not up  --> resource manager: other places --> here: placed; there: reserve, then place
 *     place:   its descriptor goes to the multicast group --> a host that does not get it there asks: "descriptor"
 *     report:  a result is newer than ours --> fetched in pieces --> then the report is applied
 */
#include "sfvmm/control/borrow.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sfvmm/control/cluster.h"
#include "sfvmm/control/describe.h"
#include "sfvmm/control/facts.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/lend.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/page_uri.h"
#include "sfvmm/control/place_descriptor.h"
#include "sfvmm/control/snapshots.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/fork/remote.h"
#include "sfvmm/vm/disk_server.h"

#define RESERVE_MS      5000u
#define PLACE_MS        30000u
#define SYNC_MS         15000u
#define ORDER_MS        15000u /* kill, release */
#define RESULT_MS       15000u
#define RESULT_PIECE    (512u << 10) /* bytes of a result in one answer */
#define LISTEN_BACKLOG  64
#define DESCRIPTOR_FILE "descriptor.dtb"
#define SNAPSHOT_FORMAT "s-%016" G_GINT64_MODIFIER "x" /* as fork/ names it */
#define AWAY_TIMERS     "sf-borrow-away"

/* The server of the frozen disks: started with the ticket, given the disks when they are frozen. */
typedef enum { DISKS_NONE, DISKS_STARTING, DISKS_STARTED, DISKS_ADDING, DISKS_READY, DISKS_FAILED } DisksState;

/* The result of a clone that is being fetched, or was. */
typedef struct {
    guint id;
    gboolean running;
    gint64 serial; /* the host's time of the sync that is being fetched */
    gint64 done;   /* of the one that we have; 0: none */
    guint64 offset;
    JsonObject *report; /* the newest: applied when we have its result; NULL: all are */
} Fetch;

struct SfBorrow {
    SfHostTicket *ticket;
    guint wanted;      /* places of the first grant */
    guint asking;      /* reserve calls under way */
    GHashTable *asked; /* set of hosts that they are under way to: one at a time for each */
    char *reason;      /* why a host took fewer than asked; the last one */
    GTask *task;       /* of reserve_async */
    char *vm, *qemu_version, *machine, *cpu; /* of the subject; NULL after a restart: the VM is asked */
    char *uri;
    SfPager *server;
    gboolean shared; /* the server is of a saved snapshot: other tickets use it too, and it ends with the last */
    guint port;      /* that it listens at */
    SfMulticast *multicast; /* NULL: pages go by unicast alone */
    gboolean no_multicast;  /* it could not be had, which has been logged */
    GHashTable *in_group;   /* set of hosts that have joined it, as they say */
    GBytes *descriptor;
    char *descriptor_digest; /* NULL: the descriptor has not been sent to the group */
    DisksState disks_state;
    SfDiskServer *disks;
    guint disks_port;
    GPtrArray *waiting;   /* char *: hosts to order when the disks are served */
    GHashTable *fetches;  /* id -> Fetch */
    GHashTable *complete; /* set of hosts that have all of the memory */
};

/* What a call needs when it is answered. */
typedef struct {
    SfHost *host;
    guint64 ticket;
    char *peer;
    guint count; /* reserve: asked in all; result: the clone's id */
    gboolean then_place;
} Call;

static void ask(SfHostTicket *ticket, SfVmConfig *config, const char *host, gboolean then_place);
static void order(SfHostTicket *ticket, const char *host);
static void reserve_review(SfHostTicket *ticket);
static void allow_hosts(SfHost *host, SfPager *server);
static GBytes *descriptor_of(SfHostTicket *ticket, GError **error);
static void move_clones(SfHostTicket *ticket, const char *host, const char *reason);
static void fetch_step(SfHostTicket *ticket, Fetch *fetch);
static void sync_with(SfHost *host, SfPeer *peer);
static SfHostTicket *ticket_of_text(SfHost *host, const char *text);

static Call *call_new(SfHostTicket *ticket, const char *peer, guint count)
{
    Call *call = g_new0(Call, 1);

    call->host = g_object_ref(ticket->host);
    call->ticket = ticket->grant->id;
    call->peer = g_strdup(peer);
    call->count = count;
    return call;
}

static void call_free(Call *call)
{
    g_object_unref(call->host);
    g_free(call->peer);
    g_free(call);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Call, call_free)

/* Its ticket, if it is still there. */
static SfHostTicket *call_ticket(const Call *call)
{
    SfHostTicket *ticket = sf_host_ticket(call->host, call->ticket, NULL);

    return ticket && ticket->borrow ? ticket : NULL;
}

static SfPeer *find_peer(SfHost *host, const char *name)
{
    SfPeers *peers = sf_host_peers(host);

    return peers ? sf_peers_get(peers, name) : NULL;
}

static JsonObject *params_of(SfHostTicket *ticket)
{
    JsonObject *params = json_object_new();
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);

    json_object_set_string_member(params, "ticket", id);
    return params;
}

static void fetch_free(gpointer data)
{
    Fetch *fetch = data;

    g_clear_pointer(&fetch->report, json_object_unref);
    g_free(fetch);
}

static SfBorrow *borrow_new(SfHostTicket *ticket)
{
    SfBorrow *borrow = g_new0(SfBorrow, 1);

    borrow->ticket = ticket;
    borrow->wanted = ticket->grant->granted;
    borrow->waiting = g_ptr_array_new_with_free_func(g_free);
    borrow->fetches = g_hash_table_new_full(NULL, NULL, NULL, fetch_free);
    borrow->complete = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    borrow->asked = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    borrow->in_group = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    ticket->borrow = borrow;
    return borrow;
}

static void stop_pages(SfBorrow *borrow)
{
    g_clear_pointer(&borrow->multicast, sf_multicast_free);
    if (borrow->server && !borrow->shared) {
        sf_pager_stop(borrow->server);
    }
    g_clear_object(&borrow->server);
}

/* The hosts of this ticket need no pages any more; those of others may. */
static void withdraw_pages(SfBorrow *borrow)
{
    g_autoptr(SfPager) shared = borrow->shared ? g_steal_pointer(&borrow->server) : NULL;

    if (shared) {
        allow_hosts(borrow->ticket->host, shared);
    } else {
        stop_pages(borrow);
    }
}

static void stop_serving(SfBorrow *borrow)
{
    withdraw_pages(borrow);
    g_clear_pointer(&borrow->disks, sf_disk_server_unref);
}

void sf_borrow_free(SfBorrow *borrow)
{
    if (!borrow) {
        return;
    }
    stop_pages(borrow);
    g_clear_pointer(&borrow->disks, sf_disk_server_unref);
    if (borrow->task) {
        g_task_return_new_error(borrow->task, SF_HOST_ERROR, SF_HOST_ERROR_GONE,
                                "the ticket was released while other hosts were asked for places");
        g_object_unref(borrow->task);
    }
    g_clear_pointer(&borrow->descriptor, g_bytes_unref);
    g_ptr_array_unref(borrow->waiting);
    g_hash_table_unref(borrow->fetches);
    g_hash_table_unref(borrow->complete);
    g_hash_table_unref(borrow->asked);
    g_hash_table_unref(borrow->in_group);
    g_free(borrow->descriptor_digest);
    g_free(borrow->vm);
    g_free(borrow->qemu_version);
    g_free(borrow->machine);
    g_free(borrow->cpu);
    g_free(borrow->uri);
    g_free(borrow->reason);
    g_free(borrow);
}

/* ---- pages and disks are served ---- */

/* A listening socket on that port, 0: any. What is not encrypted does not leave this machine. */
static int listen_on_port(guint port, gboolean loopback, GError **error)
{
    struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT, .sin6_port = htons(port) };
    struct sockaddr_in v4 = { .sin_family = AF_INET,
                              .sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY),
                              .sin_port = htons(port) };
    int fd = loopback ? -1 : socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int no = 0, yes = 1;
    gboolean ok;

    if (fd >= 0) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
        ok = bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
    } else { /* that, or a host without IPv6 */
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ok = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) == 0 &&
             bind(fd, (struct sockaddr *)&v4, sizeof(v4)) == 0;
    }
    if (ok && listen(fd, LISTEN_BACKLOG) == 0) {
        return fd;
    }
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "port %u for pages: %s", port, g_strerror(errno));
    if (fd >= 0) {
        close(fd);
    }
    return -1;
}

/* *port: one that others know already, or 0. */
static int listen_for_pages(const SfDaemonConfig *config, guint *port, GError **error)
{
    guint first = *port ? *port : config->cluster.page_port_first;
    guint last = *port ? *port : config->cluster.page_port_last;
    struct sockaddr_storage bound;
    socklen_t length = sizeof(bound);
    int fd = -1;

    for (guint p = first; fd < 0 && p <= last; p++) {
        g_clear_error(error);
        fd = listen_on_port(p, config->cluster.pages == SF_PAGER_PLAIN, error);
    }
    if (fd < 0) {
        g_prefix_error(error, "no port of page-ports is free: ");
        return -1;
    }
    g_clear_error(error);
    if (getsockname(fd, (struct sockaddr *)&bound, &length) == 0) {
        *port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                  : ((struct sockaddr_in *)&bound)->sin_port);
    }
    return fd;
}

/* A VM whose own memory comes from elsewhere: what is not here yet is fetched, for its clones elsewhere as for those
 * here. */
static gboolean add_own_sources(SfBorrow *borrow, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(borrow->ticket->host);
    SfPager *own = borrow->ticket->pager;
    g_autoptr(JsonObject) sources = own ? sf_pager_describe_sources(own) : NULL;

    return !own || sf_pager_add_described_sources(borrow->server, sources, config->cluster.pages_directory, error);
}

/* The sf-pager listens from the ticket on, so that hosts are connected when the snapshot comes. */
static gboolean start_server(SfBorrow *borrow, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(borrow->ticket->host);
    g_autofree char *id = g_strdup_printf(SNAPSHOT_FORMAT, borrow->ticket->grant->id);
    int fd = listen_for_pages(config, &borrow->port, error);
    SfPagerOptions options = sf_daemon_config_pager(config, id);

    if (fd < 0) {
        return FALSE;
    }
    options.listen_fd = fd;
    borrow->server = sf_pager_start(&options, error);
    return borrow->server && add_own_sources(borrow, error);
}

/* The sf-pager that clones here have their memory from gives it to other hosts as well, now or since an earlier ticket.
 */
static gboolean share_server(SfBorrow *borrow, SfPager *pager, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(borrow->ticket->host);
    int fd;

    borrow->port = sf_pager_port(pager);
    if (!borrow->port) {
        fd = listen_for_pages(config, &borrow->port, error);
        if (fd < 0 || !sf_pager_serve(pager, fd, config->cluster.pages, config->cluster.pages_directory, error)) {
            return FALSE;
        }
    }
    borrow->server = g_object_ref(pager);
    borrow->shared = TRUE;
    return TRUE;
}

static GPtrArray *host_names(SfHostTicket *ticket)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);

    for (guint i = 0; i < ticket->grant->places->len; i++) {
        const SfPlace *place = g_ptr_array_index(ticket->grant->places, i);
        if (!sf_place_is_local(place)) {
            g_ptr_array_add(names, g_strdup(place->host));
        }
    }
    return names;
}

/* Whoever may get clones of a ticket: a disk server is told once, when its places may still change. */
static GPtrArray *all_host_names(SfHost *host)
{
    g_autoptr(GList) hosts = sf_resource_manager_hosts(sf_host_manager(host));
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);

    for (GList *item = hosts; item; item = item->next) {
        g_ptr_array_add(names, g_strdup(((const SfClusterHost *)item->data)->name));
    }
    return names;
}

/* Those hosts that tickets with this server have places on: of a saved snapshot's there may be several. */
static void allow_hosts(SfHost *host, SfPager *server)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autoptr(GError) error = NULL;

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (ticket->borrow && ticket->borrow->server == server) {
            g_ptr_array_extend_and_steal(names, host_names(ticket));
        }
    }
    g_ptr_array_add(names, NULL);
    if (!sf_pager_allow(server, (const char *const *)names->pdata, &error)) {
        g_warning("%s", error->message);
    }
}

/* The disks are served, or never will be: the hosts that waited for it get their orders. */
static void disks_settled(SfHostTicket *ticket, const char *failure)
{
    g_autoptr(GPtrArray) hosts = g_steal_pointer(&ticket->borrow->waiting);

    ticket->borrow->disks_state = failure ? DISKS_FAILED : DISKS_READY;
    ticket->borrow->waiting = g_ptr_array_new_with_free_func(g_free);
    for (guint i = 0; i < hosts->len; i++) {
        if (failure) {
            move_clones(ticket, g_ptr_array_index(hosts, i), failure);
        } else {
            order(ticket, g_ptr_array_index(hosts, i));
        }
    }
}

static void on_disks_added(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Call) call = data;
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = call_ticket(call);
    gboolean added = sf_disk_server_add_finish(ticket ? ticket->borrow->disks : NULL, result, &error);

    if (ticket && ticket->fork) {
        disks_settled(ticket, added ? NULL : error->message);
    }
}

/*
 * announce: before the snapshot: read-only disks are served at once, the others announced. Else: those others, as they
 * were frozen. names: of char *, keeps the texts.
 */
static GArray *exports_of(SfHostTicket *ticket, GPtrArray *chains, gboolean announce, GPtrArray *names)
{
    GArray *exports = g_array_new(FALSE, FALSE, sizeof(SfDiskExport));

    for (guint i = 0; chains && i < chains->len; i++) {
        const SfDiskChain *chain = g_ptr_array_index(chains, i);
        SfDiskExport export = { .chain = announce && !chain->readonly ? NULL : chain, .size = chain->size };
        if (!announce && chain->readonly) {
            continue;
        }
        g_ptr_array_add(names, g_strdup_printf(SNAPSHOT_FORMAT "/%s", ticket->grant->id, chain->id));
        export.name = g_ptr_array_index(names, names->len - 1);
        g_array_append_val(exports, export);
    }
    return exports;
}

static gboolean on_idle_for_descriptor(gpointer data)
{
    SfHostTicket *ticket = call_ticket(data);

    if (ticket && ticket->fork) {
        descriptor_of(ticket, NULL); /* what is wrong with it is told when it is needed */
    }
    return G_SOURCE_REMOVE;
}

/* While the disk server works on it, the descriptor is made. */
static void add_disks(SfHostTicket *ticket)
{
    SfBorrow *borrow = ticket->borrow;
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) exports = exports_of(ticket, sf_fork_frozen_disks(ticket->fork), FALSE, names);

    borrow->disks_state = DISKS_ADDING;
    sf_disk_server_add_async(borrow->disks, (const SfDiskExport *)exports->data, exports->len, on_disks_added,
                             call_new(ticket, "", 0));
    g_idle_add_full(G_PRIORITY_DEFAULT, on_idle_for_descriptor, call_new(ticket, "", 0), (GDestroyNotify)call_free);
}

static void on_disk_server(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Call) call = data;
    g_autoptr(GError) error = NULL;
    SfDiskServer *server = sf_disk_server_start_finish(result, &error);
    SfHostTicket *ticket = call_ticket(call);

    if (!ticket) {
        g_clear_pointer(&server, sf_disk_server_unref);
        return;
    }
    ticket->borrow->disks = server;
    ticket->borrow->disks_state = server ? DISKS_STARTED : DISKS_FAILED;
    if (!server) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: its disks can't be served to other hosts: %s", ticket->grant->id,
                  error->message);
    }
    reserve_review(ticket);
    ticket = call_ticket(call); /* a ticket that no host takes has been released by that */
    if (!ticket || ticket->borrow->waiting->len == 0) {
        return;
    }
    if (server) {
        add_disks(ticket);
    } else {
        disks_settled(ticket, error->message);
    }
}

static void start_disk_server(SfHostTicket *ticket, GPtrArray *disks)
{
    const SfDaemonConfig *config = sf_host_config(ticket->host);
    SfBorrow *borrow = ticket->borrow;
    g_autofree char *id = g_strdup_printf(SNAPSHOT_FORMAT, ticket->grant->id);
    g_autoptr(GPtrArray) allowed = all_host_names(ticket->host);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) exports = exports_of(ticket, disks, TRUE, names);
    g_autoptr(GError) error = NULL;
    int fd = listen_for_pages(config, &borrow->disks_port, &error);
    SfDiskServerOptions options = {
        .id = id,
        .tls_directory = config->cluster.pages == SF_PAGER_X509 ? config->cluster.pages_directory : NULL,
        .listen_fd = fd,
    };

    if (fd < 0) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, error->message);
        borrow->disks_state = DISKS_FAILED;
        return;
    }
    g_ptr_array_add(allowed, NULL);
    options.allowed = (const char *const *)allowed->pdata;
    borrow->disks_state = DISKS_STARTING;
    sf_disk_server_start_async(sf_host_launcher(ticket->host), &options, (const SfDiskExport *)exports->data,
                               exports->len, on_disk_server, call_new(ticket, "", 0));
    close(fd);
}

/* ---- reserve ---- */

static void ignore_answer(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);

    if (!answer) {
        g_debug("%s", error->message); /* sync makes up for it */
    }
}

static void tell(SfHostTicket *ticket, const char *host, const char *method, JsonObject *params)
{
    SfPeer *peer = find_peer(ticket->host, host);

    if (peer) {
        sf_peer_call_async(peer, method, params, ORDER_MS, ignore_answer, NULL);
    } else {
        json_object_unref(params);
    }
}

/* So many of the clones on a host can't be there: they get other places, or the ticket becomes smaller. */
static void replace(SfHostTicket *ticket, SfVmConfig *config, const char *host, guint count)
{
    SfResourceManager *manager = sf_host_manager(ticket->host);
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) places = sf_resource_manager_reassign(manager, ticket->grant, host, count, &error);

    if (!places) {
        sf_resource_manager_give_back(manager, ticket->grant, host, count);
        return;
    }
    for (guint i = 0; i < places->len; i++) {
        const SfPlace *place = g_ptr_array_index(places, i);
        if (!sf_place_is_local(place)) {
            ask(ticket, config, place->host, FALSE);
        }
    }
}

/* The ticket is granted when all hosts have answered and what they will fetch from runs: a fork shall not wait for it.
 */
static void reserve_review(SfHostTicket *ticket)
{
    SfBorrow *borrow = ticket->borrow;

    if (borrow->asking == 0 && borrow->disks_state != DISKS_STARTING && borrow->task) {
        g_autoptr(GTask) task = g_steal_pointer(&borrow->task);
        g_task_return_pointer(task, g_memdup2(&ticket->grant->id, sizeof(guint64)), g_free);
    }
}

static void on_asked(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Call) call = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    SfHostTicket *ticket = call_ticket(call);
    gint64 number = answer ? json_object_get_int_member_with_default(answer, "granted", 0) : 0;
    guint granted = (guint)CLAMP(number, 0, (gint64)call->count), wanted;

    if (!ticket) {
        return; /* its release has been told, or sync will */
    }
    ticket->borrow->asking--;
    g_hash_table_remove(ticket->borrow->asked, call->peer);
    if (answer && json_object_get_boolean_member_with_default(answer, "multicast", FALSE)) {
        g_hash_table_add(ticket->borrow->in_group, g_strdup(call->peer));
    }
    wanted = sf_ticket_count_at(ticket->grant, call->peer);
    if (granted < call->count) {
        g_free(ticket->borrow->reason);
        ticket->borrow->reason =
            error ? g_strdup(error->message)
                  : g_strdup_printf("host \"%s\" has room for %u of %u clones", call->peer, granted, call->count);
        g_message("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, ticket->borrow->reason);
    } else if (granted < wanted) {
        ask(ticket, ticket->family->config, call->peer, call->then_place); /* it got more of them meanwhile */
        return;
    }
    sf_networks_spread(ticket->host, ticket->family);
    if (granted == 0) {
        tell(ticket, call->peer, "release", params_of(ticket)); /* it may have been reserved, and the answer lost */
    }
    if (!call->then_place) {
        if (granted < wanted) {
            replace(ticket, ticket->family->config, call->peer, wanted - granted);
        }
        reserve_review(ticket);
    } else if (granted == wanted) {
        order(ticket, call->peer);
    } else {
        move_clones(ticket, call->peer, ticket->borrow->reason);
    }
}

/*
 * What a host needs to join the group of this ticket; the group is made for the first one. NULL: it uses unicast, as all
 * do that fetch from a page cache: what that lacks can only be asked for.
 */
static JsonObject *invite(SfHostTicket *ticket, const char *host)
{
    SfBorrow *borrow = ticket->borrow;
    const SfMulticastConfig *config = &sf_host_config(ticket->host)->cluster.multicast;
    g_autoptr(GPtrArray) hosts = host_names(ticket);
    g_autoptr(GError) error = NULL;
    SfPeer *peer = find_peer(ticket->host, host);
    const char *local_ip = peer ? sf_peer_local_ip(peer) : NULL;

    if (config->mode == SF_MULTICAST_OFF || (config->mode == SF_MULTICAST_AUTO && hosts->len < 2) || !local_ip ||
        !borrow->server || borrow->shared || ticket->pager) {
        return NULL;
    }
    if (!borrow->multicast && !borrow->no_multicast) {
        borrow->multicast =
            sf_multicast_new(config, borrow->server, ticket->grant->id, local_ip, hosts->len, &error);
        borrow->no_multicast = !borrow->multicast;
        if (error) {
            g_message("ticket %016" G_GINT64_MODIFIER "x: pages go by unicast: %s", ticket->grant->id, error->message);
        }
    }
    return borrow->multicast ? sf_multicast_invite(borrow->multicast, host, local_ip) : NULL;
}

SfBorrowSubject sf_borrow_subject_of_vm(SfHostVm *hvm)
{
    return (SfBorrowSubject){
        .vm = sf_vm_name(hvm->vm),
        .config = hvm->family->config,
        .qemu_version = sf_vm_qemu_version(hvm->vm),
        .machine = sf_vm_machine(hvm->vm),
        .cpu = sf_vm_cpu(hvm->vm),
        .disks = sf_vm_disks(hvm->vm),
    };
}

static void note_subject(SfBorrow *borrow, const SfBorrowSubject *subject)
{
    borrow->vm = g_strdup(subject->vm);
    borrow->qemu_version = g_strdup(subject->qemu_version);
    borrow->machine = g_strdup(subject->machine);
    borrow->cpu = g_strdup(subject->cpu);
    borrow->uri = g_strdup(subject->uri);
    borrow->descriptor = subject->descriptor ? g_bytes_ref(subject->descriptor) : NULL;
}

static void add_subject(SfHostTicket *ticket, SfVmConfig *config, JsonObject *params)
{
    SfBorrow *borrow = ticket->borrow;
    SfHostVm *hvm = borrow->vm ? NULL : sf_host_vm(ticket->host, ticket->grant->vm, NULL);
    g_autofree char *hash = NULL;

    if (hvm) {
        SfBorrowSubject subject = sf_borrow_subject_of_vm(hvm);
        note_subject(borrow, &subject);
    }
    if (!borrow->vm) {
        return; /* it has ended; the other host refuses */
    }
    hash = sf_vm_config_hash(config, borrow->qemu_version);
    json_object_set_string_member(params, "vm", borrow->vm);
    json_object_set_string_member(params, "qemu_version", borrow->qemu_version);
    json_object_set_string_member(params, "machine", borrow->machine);
    json_object_set_string_member(params, "cpu", borrow->cpu);
    json_object_set_string_member(params, "config_hash", hash);
}

/* peer NULL: it is not there, and will not read it. */
static JsonObject *pages_of(SfHostTicket *ticket, const char *host, SfPeer *peer)
{
    SfPagerSecurity security = sf_host_config(ticket->host)->cluster.pages;
    const SfBorrow *borrow = ticket->borrow;
    JsonObject *pages = json_object_new(), *invitation = invite(ticket, host);

    json_object_set_int_member(pages, "port", borrow->port);
    json_object_set_string_member(pages, "security", security == SF_PAGER_X509 ? "tls" : "plain");
    if (borrow->shared) {
        json_object_set_string_member(pages, "snapshot", sf_pager_snapshot_id(borrow->server));
    }
    if (peer && borrow->uri && sf_page_uri_is_portable(borrow->uri, security, sf_peer_remote_ip(peer))) {
        json_object_set_string_member(pages, "uri", borrow->uri);
    }
    if (invitation) {
        json_object_set_object_member(pages, "multicast", invitation);
    }
    return pages;
}

/* For all places that the ticket has there. */
static void ask(SfHostTicket *ticket, SfVmConfig *config, const char *host, gboolean then_place)
{
    if (g_hash_table_contains(ticket->borrow->asked, host)) {
        return; /* its answer asks again */
    }
    Call *call = call_new(ticket, host, sf_ticket_count_at(ticket->grant, host));
    SfPeer *peer = find_peer(ticket->host, host);
    JsonObject *params = params_of(ticket);
    JsonObject *facts = sf_cluster_facts(sf_cluster_of(ticket->host));

    json_object_set_int_member(params, "count", call->count);
    json_object_set_object_member(params, "config", sf_vm_config_to_portable_json(config));
    add_subject(ticket, config, params);
    sf_networks_invite(ticket, peer, params);
    json_object_set_array_member(params, "cpu_flags",
                                 sf_facts_list(strcmp(config->accel, "kvm") == 0 ? facts : NULL, "cpu_flags"));
    json_object_set_object_member(params, "pages", pages_of(ticket, host, peer));
    json_object_set_int_member(params, "disks_port", ticket->borrow->disks_port);
    call->then_place = then_place;
    if (ticket->borrow->server) {
        allow_hosts(ticket->host, ticket->borrow->server);
    }
    ticket->borrow->asking++;
    g_hash_table_add(ticket->borrow->asked, g_strdup(host));
    if (peer) {
        sf_peer_call_async(peer, "reserve", params, RESERVE_MS, on_asked, call);
    } else {
        GTask *none = g_task_new(NULL, NULL, on_asked, call);
        json_object_unref(params);
        g_task_return_new_error(none, SF_PEER_ERROR, SF_PEER_ERROR_NOT_UP, "host %s: not connected", host);
        g_object_unref(none);
    }
}

void sf_borrow_reserve_async(SfHostTicket *ticket, const SfBorrowSubject *subject, GAsyncReadyCallback callback,
                             gpointer data)
{
    GTask *task = g_task_new(ticket->host, NULL, callback, data);
    g_autoptr(GPtrArray) hosts = host_names(ticket);
    g_autoptr(GError) error = NULL;
    SfBorrow *borrow;

    if (hosts->len == 0) {
        g_task_return_pointer(task, g_memdup2(&ticket->grant->id, sizeof(guint64)), g_free);
        g_object_unref(task);
        return;
    }
    borrow = borrow_new(ticket);
    borrow->task = task;
    note_subject(borrow, subject);
    if (!(subject->pager ? share_server(borrow, subject->pager, &error) : start_server(borrow, &error))) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: its memory can't be served to other hosts: %s", ticket->grant->id,
                  error->message);
        borrow->reason = g_strdup(error->message);
        for (guint i = 0; i < hosts->len; i++) {
            const char *host = g_ptr_array_index(hosts, i);
            sf_resource_manager_give_back(sf_host_manager(ticket->host), ticket->grant, host,
                                          sf_ticket_count_at(ticket->grant, host));
        }
    } else {
        if (subject->config->disks->len > 0) {
            start_disk_server(ticket, subject->disks);
        }
        for (guint i = 0; i < hosts->len; i++) {
            ask(ticket, subject->config, g_ptr_array_index(hosts, i), FALSE);
        }
    }
    reserve_review(ticket);
}

SfHostTicket *sf_borrow_reserve_finish(SfHost *host, GAsyncResult *result, GError **error)
{
    g_autofree guint64 *id = g_task_propagate_pointer(G_TASK(result), error);

    return id ? sf_host_ticket(host, *id, error) : NULL;
}

gboolean sf_borrow_is_asking(SfHostTicket *ticket)
{
    return ticket->borrow && ticket->borrow->task;
}

gboolean sf_borrow_is_whole(SfHostTicket *ticket)
{
    return !ticket->borrow || ticket->grant->granted == ticket->borrow->wanted;
}

const char *sf_borrow_reason(SfHostTicket *ticket)
{
    return ticket->borrow && ticket->borrow->reason ? ticket->borrow->reason : "no host has room";
}

/* ---- place ---- */

GArray *sf_borrow_fork_places(SfHostTicket *ticket)
{
    GArray *places = g_array_new(FALSE, FALSE, sizeof(SfForkPlace));

    for (guint i = 0; i < ticket->grant->places->len; i++) {
        const SfPlace *place = g_ptr_array_index(ticket->grant->places, i);
        SfForkPlace fork_place = { sf_place_is_local(place) ? NULL : place->host, place->count };
        g_array_append_val(places, fork_place);
    }
    return places;
}

SfPager *sf_borrow_server(SfHostTicket *ticket)
{
    return ticket->borrow && !ticket->borrow->shared ? ticket->borrow->server : NULL;
}

/* Made once; kept in the ticket's directory for a later sfvmmd. */
static GBytes *descriptor_of(SfHostTicket *ticket, GError **error)
{
    SfBorrow *borrow = ticket->borrow;
    g_autofree char *path = g_build_filename(ticket->directory, DESCRIPTOR_FILE, NULL);
    SfSnapshot *snapshot = sf_fork_snapshot(ticket->fork);
    SfVm *parent = sf_fork_parent(ticket->fork);
    gsize length;
    char *text;

    if (borrow->descriptor) {
        return borrow->descriptor;
    }
    if (g_file_get_contents(path, &text, &length, NULL)) {
        borrow->descriptor = g_bytes_new_take(text, length);
        return borrow->descriptor;
    }
    if (!parent || !snapshot) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_GONE, "the VM and its snapshot have gone");
        return NULL;
    }
    borrow->descriptor =
        sf_describe_snapshot_of(parent, ticket->grant->vm, snapshot, sf_fork_frozen_disks(ticket->fork), error);
    if (borrow->descriptor) {
        const void *data = g_bytes_get_data(borrow->descriptor, &length);
        g_autoptr(GError) write_error = NULL;
        if (!g_file_set_contents_full(path, data, (gssize)length, G_FILE_SET_CONTENTS_CONSISTENT, 0600, &write_error)) {
            g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, write_error->message);
        }
    }
    return borrow->descriptor;
}

/* The clones of a host that wait to be placed there. */
static GPtrArray *waiting_at(SfHostTicket *ticket, const char *host)
{
    GPtrArray *clones = g_ptr_array_new();

    for (guint i = 0; i < sf_fork_count(ticket->fork); i++) {
        SfClone *clone = sf_fork_nth(ticket->fork, i);
        if (g_strcmp0(clone->host, host) == 0 && sf_clone_is_being_placed(clone)) {
            g_ptr_array_add(clones, clone);
        }
    }
    return clones;
}

static void give_up(GPtrArray *clones, guint32 state, const char *reason)
{
    for (guint i = 0; i < clones->len; i++) {
        sf_clone_give_up(g_ptr_array_index(clones, i), state, reason);
    }
}

/* The host has said that it does not place them, or was not there. */
static void move_clones(SfHostTicket *ticket, const char *host, const char *reason)
{
    g_autoptr(GPtrArray) clones = waiting_at(ticket, host);
    g_autofree char *from = g_strdup(host);
    g_autofree char *why = g_strdup(reason);
    g_autoptr(SfFork) keep = g_object_ref(ticket->fork);
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) places = NULL;
    guint next = 0;

    if (clones->len == 0) {
        return;
    }
    places = sf_resource_manager_reassign(sf_host_manager(ticket->host), ticket->grant, from, clones->len, &error);
    g_message("ticket %016" G_GINT64_MODIFIER "x: host %s places none of %u clones: %s; %s", ticket->grant->id, from,
              clones->len, why, places ? "others do" : error->message);
    if (!places) {
        g_autofree char *text = g_strdup_printf("host %s: %s; and %s", from, why, error->message);
        give_up(clones, SF_GP_STATE_FAILED, text);
        return;
    }
    sf_host_ticket_save(ticket);
    for (guint i = 0; i < places->len; i++) {
        const SfPlace *place = g_ptr_array_index(places, i);
        for (guint n = 0; n < place->count && next < clones->len; n++) {
            sf_clone_move(g_ptr_array_index(clones, next++), sf_place_is_local(place) ? NULL : place->host);
        }
        if (!sf_place_is_local(place)) {
            ask(ticket, ticket->family->config, place->host, TRUE);
        }
    }
}

static void take_report(SfHostTicket *ticket, const char *host, JsonObject *report);

static void take_reports(SfHostTicket *ticket, const char *host, JsonObject *answer)
{
    JsonNode *node = json_object_get_member(answer, "clones");
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; array && i < MIN(json_array_get_length(array), SF_GP_MAX_CLONES); i++) {
        JsonNode *item = json_array_get_element(array, i);
        if (JSON_NODE_HOLDS_OBJECT(item)) {
            take_report(ticket, host, json_node_get_object(item));
        }
    }
}

static gboolean is_definite(const GError *error)
{
    return !g_error_matches(error, SF_PEER_ERROR, SF_PEER_ERROR_LOST) &&
           !g_error_matches(error, SF_PEER_ERROR, SF_PEER_ERROR_TIMEOUT);
}

static void on_ordered(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Call) call = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    SfHostTicket *ticket = call_ticket(call);

    if (!ticket || !ticket->fork) {
        return;
    }
    if (answer) {
        take_reports(ticket, call->peer, answer);
    } else if (is_definite(error)) {
        move_clones(ticket, call->peer, error->message);
    } else {
        SfPeer *peer = find_peer(call->host, call->peer);
        g_message("ticket %016" G_GINT64_MODIFIER "x: %s; waiting for the host to say what it did", ticket->grant->id,
                  error->message);
        if (peer && sf_peer_is_up(peer)) {
            sync_with(call->host, peer);
        }
    }
}

/* Its digest, for who is in the group: all of them get it at once. */
static void add_descriptor(SfBorrow *borrow, const char *host, GBytes *descriptor, JsonObject *params)
{
    if (!borrow->multicast || !g_hash_table_contains(borrow->in_group, host) ||
        !sf_place_descriptor_can_be_sent(descriptor)) {
        sf_place_descriptor_add(params, descriptor);
        return;
    }
    if (!borrow->descriptor_digest) {
        borrow->descriptor_digest = sf_place_descriptor_send(borrow->server, descriptor);
    }
    sf_place_descriptor_add_digest(params, descriptor, borrow->descriptor_digest);
}

static JsonObject *order_params(SfHostTicket *ticket, const char *host, GPtrArray *clones, GBytes *descriptor)
{
    JsonObject *params = params_of(ticket);
    JsonArray *ids = json_array_new();

    for (guint i = 0; i < clones->len; i++) {
        json_array_add_int_element(ids, ((SfClone *)g_ptr_array_index(clones, i))->id);
    }
    json_object_set_array_member(params, "ids", ids);
    json_object_set_int_member(params, "total", sf_fork_total(ticket->fork));
    json_object_set_boolean_member(params, "with_agent", sf_fork_with_agent(ticket->fork));
    json_object_set_int_member(params, "clone_request", sf_fork_clone_request(ticket->fork));
    json_object_set_boolean_member(params, "complete", sf_host_config(ticket->host)->cluster.complete);
    json_object_set_int_member(params, "identify_seconds", sf_host_config(ticket->host)->identify_seconds);
    json_object_set_string_member(params, "avoid", sf_avoid_to_text(ticket->grant->avoid));
    add_descriptor(ticket->borrow, host, descriptor, params);
    if (ticket->family->working_set) {
        sf_working_set_to_json(ticket->family->working_set, params, "working_set");
    }
    sf_networks_add_place(ticket, params);
    return params;
}

/* Has the clones of a host placed that wait for it. */
static void order(SfHostTicket *ticket, const char *host)
{
    g_autoptr(GPtrArray) clones = waiting_at(ticket, host);
    SfPeer *peer = find_peer(ticket->host, host);
    GPtrArray *disks = sf_fork_frozen_disks(ticket->fork);
    g_autoptr(GError) error = NULL;
    GBytes *descriptor;

    if (clones->len == 0) {
        return;
    }
    if (disks && disks->len > 0 && ticket->borrow->disks_state != DISKS_READY) {
        if (ticket->borrow->disks_state == DISKS_FAILED) {
            move_clones(ticket, host, "the disks can't be served");
            return;
        }
        g_ptr_array_add(ticket->borrow->waiting, g_strdup(host));
        if (ticket->borrow->disks_state == DISKS_STARTED) {
            add_disks(ticket);
        }
        return;
    }
    descriptor = descriptor_of(ticket, &error);
    if (!descriptor) {
        give_up(clones, SF_GP_STATE_FAILED, error->message);
        return;
    }
    if (!peer || !sf_peer_is_up(peer)) {
        move_clones(ticket, host, "it is not connected");
        return;
    }
    for (guint i = 0; i < clones->len; i++) {
        sf_clone_ordered(g_ptr_array_index(clones, i));
    }
    sf_peer_call_async(peer, "place", order_params(ticket, host, clones, descriptor), PLACE_MS, on_ordered,
                       call_new(ticket, host, 0));
}

void sf_borrow_descriptor_request(SfHost *host, SfPeerRequest *request)
{
    const char *from = sf_peer_request_from(request);
    JsonObject *params = sf_peer_request_params(request), *answer;
    SfHostTicket *ticket = ticket_of_text(host, json_object_get_string_member_with_default(params, "ticket", NULL));
    g_autoptr(GError) error = NULL;
    GBytes *descriptor;

    if (!ticket || sf_ticket_count_at(ticket->grant, from) == 0) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "no such ticket has a fork with places at host %s",
                    from);
        sf_peer_request_fail(request, error);
        return;
    }
    descriptor = descriptor_of(ticket, &error);
    if (!descriptor) {
        sf_peer_request_fail(request, error);
        return;
    }
    answer = json_object_new();
    sf_place_descriptor_add(answer, descriptor);
    sf_peer_request_reply(request, answer);
}

/* ---- SfForkRemote ---- */

static void remote_place(gpointer owner, SfFork *fork, const char *host)
{
    SfHostTicket *ticket = sf_host_ticket(owner, sf_fork_ticket(fork), NULL);

    if (ticket && ticket->borrow) {
        order(ticket, host);
    }
}

static void remote_kill(gpointer owner, SfClone *clone, const char *reason)
{
    SfPeer *peer = find_peer(owner, clone->host);
    g_autofree char *id = sf_ticket_id_to_text(sf_fork_ticket(clone->fork));
    JsonObject *params;

    if (!peer || !sf_peer_is_up(peer)) {
        return; /* sync tells it */
    }
    params = json_object_new();
    json_object_set_string_member(params, "ticket", id);
    json_object_set_int_member(params, "id", clone->id);
    json_object_set_string_member(params, "reason", reason ? reason : "");
    sf_peer_call_async(peer, "kill", params, ORDER_MS, ignore_answer, NULL);
}

SfForkRemote sf_borrow_remote(SfHost *host)
{
    return (SfForkRemote){ .owner = host, .place = remote_place, .kill = remote_kill };
}

/* ---- reports and results ---- */

static Fetch *fetch_of(SfBorrow *borrow, guint id)
{
    Fetch *fetch = g_hash_table_lookup(borrow->fetches, GUINT_TO_POINTER(id));

    if (!fetch) {
        fetch = g_new0(Fetch, 1);
        fetch->id = id;
        g_hash_table_insert(borrow->fetches, GUINT_TO_POINTER(id), fetch);
    }
    return fetch;
}

static void apply(SfHostTicket *ticket, Fetch *fetch)
{
    g_autoptr(JsonObject) object = g_steal_pointer(&fetch->report);
    SfClone *clone = sf_fork_clone(ticket->fork, fetch->id);
    SfCloneReport report;

    if (clone && sf_clone_report_parse(object, &report, NULL)) {
        sf_clone_apply_report(clone, &report);
    }
}

/* The result that the newest report tells of, if we have not got it; then the report. */
static void fetch_review(SfHostTicket *ticket, Fetch *fetch)
{
    SfCloneReport report;

    if (fetch->running || !fetch->report || !sf_clone_report_parse(fetch->report, &report, NULL)) {
        return;
    }
    if (report.synced && report.synced > fetch->done) {
        fetch->running = TRUE;
        fetch->serial = report.synced;
        fetch->offset = 0;
        fetch_step(ticket, fetch);
    } else {
        apply(ticket, fetch);
    }
}

/* One piece has come. FALSE + error: it is not what was asked for. */
static gboolean take_piece(SfHostTicket *ticket, Fetch *fetch, JsonObject *answer, gboolean *whole, GError **error)
{
    SfClone *clone = sf_fork_clone(ticket->fork, fetch->id);
    const char *text = json_object_get_string_member_with_default(answer, "data", "");
    gint64 total = json_object_get_int_member_with_default(answer, "total", -1);
    gint64 serial = json_object_get_int_member_with_default(answer, "synced", 0);
    g_autofree guchar *data = NULL;
    gsize length;

    *whole = FALSE;
    if (serial > fetch->serial) { /* it has handed back another one meanwhile */
        fetch->serial = serial;
        fetch->offset = 0;
        return TRUE;
    }
    data = g_base64_decode(text ? text : "", &length);
    if (total < 0 || length > RESULT_PIECE || (guint64)total > SF_GP_MAX_RESULT ||
        (length == 0 && fetch->offset < (guint64)total)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "it is not the piece that was asked for");
        return FALSE;
    }
    if (!sf_fork_clone_sync(clone, fetch->offset, (guint64)total, data, length, error)) {
        return FALSE;
    }
    fetch->offset += length;
    *whole = fetch->offset == (guint64)total;
    return TRUE;
}

static void on_piece(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Call) call = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    SfHostTicket *ticket = call_ticket(call);
    Fetch *fetch = ticket ? g_hash_table_lookup(ticket->borrow->fetches, GUINT_TO_POINTER(call->count)) : NULL;
    gboolean whole = FALSE;

    if (!fetch || !fetch->running) {
        return;
    }
    if (!answer && (!is_definite(error) || g_error_matches(error, SF_PEER_ERROR, SF_PEER_ERROR_NOT_UP))) {
        fetch->running = FALSE; /* sync begins it anew */
        return;
    }
    if (!answer || !take_piece(ticket, fetch, answer, &whole, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x clone %u: its result can't be fetched from host %s: %s",
                  ticket->grant->id, fetch->id, call->peer, error->message);
        whole = TRUE;
    }
    if (!whole) {
        fetch_step(ticket, fetch);
        return;
    }
    fetch->running = FALSE;
    fetch->done = fetch->serial;
    fetch_review(ticket, fetch);
}

static void fetch_step(SfHostTicket *ticket, Fetch *fetch)
{
    SfClone *clone = sf_fork_clone(ticket->fork, fetch->id);
    SfPeer *peer = clone->host ? find_peer(ticket->host, clone->host) : NULL;
    JsonObject *params;

    if (!peer) {
        fetch->running = FALSE;
        return;
    }
    params = params_of(ticket);
    json_object_set_int_member(params, "id", fetch->id);
    json_object_set_int_member(params, "offset", (gint64)fetch->offset);
    json_object_set_int_member(params, "length", RESULT_PIECE);
    sf_peer_call_async(peer, "result", params, RESULT_MS, on_piece, call_new(ticket, clone->host, fetch->id));
}

/* What a host says of a clone that is there. */
static void take_report(SfHostTicket *ticket, const char *host, JsonObject *object)
{
    g_autoptr(GError) error = NULL;
    SfCloneReport report;
    SfClone *clone;
    Fetch *fetch;

    if (!sf_clone_report_parse(object, &report, &error)) {
        g_warning("host %s: ticket %016" G_GINT64_MODIFIER "x: %s", host, ticket->grant->id, error->message);
        return;
    }
    clone = sf_fork_clone(ticket->fork, report.id);
    if (!clone || g_strcmp0(clone->host, host) != 0) {
        return; /* it was moved elsewhere, or is none of that host's */
    }
    if (!sf_clone_is_alive(clone)) {
        if (report.state == SF_GP_STATE_STARTING || report.state == SF_GP_STATE_RUNNING) {
            remote_kill(ticket->host, clone, clone->reason);
        }
        return;
    }
    fetch = fetch_of(ticket->borrow, report.id);
    g_clear_pointer(&fetch->report, json_object_unref);
    fetch->report = json_object_ref(object);
    fetch_review(ticket, fetch);
}

/* ---- memory that is all there ---- */

gboolean sf_borrow_is_complete_at(const SfHostTicket *ticket, const char *host)
{
    return ticket->borrow && g_hash_table_contains(ticket->borrow->complete, host);
}

gboolean sf_borrow_is_complete(SfHostTicket *ticket)
{
    for (guint i = 0; ticket->borrow && ticket->fork && i < sf_fork_count(ticket->fork); i++) {
        const SfClone *clone = sf_fork_nth(ticket->fork, i);
        if (clone->host && sf_clone_is_alive(clone) && !sf_borrow_is_complete_at(ticket, clone->host)) {
            return FALSE;
        }
    }
    return TRUE;
}

void sf_borrow_complete(SfHostTicket *ticket)
{
    g_autoptr(GPtrArray) hosts = host_names(ticket);

    for (guint i = 0; ticket->borrow && i < hosts->len; i++) {
        tell(ticket, g_ptr_array_index(hosts, i), "complete", params_of(ticket));
    }
}

/* The last host that lacked some needs no source: the snapshot is not kept for it any more. */
static void take_complete(SfHostTicket *ticket, const char *host)
{
    if (sf_ticket_count_at(ticket->grant, host) == 0 || sf_fork_is_done(ticket->fork)) {
        return;
    }
    g_hash_table_add(ticket->borrow->complete, g_strdup(host));
    if (sf_borrow_is_complete(ticket) && sf_fork_state(ticket->fork) == SF_FORK_RUNNING) {
        g_message("ticket %016" G_GINT64_MODIFIER "x: its clones on other hosts have all of their memory",
                  ticket->grant->id);
        withdraw_pages(ticket->borrow);
        sf_fork_source_done(ticket->fork);
    }
}

/* What a clone there needed first: given to the hosts of the next forks. The longest is kept. */
static void take_working_set(SfHostTicket *ticket, JsonObject *data)
{
    g_autoptr(GBytes) runs = sf_working_set_from_json(data, "runs");
    SfFamily *family = ticket->family;

    if (runs && (!family->working_set || g_bytes_get_size(runs) > g_bytes_get_size(family->working_set))) {
        sf_host_family_set_working_set(ticket->host, family, runs); /* checked by who uses it */
        if (ticket->saved) {
            sf_snapshots_note_working_set(sf_snapshots_of(ticket->host), ticket->saved, runs);
        }
    }
}

/* The ticket that a peer speaks of, if it is one of ours that has clones. */
static SfHostTicket *ticket_of_text(SfHost *host, const char *text)
{
    guint64 id;
    SfHostTicket *ticket = text && sf_ticket_id_from_text(text, &id) ? sf_host_ticket(host, id, NULL) : NULL;

    return ticket && ticket->borrow && ticket->fork ? ticket : NULL;
}

void sf_borrow_event(SfHost *host, SfPeer *peer, const char *name, JsonObject *data)
{
    SfHostTicket *ticket = ticket_of_text(host, json_object_get_string_member_with_default(data, "ticket", NULL));
    JsonNode *node = json_object_get_member(data, "clone");

    if (strcmp(name, "clone") == 0 && ticket && node && JSON_NODE_HOLDS_OBJECT(node)) {
        take_report(ticket, sf_peer_name(peer), json_node_get_object(node));
    } else if (strcmp(name, "complete") == 0 && ticket) {
        take_complete(ticket, sf_peer_name(peer));
    } else if (strcmp(name, "working-set") == 0 && ticket && sf_ticket_count_at(ticket->grant, sf_peer_name(peer))) {
        take_working_set(ticket, data);
    }
}

/* ---- after a connection was made ---- */

/* Those of our clones that should be on the host and are not in its answer. */
static void settle_missing(SfHostTicket *ticket, const char *host, gboolean known, JsonObject *entry)
{
    g_autoptr(GHashTable) told = g_hash_table_new(NULL, NULL);
    g_autoptr(GPtrArray) missing = g_ptr_array_new();
    JsonNode *node = entry ? json_object_get_member(entry, "clones") : NULL;
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
    g_autofree char *reason = g_strdup_printf("host %s does not know it any more", host);

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *item = json_array_get_element(array, i);
        if (JSON_NODE_HOLDS_OBJECT(item)) {
            gint64 id = json_object_get_int_member_with_default(json_node_get_object(item), "id", 0);
            g_hash_table_add(told, GINT_TO_POINTER((gint)id));
        }
    }
    for (guint i = 0; i < sf_fork_count(ticket->fork); i++) {
        SfClone *clone = sf_fork_nth(ticket->fork, i);
        if (g_strcmp0(clone->host, host) == 0 && sf_clone_is_alive(clone) && !sf_clone_is_being_placed(clone) &&
            !g_hash_table_contains(told, GUINT_TO_POINTER(clone->id))) {
            g_ptr_array_add(missing, clone);
        }
    }
    give_up(missing, SF_GP_STATE_LOST, reason);
    if (!known) {
        move_clones(ticket, host, "it does not know the ticket any more");
    } else if (!array || json_array_get_length(array) == 0) {
        order(ticket, host); /* the order did not reach it */
    }
}

static void on_synced(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Call) call = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    g_autoptr(GHashTable) entries = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GList) tickets = NULL;
    JsonNode *node = answer ? json_object_get_member(answer, "tickets") : NULL;
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    if (!array) {
        g_message("host %s: sync: %s", call->peer, error ? error->message : "its answer is malformed");
        return;
    }
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *item = json_array_get_element(array, i);
        JsonObject *entry = JSON_NODE_HOLDS_OBJECT(item) ? json_node_get_object(item) : NULL;
        const char *id = entry ? json_object_get_string_member_with_default(entry, "ticket", NULL) : NULL;
        if (id) {
            g_hash_table_insert(entries, (gpointer)id, entry);
        }
    }
    tickets = sf_host_tickets(call->host);
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);
        JsonObject *entry = g_hash_table_lookup(entries, id);
        if (!ticket->borrow || !ticket->fork || sf_fork_is_done(ticket->fork) ||
            sf_fork_state(ticket->fork) == SF_FORK_SNAPSHOT) {
            continue;
        }
        if (entry) {
            take_reports(ticket, call->peer, entry);
        }
        settle_missing(ticket, call->peer, entry != NULL, entry);
        if (entry && json_object_get_boolean_member_with_default(entry, "complete", FALSE)) {
            take_complete(ticket, call->peer);
        }
    }
}

/* Does the ticket concern that host? */
static gboolean concerns(SfHostTicket *ticket, const char *host)
{
    return ticket->borrow && sf_ticket_count_at(ticket->grant, host) > 0;
}

static void sync_with(SfHost *host, SfPeer *peer)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    JsonObject *params = json_object_new();
    JsonArray *array = json_array_new();
    Call *call = g_new0(Call, 1);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (concerns(ticket, sf_peer_name(peer))) {
            g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);
            json_array_add_string_element(array, id);
        }
    }
    json_object_set_array_member(params, "tickets", array);
    call->host = g_object_ref(host);
    call->peer = g_strdup(sf_peer_name(peer));
    sf_peer_call_async(peer, "sync", params, SYNC_MS, on_synced, call);
}

/* ---- hosts that stay away ---- */

typedef struct {
    SfHost *host; /* outlives the timer: the timers are its data */
    char *peer;
    guint source;
} Away;

static void away_free(gpointer data)
{
    Away *away = data;

    g_clear_handle_id(&away->source, g_source_remove);
    g_free(away->peer);
    g_free(away);
}

static GHashTable *away_timers(SfHost *host)
{
    return sf_host_table(host, AWAY_TIMERS, g_str_hash, g_str_equal, NULL, away_free);
}

static void lose_clones(SfHostTicket *ticket, const char *host, const char *reason)
{
    g_autoptr(GPtrArray) clones = g_ptr_array_new();

    for (guint i = 0; ticket->fork && i < sf_fork_count(ticket->fork); i++) {
        SfClone *clone = sf_fork_nth(ticket->fork, i);
        if (g_strcmp0(clone->host, host) == 0 && sf_clone_is_alive(clone)) {
            g_ptr_array_add(clones, clone);
        }
    }
    give_up(clones, SF_GP_STATE_LOST, reason);
}

static gboolean on_away(gpointer data)
{
    Away *away = data;
    SfHost *host = away->host;
    g_autofree char *peer = g_strdup(away->peer);
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autofree char *reason =
        g_strdup_printf("host %s has not been heard of for %u s", peer, sf_host_config(host)->cluster.away_seconds);

    away->source = 0;
    g_hash_table_remove(away_timers(host), peer);
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (concerns(ticket, peer)) {
            lose_clones(ticket, peer, reason);
        }
    }
    return G_SOURCE_REMOVE;
}

static void await_peer(SfHost *host, const char *name)
{
    GHashTable *timers = away_timers(host);
    Away *away;

    if (g_hash_table_contains(timers, name)) {
        return;
    }
    away = g_new0(Away, 1);
    away->host = host;
    away->peer = g_strdup(name);
    away->source = g_timeout_add_seconds(sf_host_config(host)->cluster.away_seconds, on_away, away);
    g_hash_table_insert(timers, away->peer, away);
}

void sf_borrow_peer_up(SfHost *host, SfPeer *peer)
{
    g_hash_table_remove(away_timers(host), sf_peer_name(peer));
    sync_with(host, peer);
    sf_networks_spread_all(host);
}

void sf_borrow_peer_down(SfHost *host, SfPeer *peer)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        if (concerns(item->data, sf_peer_name(peer))) {
            await_peer(host, sf_peer_name(peer));
            return;
        }
    }
}

/* ---- end, restart ---- */

void sf_borrow_done(SfHostTicket *ticket)
{
    if (ticket->borrow) {
        stop_serving(ticket->borrow);
    }
}

void sf_borrow_release(SfHostTicket *ticket)
{
    g_autoptr(GPtrArray) hosts = host_names(ticket);

    for (guint i = 0; ticket->borrow && i < hosts->len; i++) {
        tell(ticket, g_ptr_array_index(hosts, i), "release", params_of(ticket));
    }
    if (ticket->borrow) {
        withdraw_pages(ticket->borrow);
    }
}

void sf_borrow_save(SfHostTicket *ticket, JsonObject *record)
{
    if (ticket->borrow) {
        json_object_set_int_member(record, "pages_port", ticket->borrow->port);
        json_object_set_int_member(record, "disks_port", ticket->borrow->disks_port);
        json_object_set_int_member(record, "multicast_receivers",
                                   sf_multicast_last_receiver(ticket->borrow->multicast));
    }
}

static void recover_server(SfHostTicket *ticket, const char *id, JsonObject *record)
{
    SfBorrow *borrow = ticket->borrow;
    g_autoptr(GError) error = NULL;
    g_autoptr(GError) start_error = NULL;

    if (ticket->saved) {
        borrow->server = ticket->pager ? g_object_ref(ticket->pager) : NULL;
        borrow->shared = TRUE;
        return;
    }
    borrow->server = sf_pager_adopt(sf_host_config(ticket->host)->launcher.run_directory, id, &error);
    if (!borrow->server) {
        g_message("ticket %016" G_GINT64_MODIFIER "x: %s; its memory is served anew", ticket->grant->id,
                  error->message);
        if (!start_server(borrow, &start_error)) {
            g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, start_error->message);
        } else {
            allow_hosts(ticket->host, borrow->server);
        }
    } else {
        gint64 last = json_object_get_int_member_with_default(record, "multicast_receivers", 0);
        borrow->multicast = sf_multicast_recover(borrow->server, (guint)last);
        borrow->no_multicast = !borrow->multicast;
    }
}

void sf_borrow_recover_subject(SfHostTicket *ticket, const SfBorrowSubject *subject)
{
    if (ticket->borrow) {
        note_subject(ticket->borrow, subject);
    }
}

void sf_borrow_recover(SfHostTicket *ticket, JsonObject *record)
{
    g_autoptr(GPtrArray) hosts = host_names(ticket);
    g_autofree char *id = g_strdup_printf(SNAPSHOT_FORMAT, ticket->grant->id);
    SfBorrow *borrow;

    if (hosts->len == 0 || ticket->grant->origin) {
        return;
    }
    borrow = borrow_new(ticket);
    borrow->port = (guint)json_object_get_int_member_with_default(record, "pages_port", 0);
    borrow->disks_port = (guint)json_object_get_int_member_with_default(record, "disks_port", 0);
    recover_server(ticket, id, record);
    borrow->disks = sf_disk_server_find(sf_host_launcher(ticket->host), id);
    borrow->disks_state = !borrow->disks                           ? DISKS_NONE
                          : sf_disk_server_is_waiting(borrow->disks) ? DISKS_STARTED
                                                                     : DISKS_READY;
    for (guint i = 0; i < hosts->len; i++) {
        await_peer(ticket->host, g_ptr_array_index(hosts, i));
    }
}

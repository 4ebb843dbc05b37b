/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What other hosts fetch from: the sf-pager that serves a ticket's memory, and the disk server.
 *
 * Both listen from the ticket on, so that hosts are connected when the snapshot comes. Of a saved snapshot the sf-pager
 * is shared: several tickets' hosts may fetch from it, and it ends with the last ticket.
 *
 *     disks   NONE   STARTING --> STARTED --> ADDING (the frozen ones) --> READY
 *                        +-----------+---------> FAILED: the clones go elsewhere
 */
#include "sfvmm/control/borrow_private.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#define LISTEN_BACKLOG 64

/* ---- memory ---- */

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
gboolean sf_borrow_start_server(SfBorrow *borrow, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(borrow->ticket->host);
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, borrow->ticket->grant->id);
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
gboolean sf_borrow_share_server(SfBorrow *borrow, SfPager *pager, GError **error)
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

/* Those hosts that tickets with this server have places on: of a saved snapshot's there may be several. */
void sf_borrow_allow_hosts(SfHost *host, SfPager *server)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autoptr(GError) error = NULL;

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (ticket->borrow && ticket->borrow->server == server) {
            g_ptr_array_extend_and_steal(names, sf_borrow_hosts(ticket));
        }
    }
    g_ptr_array_add(names, NULL);
    if (!sf_pager_allow(server, (const char *const *)names->pdata, &error)) {
        g_warning("%s", error->message);
    }
}

void sf_borrow_stop_pages(SfBorrow *borrow)
{
    g_clear_pointer(&borrow->multicast, sf_multicast_free);
    if (borrow->server && !borrow->shared) {
        sf_pager_stop(borrow->server);
    }
    g_clear_object(&borrow->server);
}

/* The hosts of this ticket need no pages any more; those of others may. */
void sf_borrow_withdraw_pages(SfBorrow *borrow)
{
    g_autoptr(SfPager) shared = borrow->shared ? g_steal_pointer(&borrow->server) : NULL;

    if (shared) {
        sf_borrow_allow_hosts(borrow->ticket->host, shared);
    } else {
        sf_borrow_stop_pages(borrow);
    }
}

void sf_borrow_recover_server(SfHostTicket *ticket, const char *id, JsonObject *record)
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
        if (!sf_borrow_start_server(borrow, &start_error)) {
            g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, start_error->message);
        } else {
            sf_borrow_allow_hosts(ticket->host, borrow->server);
        }
    } else {
        gint64 last = json_object_get_int_member_with_default(record, "multicast_receivers", 0);
        borrow->multicast = sf_multicast_recover(borrow->server, (guint)last);
        borrow->no_multicast = !borrow->multicast;
    }
}

/* ---- disks ---- */

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

/* The disks are served, or never will be: the hosts that waited for it get their orders. */
static void disks_settled(SfHostTicket *ticket, const char *failure)
{
    g_autoptr(GPtrArray) hosts = g_steal_pointer(&ticket->borrow->waiting);

    ticket->borrow->disks_state = failure ? SF_BORROW_DISKS_FAILED : SF_BORROW_DISKS_READY;
    ticket->borrow->waiting = g_ptr_array_new_with_free_func(g_free);
    for (guint i = 0; i < hosts->len; i++) {
        if (failure) {
            sf_borrow_move_clones(ticket, g_ptr_array_index(hosts, i), failure);
        } else {
            sf_borrow_order(ticket, g_ptr_array_index(hosts, i));
        }
    }
}

static void on_disks_added(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfBorrowCall) call = data;
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_borrow_call_ticket(call);
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
        g_ptr_array_add(names, g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT "/%s", ticket->grant->id, chain->id));
        export.name = g_ptr_array_index(names, names->len - 1);
        g_array_append_val(exports, export);
    }
    return exports;
}

static gboolean on_idle_for_descriptor(gpointer data)
{
    SfHostTicket *ticket = sf_borrow_call_ticket(data);

    if (ticket && ticket->fork) {
        sf_borrow_descriptor(ticket, NULL); /* what is wrong with it is told when it is needed */
    }
    return G_SOURCE_REMOVE;
}

/* While the disk server works on it, the descriptor is made. */
void sf_borrow_add_disks(SfHostTicket *ticket)
{
    SfBorrow *borrow = ticket->borrow;
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) exports = exports_of(ticket, sf_fork_frozen_disks(ticket->fork), FALSE, names);

    borrow->disks_state = SF_BORROW_DISKS_ADDING;
    sf_disk_server_add_async(borrow->disks, (const SfDiskExport *)exports->data, exports->len, on_disks_added,
                             sf_borrow_call_new(ticket, "", 0));
    g_idle_add_full(G_PRIORITY_DEFAULT, on_idle_for_descriptor, sf_borrow_call_new(ticket, "", 0),
                    (GDestroyNotify)sf_borrow_call_free);
}

static void on_disk_server(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfBorrowCall) call = data;
    g_autoptr(GError) error = NULL;
    SfDiskServer *server = sf_disk_server_start_finish(result, &error);
    SfHostTicket *ticket = sf_borrow_call_ticket(call);

    if (!ticket) {
        g_clear_pointer(&server, sf_disk_server_unref);
        return;
    }
    ticket->borrow->disks = server;
    ticket->borrow->disks_state = server ? SF_BORROW_DISKS_STARTED : SF_BORROW_DISKS_FAILED;
    if (!server) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: its disks can't be served to other hosts: %s", ticket->grant->id,
                  error->message);
    }
    sf_borrow_reserve_review(ticket);
    ticket = sf_borrow_call_ticket(call); /* a ticket that no host takes has been released by that */
    if (!ticket || ticket->borrow->waiting->len == 0) {
        return;
    }
    if (server) {
        sf_borrow_add_disks(ticket);
    } else {
        disks_settled(ticket, error->message);
    }
}

void sf_borrow_start_disk_server(SfHostTicket *ticket, GPtrArray *disks)
{
    const SfDaemonConfig *config = sf_host_config(ticket->host);
    SfBorrow *borrow = ticket->borrow;
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, ticket->grant->id);
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
        borrow->disks_state = SF_BORROW_DISKS_FAILED;
        return;
    }
    g_ptr_array_add(allowed, NULL);
    options.allowed = (const char *const *)allowed->pdata;
    borrow->disks_state = SF_BORROW_DISKS_STARTING;
    sf_disk_server_start_async(sf_host_launcher(ticket->host), &options, (const SfDiskExport *)exports->data,
                               exports->len, on_disk_server, sf_borrow_call_new(ticket, "", 0));
    close(fd);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/host.h"

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/describe.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/networks.h"

#define US_PER_MS 1000

G_DEFINE_FINAL_TYPE(SfHost, sf_host, G_TYPE_OBJECT)
G_DEFINE_QUARK(sf - host - error - quark, sf_host_error)

void sf_host_event(SfHost *host, const char *name, JsonObject *data)
{
    g_signal_emit_by_name(host, "event", name, data);
    json_object_unref(data);
}

void sf_host_set_peers(SfHost *host, SfPeers *peers)
{
    host->peers = peers;
}

SfPeers *sf_host_peers(SfHost *host)
{
    return host->peers;
}

SfPeer *sf_host_peer(SfHost *host, const char *name)
{
    return host->peers ? sf_peers_get(host->peers, name) : NULL;
}

SfResourceManager *sf_host_manager(SfHost *host)
{
    return host->manager;
}

const SfDaemonConfig *sf_host_config(SfHost *host)
{
    return host->config;
}

SfLauncher *sf_host_launcher(SfHost *host)
{
    return host->launcher;
}

SfNetworks *sf_host_networks(SfHost *host)
{
    return host->networks;
}

gint64 sf_host_uptime_ms(SfHost *host)
{
    return (g_get_monotonic_time() - host->started) / US_PER_MS;
}

char *sf_host_path(SfHost *host, const char *folder, const char *name)
{
    return g_build_filename(host->config->launcher.run_directory, folder, name, NULL);
}

GHashTable *sf_host_table(SfHost *host, const char *key, GHashFunc hash, GEqualFunc equal, GDestroyNotify free_key,
                          GDestroyNotify free_value)
{
    GHashTable *table = g_object_get_data(G_OBJECT(host), key);

    if (!table) {
        table = g_hash_table_new_full(hash, equal, free_key, free_value);
        g_object_set_data_full(G_OBJECT(host), key, table, (GDestroyNotify)g_hash_table_unref);
    }
    return table;
}

/* ---- life ---- */

/* Its scheduler has ended what it gave for a ticket. */
static void on_revoked(guint64 id, const char *reason, gpointer owner)
{
    SfHost *host = owner;
    SfHostTicket *ticket = sf_host_ticket(host, id, NULL);

    if (!ticket) {
        return;
    }
    g_message("ticket %016" G_GINT64_MODIFIER "x: %s", id, reason);
    g_free(ticket->grant->revoked);
    ticket->grant->revoked = g_strdup(reason);
    sf_host_ticket_save(ticket);
    sf_host_event(host, "ticket.revoked", sf_describe_ticket(ticket));
    if (ticket->fork) {
        sf_fork_kill(ticket->fork, reason);
    }
}

static void sf_host_init(SfHost *host)
{
    host->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, sf_host_vm_free);
    host->starting = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    host->families = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, sf_host_family_free);
    host->tickets = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, sf_host_ticket_free);
}

static void sf_host_finalize(GObject *object)
{
    SfHost *host = SF_HOST(object);

    g_hash_table_unref(host->tickets);
    g_hash_table_unref(host->vms);
    g_hash_table_unref(host->families);
    g_hash_table_unref(host->starting);
    sf_resource_manager_free(host->manager);
    sf_networks_free(host->networks);
    sf_launcher_free(host->launcher);
    G_OBJECT_CLASS(sf_host_parent_class)->finalize(object);
}

static void sf_host_class_init(SfHostClass *class)
{
    GType type = G_TYPE_FROM_CLASS(class);

    G_OBJECT_CLASS(class)->finalize = sf_host_finalize;
    g_signal_new("event", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 2, G_TYPE_STRING, G_TYPE_POINTER);
    g_signal_new("guest-message", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 3, G_TYPE_POINTER,
                 G_TYPE_POINTER, G_TYPE_POINTER);
    g_signal_new("vm-exited", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_POINTER);
}

SfHost *sf_host_new(const SfDaemonConfig *config, SfLauncher *launcher, SfResourceManager *manager)
{
    SfHost *host = g_object_new(SF_TYPE_HOST, NULL);

    host->config = config;
    host->launcher = launcher;
    host->manager = manager;
    host->started = g_get_monotonic_time();
    host->remote = sf_borrow_remote(host);
    host->networks = sf_networks_new(host, launcher);
    sf_resource_manager_set_revoked_handler(manager, on_revoked, host);
    return host;
}

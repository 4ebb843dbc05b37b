/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Families: what a VM, its shells and its clones have in common. On record in RUNDIR/families/NAME.json. When the last
 * clone has gone, the VM's memory and disks are made one again.
 */
#include <glib/gstdio.h>
#include <string.h>

#include "sfvmm/control/host_private.h"
#include "sfvmm/control/networks.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/wire/state_file.h"

static char *family_path(SfHost *host, const char *name)
{
    g_autofree char *file = g_strconcat(name, ".json", NULL);

    return sf_host_path(host, "families", file);
}

void sf_host_family_save(SfHost *host, SfFamily *family)
{
    g_autofree char *path = family_path(host, family->name);
    g_autoptr(JsonObject) object = json_object_new();
    g_autoptr(GError) error = NULL;

    json_object_set_object_member(object, "config", sf_vm_config_to_json(family->config));
    json_object_set_int_member(object, "pool", family->pool_target);
    json_object_set_int_member(object, "user", family->user);
    if (family->working_set) {
        sf_working_set_to_json(family->working_set, object, "working_set");
    }
    if (family->network) {
        json_object_set_object_member(object, "network", json_object_ref(family->network));
    }
    if (!sf_state_write(path, object, &error)) {
        g_warning("family \"%s\": %s", family->name, error->message);
    }
}

SfFamily *sf_host_family_new(SfHost *host, const char *name, guint32 user, SfVmConfig *config, guint pool_target)
{
    SfFamily *family = g_new0(SfFamily, 1);

    family->name = g_strdup(name);
    family->user = user;
    family->config = sf_vm_config_ref(config);
    family->pool_target = pool_target;
    family->pool = sf_shell_pool_new(host->launcher, name, config, 0);
    g_hash_table_insert(host->families, family->name, family);
    sf_host_family_save(host, family);
    return family;
}

SfFamily *sf_host_family(SfHost *host, const char *name)
{
    return g_hash_table_lookup(host->families, name);
}

static gint by_family_name(gconstpointer a, gconstpointer b)
{
    return strcmp(((const SfFamily *)a)->name, ((const SfFamily *)b)->name);
}

GList *sf_host_families(SfHost *host)
{
    return g_list_sort(g_hash_table_get_values(host->families), by_family_name);
}

void sf_host_family_free(gpointer data)
{
    SfFamily *family = data;

    g_clear_handle_id(&family->settle_timer, g_source_remove);
    sf_shell_pool_close(family->pool);
    sf_shell_pool_unref(family->pool);
    sf_vm_config_unref(family->config);
    g_clear_pointer(&family->working_set, g_bytes_unref);
    g_clear_pointer(&family->network, json_object_unref);
    g_free(family->name);
    g_free(family);
}

void sf_host_family_set_working_set(SfHost *host, SfFamily *family, GBytes *runs)
{
    g_clear_pointer(&family->working_set, g_bytes_unref);
    family->working_set = g_bytes_ref(runs);
    sf_host_family_save(host, family);
}

void sf_host_family_join(SfFamily *family)
{
    family->members++;
}

void sf_host_family_leave(SfHost *host, SfFamily *family)
{
    g_assert(family->members > 0);
    if (--family->members == 0) {
        g_autofree char *path = family_path(host, family->name);
        g_autofree char *name = g_strdup(family->name);
        g_unlink(path);
        g_hash_table_remove(host->families, name);
        sf_networks_close(host->networks, name); /* behind its shells */
    }
}

void sf_host_set_pool(SfHost *host, SfFamily *family, guint target)
{
    family->pool_target = target;
    sf_shell_pool_set_target(family->pool, target);
    sf_host_family_save(host, family);
}

/* ---- memory and disks are made one again ---- */

/* A fork of the family's root that has not taken its snapshot yet, or is placing clones from it. */
static gboolean family_is_forking(SfHost *host, SfFamily *family)
{
    GHashTableIter iter;
    SfHostTicket *ticket;

    g_hash_table_iter_init(&iter, host->tickets);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&ticket)) {
        if (ticket->family == family && ticket->fork && !sf_fork_is_placed(ticket->fork)) {
            return TRUE;
        }
    }
    return FALSE;
}

typedef struct {
    SfHost *host;
    SfFamily *family;
} SettleCall;

static void on_settled(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autofree SettleCall *call = data;
    g_autoptr(SfHost) host = call->host;
    g_autoptr(GError) error = NULL;

    call->family->settling = FALSE;
    if (!sf_vm_settle_finish(SF_VM(source), result, &error) && !g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_GONE)) {
        g_message("VM \"%s\": memory and disks stay layered for now: %s", call->family->name, error->message);
    }
    sf_host_family_leave(host, call->family);
}

static gboolean on_settle_timer(gpointer data)
{
    SettleCall *timer = data;
    SfFamily *family = timer->family;
    SettleCall *call;

    family->settle_timer = 0;
    if (family->settling || !family->root || sf_vm_is_gone(family->root) ||
        sf_ram_base_in_use(sf_vm_ram_base(family->root)) || family_is_forking(timer->host, family)) {
        return G_SOURCE_REMOVE; /* the end of the next clone asks again */
    }
    family->settling = TRUE;
    sf_host_family_join(family);
    call = g_new0(SettleCall, 1);
    call->host = g_object_ref(timer->host);
    call->family = family;
    sf_vm_settle_async(family->root, on_settled, call);
    return G_SOURCE_REMOVE;
}

void sf_host_family_settle_later(SfHost *host, SfFamily *family)
{
    SettleCall *timer;

    if (family->settle_timer || !family->root) {
        return;
    }
    timer = g_new0(SettleCall, 1);
    timer->host = host;
    timer->family = family;
    family->settle_timer = g_timeout_add_full(G_PRIORITY_LOW, host->config->settle_ms, on_settle_timer, timer, g_free);
}

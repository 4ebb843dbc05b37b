/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     worker thread:  all running domains --> those whose lineage names our run directory  (takes seconds)
 *     main thread:    ... that nobody watches then                                         --> destroyed
 *
 * Shells go on being made while libvirtd lists. So what it has listed is compared with what is known after that, not
 * before; whoever is about to make a domain watches it already (domain.h).
 */
#include "sfvmm/vm/domain_sweep.h"

#include "sfvmm/vm/domain.h"

typedef struct {
    SfLibvirt *libvirt;
    char *owner;
} Sweep;

typedef struct {
    char *name, *uuid;
} Found;

static void sweep_free(gpointer data)
{
    Sweep *sweep = data;

    g_free(sweep->owner);
    g_free(sweep);
}

static void found_free(gpointer data)
{
    Found *found = data;

    g_free(found->name);
    g_free(found->uuid);
    g_free(found);
}

/* NULL: it is not ours, or has just gone. */
static Found *look_at(const Sweep *sweep, virDomainPtr domain)
{
    char uuid[VIR_UUID_STRING_BUFLEN];
    char *metadata = virDomainGetMetadata(domain, VIR_DOMAIN_METADATA_ELEMENT, SF_DOMAIN_METADATA_URI, 0);
    g_autofree char *owner = metadata ? sf_domain_lineage_owner(metadata) : NULL;
    Found *found;

    free(metadata);
    if (g_strcmp0(owner, sweep->owner) != 0 || virDomainGetUUIDString(domain, uuid) < 0) {
        return NULL;
    }
    found = g_new0(Found, 1);
    found->name = g_strdup(virDomainGetName(domain));
    found->uuid = g_strdup(uuid);
    return found;
}

static void list_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    const Sweep *sweep = data;
    GPtrArray *ours = g_ptr_array_new_with_free_func(found_free);
    GError *error = NULL;
    virConnectPtr connection = sf_libvirt_connect(sweep->libvirt, SF_LIBVIRT_SLOW, &error);
    virDomainPtr *domains = NULL;
    int n = connection ? virConnectListAllDomains(connection, &domains, VIR_CONNECT_LIST_DOMAINS_ACTIVE) : -1;

    if (connection && n < 0) {
        (void)!sf_libvirt_fail(&error, "its domains");
    }
    for (int i = 0; i < n; i++) {
        Found *found = look_at(sweep, domains[i]);
        if (found) {
            g_ptr_array_add(ours, found);
        }
        virDomainFree(domains[i]);
    }
    free(domains);
    if (connection) {
        virConnectClose(connection);
    }
    if (error) {
        g_ptr_array_unref(ours);
        g_task_return_error(task, error);
    } else {
        g_task_return_pointer(task, ours, (GDestroyNotify)g_ptr_array_unref);
    }
}

static void on_listed(GObject *source, GAsyncResult *result, gpointer data)
{
    const Sweep *sweep = g_task_get_task_data(G_TASK(result));
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) ours = g_task_propagate_pointer(G_TASK(result), &error);

    if (error) {
        g_message("libvirt %s: domains that an earlier sfvmmd may have left are not looked for: %s",
                  sf_libvirt_uri(sweep->libvirt), error->message);
        return;
    }
    for (guint i = 0; i < ours->len; i++) {
        const Found *found = g_ptr_array_index(ours, i);
        if (!sf_libvirt_is_watched(sweep->libvirt, found->uuid)) {
            SfDomain *domain = sf_domain_new(sweep->libvirt, found->name, found->uuid, TRUE);
            g_message("domain %s: nobody has it since an earlier sfvmmd ended; it is destroyed", found->name);
            sf_domain_destroy(domain);
            sf_domain_unref(domain);
        }
    }
}

void sf_domain_sweep(SfLibvirt *libvirt, const char *owner)
{
    g_autoptr(GTask) task = g_task_new(NULL, NULL, on_listed, NULL);
    Sweep *sweep = g_new0(Sweep, 1);

    sweep->libvirt = libvirt;
    sweep->owner = g_strdup(owner);
    g_task_set_task_data(task, sweep, sweep_free);
    g_task_run_in_thread(task, list_thread);
}

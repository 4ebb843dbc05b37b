/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * An sf-pager that lives has all of this in its ledger, and gives it to the next sfvmmd. Only when both are gone is the
 * record needed: the page cache is a memfd that the clones' QEMUs still map, and their userfaultfds are taken out of
 * them (vm/vm_lazy.c). A new sf-pager gets both, and the sources; which pages are there it reads from the memfd. All
 * that is done before QEMU is asked anything: its main thread may be the one that waits for a page.
 *
 * The snapshot is written when the main loop has nothing else to do, so that no clone waits for it: a death of both
 * before that loses the clones. Keys are not on record: the sources' are this host's.
 */
#include "sfvmm/control/pager_record.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/wire/state_file.h"

#define FOLDER       "caches"
#define HOST_KEY     "sf-pager-records"
#define SOURCES_FILE "sources.json"
#define MODE_FOLDER  0700

static char *record_path(SfHost *host, const char *snapshot)
{
    return sf_host_path(host, FOLDER, snapshot);
}

/* ---- save ---- */

typedef struct {
    SfHost *host;
    SfPager *pager;
} SaveCall;

static void save_call_free(gpointer data)
{
    SaveCall *call = data;

    g_object_unref(call->pager);
    g_object_unref(call->host);
    g_free(call);
}

static gboolean on_idle(gpointer data)
{
    SaveCall *call = data;
    SfSnapshot *snapshot = sf_pager_snapshot(call->pager);
    g_autofree char *path = record_path(call->host, sf_pager_snapshot_id(call->pager));
    g_autofree char *done = g_build_filename(path, "snapshot.json", NULL);
    g_autoptr(GError) error = NULL;

    /* Its folder has gone: nobody needs it any more. */
    if (snapshot && !snapshot->lost && g_file_test(path, G_FILE_TEST_IS_DIR) &&
        !g_file_test(done, G_FILE_TEST_EXISTS) && !sf_snapshot_save(snapshot, path, &error)) {
        g_warning("%s; clones of it would not outlive sf-pager and sfvmmd together", error->message);
    }
    return G_SOURCE_REMOVE;
}

void sf_pager_record_save(SfHost *host, SfPager *pager)
{
    g_autofree char *folder = record_path(host, sf_pager_snapshot_id(pager));
    g_autofree char *path = g_build_filename(folder, SOURCES_FILE, NULL);
    g_autoptr(JsonObject) object = sf_pager_describe_sources(pager);
    g_autoptr(GError) error = NULL;
    SaveCall *call;

    if (g_mkdir_with_parents(folder, MODE_FOLDER) < 0) {
        g_warning("\"%s\": %s", folder, g_strerror(errno));
        return;
    }
    if (!sf_state_write(path, object, &error)) {
        g_warning("%s", error->message);
    }
    if (sf_pager_snapshot(pager)) {
        call = g_new0(SaveCall, 1);
        call->host = g_object_ref(host);
        call->pager = g_object_ref(pager);
        g_idle_add_full(G_PRIORITY_LOW, on_idle, call, save_call_free);
    }
}

void sf_pager_record_drop(SfHost *host, const char *snapshot)
{
    g_autofree char *path = record_path(host, snapshot);

    sf_state_remove_folder(path);
}

/* ---- after a restart ---- */

/* snapshot -> SfPager that was started anew and has no ticket yet. */
static GHashTable *started(SfHost *host)
{
    return sf_host_table(host, HOST_KEY, g_str_hash, g_str_equal, g_free, g_object_unref);
}

static SfSnapshot *find_snapshot(const char *path, GPtrArray *vms, GError **error)
{
    g_autoptr(GArray) pids = g_array_new(FALSE, FALSE, sizeof(pid_t));
    g_autoptr(SfRamBase) base = sf_ram_base_new();

    for (guint i = 0; i < vms->len; i++) {
        SfVm *vm = g_ptr_array_index(vms, i);
        if (sf_vm_is_lazy(vm)) {
            pid_t pid = sf_vm_pid(vm);
            g_array_append_val(pids, pid);
        }
    }
    return sf_snapshot_restore(path, base, (const pid_t *)(void *)pids->data, pids->len, error);
}

/* The clones that it filled go on. One that can't be attached shows when it is adopted. */
static void attach_vms(SfPager *pager, GPtrArray *vms)
{
    const SfFaultHandler *handler = sf_pager_fault_handler(pager);

    for (guint i = 0; i < vms->len; i++) {
        SfVm *vm = g_ptr_array_index(vms, i);
        g_autoptr(GError) error = NULL;
        if (g_strcmp0(sf_vm_fault_handler_id(vm), handler->id) == 0 &&
            !sf_vm_set_fault_handler(vm, handler, FALSE, &error)) {
            g_warning("%s", error->message);
        }
    }
}

/* Without its snapshot it is of use to a ticket whose clones have not been placed yet. */
static SfPager *start_anew(SfHost *host, const char *id, GPtrArray *vms, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(host);
    g_autofree char *path = record_path(host, id);
    g_autofree char *sources_path = g_build_filename(path, SOURCES_FILE, NULL);
    g_autoptr(JsonObject) sources = sf_state_read(sources_path, error);
    g_autoptr(GError) missing = NULL;
    g_autoptr(SfSnapshot) snapshot = sources ? find_snapshot(path, vms, &missing) : NULL;
    SfPagerOptions options = sf_daemon_config_pager(config, id);
    SfPager *pager = sources ? sf_pager_start(&options, error) : NULL;

    if (pager && (!sf_pager_add_described_sources(pager, sources, config->cluster.pages_directory, error) ||
                  (snapshot && !sf_pager_set_snapshot(pager, snapshot, error)))) {
        sf_pager_stop(pager);
        g_clear_object(&pager);
    }
    if (pager && snapshot) {
        attach_vms(pager, vms);
    }
    if (pager) {
        g_message("pager of %s: it ended while sfvmmd was not running; started anew%s%s", id,
                  snapshot ? "" : ", without memory: ", snapshot ? "" : missing->message);
    }
    return pager;
}

void sf_pager_records_begin(SfHost *host, GPtrArray *vms)
{
    g_autofree char *folder = sf_host_path(host, FOLDER, NULL);
    g_auto(GStrv) ids = sf_state_list(folder);

    for (char **id = ids; *id; id++) {
        g_autoptr(GError) error = NULL;
        SfPager *pager = sf_pager_is_running(sf_host_config(host)->launcher.run_directory, *id)
                             ? NULL
                             : start_anew(host, *id, vms, &error);
        if (pager) {
            g_hash_table_insert(started(host), g_strdup(*id), pager);
        } else if (error) {
            g_warning("pager of %s: %s", *id, error->message);
        }
    }
}

SfPager *sf_pager_record_take(SfHost *host, const char *snapshot, GError **error)
{
    SfPager *pager = g_hash_table_lookup(started(host), snapshot);

    if (pager) {
        g_object_ref(pager);
        g_hash_table_remove(started(host), snapshot);
        return pager;
    }
    return sf_pager_adopt(sf_host_config(host)->launcher.run_directory, snapshot, error);
}

/* data: SfHost. By a ticket whose clones are here, or are served from here. */
static gboolean is_used(const char *snapshot, gpointer data)
{
    g_autoptr(GList) tickets = sf_host_tickets(data);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        SfPager *server = sf_borrow_server(ticket);
        if ((ticket->pager && strcmp(sf_pager_snapshot_id(ticket->pager), snapshot) == 0) ||
            (server && strcmp(sf_pager_snapshot_id(server), snapshot) == 0)) {
            return TRUE;
        }
    }
    return FALSE;
}

void sf_pager_records_end(SfHost *host)
{
    g_autofree char *folder = sf_host_path(host, FOLDER, NULL);
    g_auto(GStrv) ids = sf_state_list(folder);

    for (char **id = ids; *id; id++) {
        SfPager *pager = g_hash_table_lookup(started(host), *id);
        if (pager) { /* no ticket has taken it */
            sf_pager_stop(pager);
            g_hash_table_remove(started(host), *id);
        }
        if (!is_used(*id, host)) {
            sf_pager_record_drop(host, *id);
        }
    }
    sf_pagers_sweep(sf_host_config(host)->launcher.run_directory, is_used, host);
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     worker threads: sf_libvirt_connect() --> blocking calls of libvirt's client library
 *     main thread:    GLib's main context --> libvirt's event loop --> events --> watchers by uuid
 *
 * The client library may be called from any thread, and a call blocks for as long as libvirtd takes; so calls are made
 * in worker threads only. Its event loop is GLib's default main context, which the main thread runs: keep-alive,
 * events and the news that the connection was lost arrive there.
 *
 * A connection that was lost is not mourned: who needs one next makes it anew; the quick one registers for events. What
 * happened to domains meanwhile shows by other means (a process that ended by its pidfd).
 */
#include "sfvmm/vm/libvirt.h"

#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>

#include "sfvmm/vm/vm.h"

#define CALLS_AT_ONCE     5u /* libvirtd's default for a client (max_client_requests): more would stop its keep-alive */
#define KEEPALIVE_SECONDS 5 /* a libvirtd that hangs is given up after KEEPALIVE_COUNT of them */
#define KEEPALIVE_COUNT   6

typedef struct {
    const SfLibvirtHandlers *handlers;
    gpointer owner;
} Watcher;

struct SfLibvirt {
    char *uri;
    GMutex lock; /* of the lanes */
    struct {
        virConnectPtr connection; /* NULL: none */
        guint calls;              /* under way */
        GCond free;
    } lanes[SF_LIBVIRT_LANES];
    GHashTable *watchers; /* uuid -> Watcher; main thread */
};

static GHashTable *all; /* uri -> SfLibvirt; main thread */

const char *sf_libvirt_uri(const SfLibvirt *libvirt)
{
    return libvirt->uri;
}

gboolean sf_libvirt_fail(GError **error, const char *what)
{
    const virError *last = virGetLastError();
    SfVmError code = SF_VM_ERROR_FAILED;

    if (last &&
        (last->code == VIR_ERR_NO_DOMAIN || last->code == VIR_ERR_OPERATION_INVALID || last->domain == VIR_FROM_RPC)) {
        code = SF_VM_ERROR_GONE;
    }
    g_set_error(error, SF_VM_ERROR, code, "%s: %s", what,
                last && last->message ? last->message : "libvirt does not say why");
    return FALSE;
}

/* ---- events: main thread ---- */

static Watcher *find_watcher(SfLibvirt *libvirt, virDomainPtr domain)
{
    char uuid[VIR_UUID_STRING_BUFLEN];

    return virDomainGetUUIDString(domain, uuid) == 0 ? g_hash_table_lookup(libvirt->watchers, uuid) : NULL;
}

static void on_qemu_event(virConnectPtr connection, virDomainPtr domain, const char *event, long long seconds,
                          unsigned int micros, const char *details, void *opaque)
{
    Watcher *watcher = find_watcher(opaque, domain);

    if (watcher) {
        watcher->handlers->qemu_event(event, details, watcher->owner);
    }
}

static const char *stop_reason(int detail)
{
    switch (detail) {
    case VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN:
        return "the guest has shut down";
    case VIR_DOMAIN_EVENT_STOPPED_DESTROYED:
        return "its domain was destroyed";
    case VIR_DOMAIN_EVENT_STOPPED_CRASHED:
        return "its guest has crashed";
    case VIR_DOMAIN_EVENT_STOPPED_FAILED:
        return "QEMU was killed, or has crashed";
    default:
        return "its domain was stopped";
    }
}

static int on_lifecycle(virConnectPtr connection, virDomainPtr domain, int event, int detail, void *opaque)
{
    Watcher *watcher = event == VIR_DOMAIN_EVENT_STOPPED ? find_watcher(opaque, domain) : NULL;

    if (watcher) {
        watcher->handlers->stopped(stop_reason(detail), watcher->owner);
    }
    return 0;
}

/* Who has a call under way has an error by now; others learn it here, before they need the connection. */
static void on_closed(virConnectPtr connection, int reason, void *opaque)
{
    SfLibvirt *libvirt = opaque;
    GHashTableIter iter;
    Watcher *watcher;

    g_message("libvirt %s: the connection is lost; it is made anew", libvirt->uri);
    g_hash_table_iter_init(&iter, libvirt->watchers);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&watcher)) {
        watcher->handlers->lost(watcher->owner);
    }
}

void sf_libvirt_watch(SfLibvirt *libvirt, const char *uuid, const SfLibvirtHandlers *handlers, gpointer owner)
{
    Watcher *watcher = g_new0(Watcher, 1);

    watcher->handlers = handlers;
    watcher->owner = owner;
    g_hash_table_insert(libvirt->watchers, g_strdup(uuid), watcher);
}

void sf_libvirt_unwatch(SfLibvirt *libvirt, const char *uuid, gpointer owner)
{
    const Watcher *watcher = g_hash_table_lookup(libvirt->watchers, uuid);

    if (watcher && watcher->owner == owner) {
        g_hash_table_remove(libvirt->watchers, uuid);
    }
}

gboolean sf_libvirt_is_watched(SfLibvirt *libvirt, const char *uuid)
{
    return g_hash_table_contains(libvirt->watchers, uuid);
}

/* ---- the connection: any thread, under the lock ---- */

virConnectPtr sf_libvirt_open(const char *uri, GError **error)
{
    virConnectPtr connection = virConnectOpen(uri);

    if (!connection) {
        g_autofree char *what = g_strdup_printf("libvirt (%s)", uri);
        g_clear_error(error);
        (void)!sf_libvirt_fail(error, what);
        if (error) {
            (*error)->code = SF_VM_ERROR_GONE; /* whatever it says, there is no connection */
        }
        return NULL;
    }
    virConnectSetKeepAlive(connection, KEEPALIVE_SECONDS, KEEPALIVE_COUNT);
    return connection;
}

static virConnectPtr connection_open(SfLibvirt *libvirt, SfLibvirtLane lane, GError **error)
{
    g_autofree char *what = g_strdup_printf("libvirt (%s)", libvirt->uri);
    virConnectPtr connection = sf_libvirt_open(libvirt->uri, error);

    if (!connection || lane != SF_LIBVIRT_QUICK) {
        return connection;
    }
    if (virConnectRegisterCloseCallback(connection, on_closed, libvirt, NULL) < 0 ||
        virConnectDomainEventRegisterAny(connection, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                                         VIR_DOMAIN_EVENT_CALLBACK(on_lifecycle), libvirt, NULL) < 0 ||
        virConnectDomainQemuMonitorEventRegister(connection, NULL, NULL, on_qemu_event, libvirt, NULL, 0) < 0) {
        (void)!sf_libvirt_fail(error, what);
        virConnectClose(connection);
        return NULL;
    }
    return connection;
}

virConnectPtr sf_libvirt_connect(SfLibvirt *libvirt, SfLibvirtLane lane, GError **error)
{
    virConnectPtr *connection = &libvirt->lanes[lane].connection;
    virConnectPtr result;

    g_mutex_lock(&libvirt->lock);
    if (*connection && virConnectIsAlive(*connection) != 1) {
        virConnectUnregisterCloseCallback(*connection, on_closed);
        virConnectClose(*connection);
        *connection = NULL;
    }
    if (!*connection) {
        *connection = connection_open(libvirt, lane, error);
    }
    result = *connection;
    if (result) {
        virConnectRef(result);
    }
    g_mutex_unlock(&libvirt->lock);
    return result;
}

void sf_libvirt_begin(SfLibvirt *libvirt, SfLibvirtLane lane)
{
    g_mutex_lock(&libvirt->lock);
    while (libvirt->lanes[lane].calls >= CALLS_AT_ONCE) {
        g_cond_wait(&libvirt->lanes[lane].free, &libvirt->lock);
    }
    libvirt->lanes[lane].calls++;
    g_mutex_unlock(&libvirt->lock);
}

void sf_libvirt_end(SfLibvirt *libvirt, SfLibvirtLane lane)
{
    g_mutex_lock(&libvirt->lock);
    libvirt->lanes[lane].calls--;
    g_cond_signal(&libvirt->lanes[lane].free);
    g_mutex_unlock(&libvirt->lock);
}

/* Errors are told by who gets them, not on stderr. */
static void on_error(void *data, virErrorPtr error)
{
}

SfLibvirt *sf_libvirt_get(const char *uri)
{
    SfLibvirt *libvirt;

    if (!all) {
        all = g_hash_table_new(g_str_hash, g_str_equal);
        virEventRegisterDefaultImpl();
        virSetErrorFunc(NULL, on_error);
    }
    libvirt = g_hash_table_lookup(all, uri);
    if (!libvirt) {
        libvirt = g_new0(SfLibvirt, 1);
        libvirt->uri = g_strdup(uri);
        g_mutex_init(&libvirt->lock);
        libvirt->watchers = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
        g_hash_table_insert(all, libvirt->uri, libvirt);
    }
    return libvirt;
}

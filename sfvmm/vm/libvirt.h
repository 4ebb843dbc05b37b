/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfLibvirt: the connection to one libvirtd, made when it is needed and made anew when it was lost, and the events of
 * its domains. Objects are never freed: there is one for each URI.
 */
#ifndef SF_LIBVIRT_H
#define SF_LIBVIRT_H

#include <gio/gio.h>
#include <libvirt/libvirt.h>

typedef struct SfLibvirt SfLibvirt;

/* The one of this URI. Main thread. Does not connect yet. */
SfLibvirt *sf_libvirt_get(const char *uri);
const char *sf_libvirt_uri(const SfLibvirt *libvirt);

/*
 * There are two connections, so that what takes long (a domain is created) does not hold up what does not (a command to
 * a monitor).
 */
typedef enum { SF_LIBVIRT_QUICK, SF_LIBVIRT_SLOW, SF_LIBVIRT_LANES } SfLibvirtLane;

/*
 * A connection that works; give it back with virConnectClose(). Blocks: for worker threads. SF_VM_ERROR_GONE: there is
 * none at present.
 */
virConnectPtr sf_libvirt_connect(SfLibvirt *libvirt, SfLibvirtLane lane, GError **error);

/* A connection of the caller's own, after sf_libvirt_get() of any URI. Errors as above. Worker threads. */
virConnectPtr sf_libvirt_open(const char *uri, GError **error);

/* Around each call that libvirtd may take time for: waits for its turn. Worker threads. */
void sf_libvirt_begin(SfLibvirt *libvirt, SfLibvirtLane lane);
void sf_libvirt_end(SfLibvirt *libvirt, SfLibvirtLane lane);

/* FALSE, and *error has what libvirt says of this thread's last call. what: "domain web can't be resumed". */
gboolean sf_libvirt_fail(GError **error, const char *what) G_GNUC_WARN_UNUSED_RESULT;

/* What happens to one domain. All are called in the main thread. */
typedef struct {
    void (*qemu_event)(const char *name, const char *details_or_null, gpointer owner);
    void (*stopped)(const char *reason, gpointer owner); /* "it was destroyed" */
    void (*lost)(gpointer owner);                        /* the connection to libvirtd; must not watch or unwatch */
} SfLibvirtHandlers;

/* Main thread. One watcher for each domain; owner must live until it is unwatched. */
void sf_libvirt_watch(SfLibvirt *libvirt, const char *uuid, const SfLibvirtHandlers *handlers, gpointer owner);
void sf_libvirt_unwatch(SfLibvirt *libvirt, const char *uuid, gpointer owner);
gboolean sf_libvirt_is_watched(SfLibvirt *libvirt, const char *uuid);

#endif

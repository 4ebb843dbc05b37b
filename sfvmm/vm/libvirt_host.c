/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Clones of another host's domain are domains of this host's libvirtd. Before places are promised it is asked for its
 * capabilities: that it answers at all, and as which user it runs QEMU. That user must be let in to what serves disks.
 *
 *     <host><secmodel><model>dac</model><baselabel type='kvm'>+64055:+109</baselabel>...
 *
 * A libvirtd of a session has no such label: its QEMUs run as its own user, who is ours. All in a worker thread.
 */
#include "sfvmm/vm/launcher_private.h"

#include <stdio.h>
#include <unistd.h>

#include "sfvmm/vm/libvirt.h"
#include "sfvmm/vm/xml.h"

#define CAPABILITIES_MAX (16u << 20) /* bytes: they list each host CPU */
#define LABEL            "/capabilities/host/secmodel[model='dac']/baselabel"

static void host_free(gpointer data)
{
    SfLibvirtHost *host = data;

    g_free(host->uri);
    g_free(host);
}

/* "+64055:+109" */
static void read_user(SfLibvirtHost *host, const char *capabilities)
{
    g_autoptr(xmlDoc) doc = sf_xml_read(capabilities, "capabilities", CAPABILITIES_MAX, NULL);
    g_autofree char *label = doc ? sf_xml_text_at(doc, NULL, LABEL) : NULL;
    unsigned uid, gid;

    if (label && sscanf(label, "+%u:+%u", &uid, &gid) == 2) {
        host->uid = uid;
        host->gid = gid;
    }
}

static void look_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    SfLibvirt *libvirt = data;
    GError *error = NULL;
    virConnectPtr connection = sf_libvirt_connect(libvirt, SF_LIBVIRT_SLOW, &error);
    char *capabilities = connection ? virConnectGetCapabilities(connection) : NULL;
    SfLibvirtHost *host;

    if (capabilities) {
        host = g_new0(SfLibvirtHost, 1);
        host->uri = g_strdup(sf_libvirt_uri(libvirt));
        host->uid = getuid();
        host->gid = getgid();
        read_user(host, capabilities);
        g_task_return_pointer(task, host, host_free);
    } else {
        if (connection) {
            (void)!sf_libvirt_fail(&error, "libvirt's capabilities");
        }
        g_task_return_error(task, error);
    }
    free(capabilities);
    if (connection) {
        virConnectClose(connection);
    }
}

void sf_launcher_libvirt_look(SfLauncher *launcher, const char *uri, GTask *task)
{
    g_task_set_task_data(task, sf_libvirt_get(uri), NULL);
    g_task_run_in_thread(task, look_thread);
    g_object_unref(task);
}

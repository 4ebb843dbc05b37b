/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     a paused domain whose only disk is the image --> its overlays put on, as external snapshots that exist already
 *         --> virDomainBlockCommit(top into image) --> pivot --> destroyed
 *
 * libvirtd gives the files of a domain's disks to its QEMU, labels and all, and takes them back in the end: a member of
 * the group libvirt has no other way to them. It remembers the owner of the disk that the domain began with, hence the
 * detour by snapshots: of a chain that began as one, the image would be given to the overlay's owner. QEMU locks the
 * image, so that no other domain writes to it meanwhile.
 *
 * The domain ends with its connection, which is its own (AUTODESTROY): so when sfvmmd is killed. A libvirtd that is
 * killed forgets that; then the next try finds the domain by its name, which is that of the top overlay, and ends it.
 */
#include "sfvmm/vm/domain_commit.h"

#include <libvirt/libvirt.h>

#include "sfvmm/vm/domain_xml.h"
#include "sfvmm/vm/libvirt.h"

#define TARGET      "vda"
#define LOOK_US     20000u /* between two looks at the job */
#define NAME_PREFIX SF_DOMAIN_PREFIX "commit-"

static const SfDiskLayer *layer_at(const SfDiskChain *chain, guint i)
{
    return g_ptr_array_index(chain->layers, i);
}

static char *domain_name(const SfDiskChain *chain)
{
    g_autofree char *file = g_path_get_basename(layer_at(chain, chain->layers->len - 1)->path);

    return g_strconcat(NAME_PREFIX, file, NULL);
}

/* What stands below the image, if anything, libvirtd finds in the image's own header. */
static char *domain_xml(const char *qemu, const char *name, const SfDiskLayer *image)
{
    return g_markup_printf_escaped("<domain type='qemu'><name>%s</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>"
                                   "<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>"
                                   "<devices><emulator>%s</emulator><controller type='usb' model='none'/>"
                                   "<memballoon model='none'/><disk type='file' device='disk'>"
                                   "<driver name='qemu' type='%s'/><source file='%s'/>"
                                   "<target dev='" TARGET "' bus='virtio'/></disk></devices></domain>",
                                   name, qemu, image->format, image->path);
}

/* Of an earlier try. */
static void end_old(virConnectPtr connection, const char *name)
{
    virDomainPtr domain = virDomainLookupByName(connection, name);

    if (domain) {
        virDomainDestroy(domain);
        virDomainFree(domain);
    }
}

/* Until all is copied and what is written goes to both. */
static gboolean await_ready(virDomainPtr domain, GError **error)
{
    for (;;) {
        virDomainBlockJobInfo info;
        int found = virDomainGetBlockJobInfo(domain, TARGET, &info, 0);
        if (found < 0) {
            return sf_libvirt_fail(error, "the commit");
        }
        if (found == 0) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "the commit ended early; libvirtd's log of %s says why",
                        virDomainGetName(domain));
            return FALSE;
        }
        if (info.end > 0 && info.cur == info.end) {
            return TRUE;
        }
        g_usleep(LOOK_US);
    }
}

static gboolean put_on(virDomainPtr domain, const SfDiskLayer *overlay, GError **error)
{
    g_autofree char *xml = g_markup_printf_escaped("<domainsnapshot><disks><disk name='" TARGET
                                                   "' snapshot='external' type='file'><driver type='%s'/>"
                                                   "<source file='%s'/></disk></disks></domainsnapshot>",
                                                   overlay->format, overlay->path);
    virDomainSnapshotPtr snapshot =
        virDomainSnapshotCreateXML(domain, xml,
                                   VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT |
                                       VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA);

    if (!snapshot) {
        return sf_libvirt_fail(error, overlay->path);
    }
    virDomainSnapshotFree(snapshot);
    return TRUE;
}

static gboolean commit(virDomainPtr domain, const SfDiskChain *chain, gboolean *begun, GError **error)
{
    for (guint i = 1; i < chain->layers->len; i++) {
        if (!put_on(domain, layer_at(chain, i), error)) {
            return FALSE;
        }
    }
    if (virDomainBlockCommit(domain, TARGET, layer_at(chain, 0)->path, NULL, 0, VIR_DOMAIN_BLOCK_COMMIT_ACTIVE) < 0) {
        return sf_libvirt_fail(error, "its overlays can't be committed");
    }
    *begun = TRUE;
    if (!await_ready(domain, error)) {
        return FALSE;
    }
    return virDomainBlockJobAbort(domain, TARGET, VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT) == 0 ||
           sf_libvirt_fail(error, "the commit can't be completed");
}

gboolean sf_domain_commit(const char *qemu, const char *uri, const SfDiskChain *chain, gboolean *begun, GError **error)
{
    g_autofree char *name = domain_name(chain);
    g_autofree char *xml = domain_xml(qemu, name, layer_at(chain, 0));
    g_autofree char *prefix = g_strdup_printf("disk %s: writing its overlays into %s by libvirt (%s): ", chain->id,
                                              layer_at(chain, 0)->path, uri);
    virConnectPtr connection = sf_libvirt_open(uri, error);
    virDomainPtr domain;
    gboolean ok = FALSE;

    if (connection) {
        end_old(connection, name);
        domain = virDomainCreateXML(connection, xml, VIR_DOMAIN_START_PAUSED | VIR_DOMAIN_START_AUTODESTROY);
        if (domain) {
            ok = commit(domain, chain, begun, error);
            virDomainDestroy(domain);
            virDomainFree(domain);
        } else {
            (void)!sf_libvirt_fail(error, "a domain for that can't be created");
        }
        virConnectClose(connection);
    }
    if (!ok) {
        g_prefix_error(error, "%s", prefix);
    }
    return ok;
}

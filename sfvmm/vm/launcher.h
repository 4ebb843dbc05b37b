/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfLauncher: how QEMU processes come to be. One interface, two kinds: `exec` (a child process) and `libvirt` (a
 * domain). The configuration says which: that of a domain has its XML.
 */
#ifndef SF_LAUNCHER_H
#define SF_LAUNCHER_H

#include <gio/gio.h>
#include "sfvmm/disk/late_commit.h"
#include "sfvmm/vm/vm.h"

typedef struct {
    char *qemu; /* path of the patched qemu-system-x86_64 */
    char *qemu_img;
    char *firmware;          /* directories for -L, colon-separated */
    char *run_directory;     /* RUNDIR */
    char *overlay_directory; /* for overlays, which grow with what guests write: no tmpfs. NULL: RUNDIR/disk */
    uid_t uid;               /* that QEMU runs as; own uid when not root */
    gid_t gid;
    char *libvirt_uri; /* where domains are looked for, when nobody says; NULL: none */
    /* The launcher's own, it makes them; not to be given: */
    SfLateCommits *late_commits;
    GHashTable *disk_servers; /* id -> SfDiskServer, without a reference: those that run */
} SfLauncherOptions;

/*
 * Who gives VMs of a cluster what their NICs are plugged into; floor 4 does. vm: its name, that of its family or of one
 * of its shells. Descriptors are the launcher's to close; *device: the NIC's name among those of the cluster, to be
 * freed.
 */
typedef struct {
    gpointer owner;
    int (*open_tap)(gpointer owner, const char *vm, char **device, GError **error); /* or a stream socket of frames */
    /* Domains come with taps of libvirt's. open: for a parent, which nobody has announced. pin: what its QEMU is to be
     * given before its tap is plugged in (sfvmm/net/network.h). */
    gboolean (*open)(gpointer owner, const char *vm, const SfVmConfig *config, GError **error);
    int (*pin)(gpointer owner, const char *vm, GError **error);
    gboolean (*plug)(gpointer owner, const char *vm, int tap, char **device, GError **error);
} SfTapProvider;

typedef struct SfLauncher SfLauncher;

SfLauncher *sf_launcher_exec_new(const SfLauncherOptions *options);
void sf_launcher_set_taps(SfLauncher *launcher, const SfTapProvider *provider); /* copied; before VMs of clusters */
void sf_launcher_free(SfLauncher *launcher);
const SfLauncherOptions *sf_launcher_options(SfLauncher *launcher);

/* Start a VM that boots (role PARENT, disks opened) or a paused SHELL (an empty overlay for each disk). Finishes when QMP and the sf
 * channel answer. */
void sf_launcher_start_async(SfLauncher *launcher, const char *name, SfVmRole role, SfVmConfig *config,
                             GAsyncReadyCallback callback, gpointer data);
SfVm *sf_launcher_start_finish(SfLauncher *launcher, GAsyncResult *result, GError **error);

/*
 * Take a running domain of libvirt as a VM of role PARENT, that clones can be made of. Nothing of it is changed. uri:
 * NULL: the default. Finishes by sf_launcher_start_finish(). SF_VM_ERROR_REFUSED: it can't be forked.
 */
void sf_launcher_adopt_domain_async(SfLauncher *launcher, const char *name, const char *uri, const char *domain,
                                    GAsyncReadyCallback callback, gpointer data);

/*
 * What a domain lacks to be forkable, and to be in a network (sf_vm_config_network_check(); NULL: in the one that it
 * says itself, or none); with `fix` its definition is mended where it can be.
 * {"domain", "running", "forkable", "lacks": [{"what", "xml", "needed"}], "fixed"}; caller owns.
 */
void sf_launcher_check_domain_async(SfLauncher *launcher, const char *uri, const char *domain,
                                    JsonObject *network_or_null, gboolean fix, GAsyncReadyCallback callback,
                                    gpointer data);
JsonObject *sf_launcher_check_domain_finish(SfLauncher *launcher, GAsyncResult *result, GError **error);

/*
 * This host's libvirtd, that of the default URI, as a place for clones of other hosts' domains: does it answer, and as
 * whom do its QEMUs run? FALSE + error: none can be here. *uri: caller owns.
 */
void sf_launcher_look_at_libvirt_async(SfLauncher *launcher, GAsyncReadyCallback callback, gpointer data);
gboolean sf_launcher_look_at_libvirt_finish(GAsyncResult *result, char **uri, uid_t *uid, gid_t *gid, GError **error);

/*
 * After a restart of sfvmmd: the VM of RUNDIR/vm/NAME, whose process lives. Nothing is asked of it yet. NULL + error if
 * it has gone (the directory is then removed). Then the process is taken over; the call has a reference.
 */
SfVm *sf_launcher_find(SfLauncher *launcher, const char *name, GError **error);
void sf_launcher_adopt_async(SfLauncher *launcher, SfVm *vm, GAsyncReadyCallback callback, gpointer data);
SfVm *sf_launcher_adopt_finish(SfLauncher *launcher, GAsyncResult *result, GError **error);

/*
 * Removes what no VM needs any more: run directories of ended VMs, overlay files that no adopted VM and no frozen chain
 * uses. After all VMs have been adopted and all chains restored (sf_disk_chain_from_json), before the first VM is
 * started.
 */
void sf_launcher_sweep(SfLauncher *launcher);

/* "kvm" if /dev/kvm works here for Linux guests, else "tcg"; *reason says why, for the log. */
const char *sf_launcher_best_accel(SfLauncher *launcher, char **reason);

#endif

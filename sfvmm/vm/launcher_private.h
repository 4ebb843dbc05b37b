/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the two launchers share. Nobody else includes this. */
#ifndef SF_LAUNCHER_PRIVATE_H
#define SF_LAUNCHER_PRIVATE_H

#include "sfvmm/vm/launcher.h"
#include "sfvmm/vm/vm_private.h"

struct SfLauncher {
    SfLauncherOptions options;
    SfTapProvider taps;
    char *accel; /* the best one; NULL: not looked for yet */
    char *accel_reason;
};

/* The folders that VMs of both need. */
gboolean sf_launcher_make_directories(SfLauncher *launcher, GError **error);
/* FALSE + error: an image of the configuration still lacks what a VM that has ended wrote. */
gboolean sf_launcher_images_are_whole(SfLauncher *launcher, const SfVmConfig *config, GError **error);

/* What sf_launcher_look_at_libvirt_async() has found; g_free() it and the uri. */
typedef struct {
    char *uri;
    uid_t uid;
    gid_t gid;
} SfLibvirtHost;

/* ---- launcher_libvirt.c, domain_check.c and libvirt_host.c; in a build without libvirt launcher_no_libvirt.c ---- */

/* A shell: a paused transient domain. task (taken) returns the SfVm. */
void sf_launcher_libvirt_shell(SfLauncher *launcher, const char *name, SfVmConfig *config, GTask *task);
/* The running domain as a VM of role PARENT. task (taken) returns the SfVm. */
void sf_launcher_libvirt_parent(SfLauncher *launcher, const char *name, const char *uri, const char *domain,
                                GTask *task);
/* See sf_launcher_check_domain_async(). task is taken. */
void sf_launcher_libvirt_check(SfLauncher *launcher, const char *uri, const char *domain, JsonObject *network_or_null,
                               gboolean fix, GTask *task);
/* See sf_launcher_look_at_libvirt_async(): task (taken) returns an SfLibvirtHost. */
void sf_launcher_libvirt_look(SfLauncher *launcher, const char *uri, GTask *task);
/* A VM that was read back from vm.json gets its keeper again. */
gboolean sf_launcher_libvirt_restore(SfLauncher *launcher, SfVm *vm, GError **error);
/* Domains of ours that no VM of ours is: in the background. */
void sf_launcher_libvirt_sweep(SfLauncher *launcher);

#endif

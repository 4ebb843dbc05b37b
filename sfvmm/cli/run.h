/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What `sfctl run` makes of its options; apart from the command, for the tests. */
#ifndef SF_CTL_RUN_H
#define SF_CTL_RUN_H

#include <glib.h>
#include <json-glib/json-glib.h>

typedef struct {
    char *name, *memory, *vcpus, *kernel, *initrd, *append, *accel, *cpu, *network, *address, *pool, *timeout;
    char **disks, **outside;
    gboolean ephemeral, wait_agent, console, quiet;
} SfRunOptions;

/* The parameters of vm.run. image: a disk as in --disk, or an image directory, or NULL. NULL + error. Caller owns. */
JsonObject *sf_ctl_run_params(const SfRunOptions *run, const char *image, GError **error);

/* "PATH[,ro][,ephemeral][,format=raw|qcow2]" as an element of vm.run's disks. NULL + error. Caller owns. */
JsonObject *sf_ctl_run_parse_disk(const char *text, GError **error);

#endif

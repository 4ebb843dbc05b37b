/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a domain that has ended wrote to its overlays gets into its image by libvirtd, for who may not write to that.
 */
#ifndef SF_DOMAIN_COMMIT_H
#define SF_DOMAIN_COMMIT_H

#include "sfvmm/disk/disk.h"

/* A SfLateCommitByLibvirt (sfvmm/disk/late_commit.h). Blocks for as long as the copying takes: a worker thread. */
gboolean sf_domain_commit(const char *qemu, const char *uri, const SfDiskChain *chain, gboolean *begun, GError **error);

#endif

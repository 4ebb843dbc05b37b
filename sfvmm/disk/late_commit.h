/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfLateCommits: what VMs that have ended wrote to overlays still has to get into the users' own images. Each chain
 * waits here until no clone stands on a layer of it any more; then its overlays are committed and removed.
 */
#ifndef SF_LATE_COMMIT_H
#define SF_LATE_COMMIT_H

#include "sfvmm/disk/disk.h"

typedef struct SfLateCommits SfLateCommits;

/*
 * Takes over what an earlier process left in directory (made when it is first needed). Its layers count as used from
 * now on: call it before files are swept. Main thread only; works while the main loop runs.
 */
SfLateCommits *sf_late_commits_new(const char *directory, const char *qemu_img);

/*
 * Commits all overlays of a chain into its lowest layer, in a worker thread, by the libvirtd of that URI: its QEMUs may
 * write where we may not. qemu: path of the emulator. *begun is set before the image is written to. The overlays' files
 * stay.
 */
typedef gboolean (*SfLateCommitByLibvirt)(const char *qemu, const char *uri, const SfDiskChain *chain, gboolean *begun,
                                          GError **error);
void sf_late_commits_use_libvirt(SfLateCommits *commits, SfLateCommitByLibvirt by_libvirt, const char *qemu);

/* When none waits. (sfvmmd never calls it: what waits is for the next one.) */
void sf_late_commits_free(SfLateCommits *commits);

/*
 * A disk of a VM that has ended; uri: of its libvirtd, if it was a domain. Takes the chain. One without overlays, or
 * read-only, is dropped at once. An image that somebody else writes to from now on is left alone, as are the overlays.
 */
void sf_late_commits_add(SfLateCommits *commits, const char *vm, const char *uri_or_null, SfDiskChain *chain);

/* The VM whose writes are still to get into this image, or NULL. Until then no VM may be started from it. */
const char *sf_late_commits_owner(const SfLateCommits *commits, const char *image);

/* Is something that this VM wrote being committed, or about to be? Not if clones still stand on it, or it has failed.
 */
gboolean sf_late_commits_active(const SfLateCommits *commits, const char *vm);

guint sf_late_commits_waiting(const SfLateCommits *commits);

#endif

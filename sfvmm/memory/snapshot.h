/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfSnapshot: one frozen instant of a VM, as descriptors: its device state, and per RAM block a base memfd with delta
 * layers above it. Reference counted; whoever maps it or may still hand it out holds a reference (a fork, each clone).
 *
 *       newest   delta k   own pages of the forked VM            } copies, made when the base could not be written
 *                ...                                             }
 *                delta 1                                         }
 *       lowest   base      the memfd of the family's first VM
 *                          or, on another host, the page cache of its snapshot: then the snapshot is lazy
 *
 * A base is one object, shared by all snapshots over it; sf_ram_base_in_use() says whether a snapshot needs its
 * content, and so whether its owner may fold into it or thaw. All from the main thread.
 */
#ifndef SF_SNAPSHOT_H
#define SF_SNAPSHOT_H

#include <glib.h>
#include "sfvmm/memory/page_cache.h"
#include "sfvmm/wire/page_run.h"
#include "sfvmm/wire/qemu_channel.h"

/* The memory of the VM that was started, not cloned: one memfd per RAM block. */
typedef struct SfRamBase SfRamBase;
SfRamBase *sf_ram_base_new(void);
SfRamBase *sf_ram_base_ref(SfRamBase *base);
void sf_ram_base_unref(SfRamBase *base);
gboolean sf_ram_base_in_use(const SfRamBase *base); /* a snapshot over it lives */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfRamBase, sf_ram_base_unref)

typedef struct {
    int delta;   /* memfd, read-only, offsets as in the block */
    int extents; /* memfd, read-only, n_extents * struct sf_qc_extent */
    guint32 n_extents;
} SfLayer;

typedef struct {
    char id[SF_QC_NAME_LEN];
    guint64 length; /* bytes */
    int base;       /* memfd, read-only */
    guint n_layers;
    SfLayer layers[SF_QC_MAX_LAYERS];
} SfBlock;

typedef struct {
    int refs;
    gboolean lost; /* sf_snapshot_new_lost() */
    char *id;      /* unique, e.g. "s-4f31c2" */
    SfRamBase *base;
    int state; /* memfd, read-only */
    guint64 state_length, device_length;
    guint n_blocks;
    SfBlock blocks[SF_QC_MAX_BLOCKS];
    SfPageCache *cache; /* NULL: everything is here. Else the base of each block is cache->blocks[i].memory_ro */
    struct sf_qc_snapshot_reply timing;
} SfSnapshot;

/*
 * From a SNAPSHOT reply. parent_snapshot: the snapshot that the forked VM was itself loaded from (its layers come
 * first; their descriptors are duplicated), or NULL. payload and fds as received; takes the fds in every case (closes
 * them on error).
 */
SfSnapshot *sf_snapshot_new(const char *id, SfRamBase *base, const SfSnapshot *parent_snapshot, GBytes *payload,
                            int *fds, guint n_fds, GError **error);
/*
 * A snapshot that was taken elsewhere: its base is the page cache, it has no layers (what the source has of them is
 * flattened), and its device state comes as bytes: what the origin's state memfd holds, small blocks first.
 * device_length: how much of it is device state. Takes a reference to the cache. Its forks (of its clones) have
 * deltas over the same cache and are lazy too.
 */
SfSnapshot *sf_snapshot_new_cached(const char *id, SfRamBase *base, SfPageCache *cache, GBytes *device_state,
                                   guint64 device_length, GError **error);
/* Pages may be missing here: it is loaded by MAP, with a SfFaultHandler, which must be that of its cache. */
gboolean sf_snapshot_is_lazy(const SfSnapshot *snapshot);

SfSnapshot *sf_snapshot_ref(SfSnapshot *snapshot);
void sf_snapshot_unref(SfSnapshot *snapshot); /* the last one closes all descriptors */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfSnapshot, sf_snapshot_unref)

/*
 * The LOAD request for it: payload, and the fds to send beside it, which are the snapshot's still: send or duplicate
 * them at once, the next request replaces the one of the state. NULL + error when no more files can be opened.
 */
GBytes *sf_snapshot_load_request(SfSnapshot *snapshot, guint32 flags, int fds[SF_QC_MAX_FDS], guint *n_fds,
                                 GError **error);

/*
 * The two halves of a load of a lazy snapshot (SF_QC_MAP, then SF_QC_LOAD with SF_QC_LOAD_MAPPED). userfaultfd: an
 * open /dev/userfaultfd, the first of the fds of MAP. The fds stay the caller's or the snapshot's, as above.
 */
GBytes *sf_snapshot_map_request(SfSnapshot *snapshot, int userfaultfd, int fds[SF_QC_MAX_FDS], guint *n_fds,
                                GError **error);

/*
 * Survival over a restart of sfvmmd: sf_snapshot_save() writes state and extents as files into directory (created
 * 0700), and snapshot.json; sf_snapshot_restore() reads them back and takes memfds for base and deltas from the
 * processes that still map them (pids: their /proc/PID/map_files or fd/; see memory/recover.c for the method). NULL +
 * error when nobody does.
 */
gboolean sf_snapshot_save(const SfSnapshot *snapshot, const char *directory, GError **error);
SfSnapshot *sf_snapshot_restore(const char *directory, SfRamBase *base, const pid_t *pids, guint n_pids,
                                GError **error);
/* The same; besides the processes it looks at these descriptors (borrowed): those that an adopted sf-pager has kept. */
SfSnapshot *sf_snapshot_restore_from(const char *directory, SfRamBase *base, const pid_t *pids, guint n_pids,
                                     const int *fds, guint n_fds, GError **error);

/*
 * Stands for a snapshot that could not be restored while clones still run on it: it can be neither loaded nor forked
 * from, but its base counts as used as long as anybody holds a reference. Without it, the base would be folded into,
 * and the memory of those clones change.
 */
SfSnapshot *sf_snapshot_new_lost(const char *id, SfRamBase *base);

/* Page map of a block of the snapshot, runs of present pages over all layers, from SEEK_DATA and the extents. */
GArray *sf_snapshot_present_runs(const SfSnapshot *snapshot, guint block,
                                 GError **error); /* of SfRun, sorted, disjoint */

#endif

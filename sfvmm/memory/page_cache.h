/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfPageCache: the memory of one snapshot on a host where it was not taken. One sparse memfd per RAM block, which all
 * clones of this host map MAP_PRIVATE; and what of it has content at all (`present` runs: the rest is zero, mapped
 * anonymous, and never fetched).
 *
 *      present      ______[xxxxxxxx]______[xxxxxxxxxxxxxx]_______     from the descriptor
 *      memfd              [a...bc..]      [......d.......]            pages that have arrived; grows
 *
 * A clone asks sf-pager about zero pages in the small gaps too; it answers without fetching.
 *
 * Pages are written by sf-pager alone, whole, each once or several times with the same content. Size is sealed. All
 * from the main thread.
 */
#ifndef SF_PAGE_CACHE_H
#define SF_PAGE_CACHE_H

#include <glib.h>
#include "sfvmm/wire/avoid.h"
#include "sfvmm/wire/page_run.h"
#include "sfvmm/wire/qemu_channel.h"

typedef struct {
    char id[SF_QC_NAME_LEN];
    guint64 length;    /* bytes */
    int memory;        /* memfd, O_RDWR: for sf-pager */
    int memory_ro;     /* the same, read-only: for QEMU */
    int present;       /* memfd, sealed: n_present * struct sf_qc_extent, sorted, disjoint, not touching */
    guint32 n_present;
    guint64 present_bytes; /* that these runs hold */
    int mapped;        /* memfd, sealed: what QEMU maps of the cache: present with its small gaps closed */
    guint32 n_mapped;  /* at most SF_QC_MAX_PRESENT: each costs it two areas */
} SfCachedBlock;

typedef struct {
    int refs;
    guint avoid; /* SF_AVOID_*: of its clones that are mapped from now on */
    guint n_blocks;
    SfCachedBlock blocks[SF_QC_MAX_BLOCKS];
} SfPageCache;

/* What a block is to be: the caller keeps it. present: of SfRun, sorted and disjoint. */
typedef struct {
    const char *id;
    guint64 length; /* bytes */
    const GArray *present;
} SfCachedBlockSpec;

/*
 * Empty memfds for these blocks. avoid: SF_AVOID_*; without FREE all of each block counts as present. NULL + error: too
 * many blocks, bad runs, no more memory or descriptors.
 */
SfPageCache *sf_page_cache_new(const SfCachedBlockSpec *blocks, guint n_blocks, guint avoid, GError **error);

/*
 * From descriptors that another process kept (a pager, after a restart of sfvmmd): fills blocks whose ids and lengths
 * are given, and avoids all; takes memory and present in every case. NULL + error if they are not what they should be.
 */
SfPageCache *sf_page_cache_new_from_fds(const SfCachedBlock *blocks, guint n_blocks, GError **error);

SfPageCache *sf_page_cache_ref(SfPageCache *cache);
void sf_page_cache_unref(SfPageCache *cache); /* the last one closes all */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfPageCache, sf_page_cache_unref)

/* Bytes that the present runs hold: what a complete cache will have. */
guint64 sf_page_cache_present_bytes(const SfPageCache *cache);
/* Bytes that no clone asks for: the VM never used them, or has given them away. */
guint64 sf_page_cache_free_bytes(const SfPageCache *cache);
/* Bytes that have arrived: allocated pages of the memfds. */
guint64 sf_page_cache_resident_bytes(const SfPageCache *cache);

#endif

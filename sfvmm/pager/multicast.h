/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * multicast: this process's part in the multicast group of its snapshot, for the control thread: one mc_server at the
 * origin, one mc_client elsewhere, and what they have to say.
 */
#ifndef SF_PAGER_MULTICAST_H
#define SF_PAGER_MULTICAST_H

#include <gio/gio.h>
#include "sfvmm/pager/memtap.h"
#include "sfvmm/pager/page_store.h"
#include "sfvmm/pager/prefetch.h"
#include "sfvmm/wire/pager_message.h"

typedef struct Multicast Multicast;

/* Borrowed; they outlive it but for memtap and prefetch, which end before. */
typedef struct {
    struct page_store *store;
    struct memtap *memtap;
    struct prefetch *prefetch;
    void (*complete)(void *owner); /* from a thread: no page is absent any more */
    void (*blob)(uint64_t id, bool whole, void *owner); /* from a thread: what became of it; not at the origin */
    void *owner;
} MulticastParts;

/* Carries out an order `multicast`: begins at once. socket and keys stay the caller's. NULL + error. */
Multicast *multicast_new(const MulticastParts *parts, const SfPagerRequest *request, int socket, int keys,
                         GError **error);
void multicast_free(Multicast *multicast); /* ends the thread; NULL allowed */

void multicast_store_is_set(Multicast *multicast);
/* What the origin pushes first. */
void multicast_set_working_set(Multicast *multicast, const struct sf_pager_run *runs, guint n);

/* Carries out an order `blob`: the origin sends it to all, others gather it. file stays the caller's. FALSE + error. */
gboolean multicast_blob(Multicast *multicast, const SfPagerRequest *request, int file, GError **error);

/* For the answer to `stats`; the caller's. */
JsonObject *multicast_stats(Multicast *multicast);

#endif

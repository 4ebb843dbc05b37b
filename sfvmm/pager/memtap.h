/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memtap: answers page faults. One thread: the userfaultfds of all clones of this host, and the connections on which
 * pages are asked for because somebody waits.
 *
 * All calls from the control thread, unless said otherwise; they are orders to memtap's thread and return at once.
 */
#ifndef SF_PAGER_MEMTAP_H
#define SF_PAGER_MEMTAP_H

#include <stdatomic.h>
#include "sfvmm/pager/mc_client.h"
#include "sfvmm/pager/page_store.h"
#include "sfvmm/pager/source.h"
#include "sfvmm/wire/pager_message.h"

struct memtap;

struct memtap_handlers { /* all called in memtap's thread */
    /* A fault has waited for its bound. Told once. */
    void (*lost)(const char *reason, void *owner);
    /* A connection has come up or gone; reason: why, or NULL. */
    void (*source)(bool up, const char *uri, const char *reason, void *owner);
    void (*complete)(void *owner); /* no page is absent any more; may be told more than once */
};

struct memtap_options {
    unsigned fault_seconds; /* bound of one fault; 0: the default */
    struct memtap_handlers handlers;
    void *owner;
};

#define MEMTAP_LATENCIES 4096u /* the last ones are kept */

/* Counters; read from any thread. */
struct memtap_stats {
    atomic_uint_fast64_t faults, demand_faults;
    atomic_uint_fast64_t fetched_bytes, demand_bytes, neighbour_bytes;
    atomic_uint_fast64_t n_latencies;
    _Atomic uint32_t latency_ns[MEMTAP_LATENCIES]; /* of faults that were fetched, from reading the fault to waking */
};

struct memtap *memtap_new(struct page_store *store, const struct memtap_options *options);
bool memtap_start(struct memtap *memtap); /* false and errno */
void memtap_free(struct memtap *memtap);  /* ends the thread */

/* source: lives as long as memtap. */
void memtap_add_source(struct memtap *memtap, const struct source *source);
void memtap_store_is_set(struct memtap *memtap);
/* Pages are asked for by multicast first, while it works. Both outlive memtap. */
void memtap_set_multicast(struct memtap *memtap, struct mc_client *client, struct mc_listener *listener);
void memtap_set_neighbours(struct memtap *memtap, bool on);

/* Where the blocks of the store lie in a clone. Takes uffd. */
struct memtap_area {
    unsigned block;
    uint64_t address, length; /* bytes */
};
void memtap_attach(struct memtap *memtap, const char *name, int uffd, const struct memtap_area *areas,
                   unsigned n_areas);
void memtap_detach(struct memtap *memtap, const char *name);

const struct memtap_stats *memtap_stats(const struct memtap *memtap);

/* What has been fetched for faults, in order. Returns how many; copies at most max. */
unsigned memtap_recorded(struct memtap *memtap, struct sf_pager_run *runs, unsigned max);

#endif

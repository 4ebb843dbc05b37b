/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * prefetch: fetches pages that nobody waits for yet: a recorded working set, then, if asked, all that is absent. One
 * thread, connections of its own, so that a fault never stands behind it.
 *
 * All calls from the control thread; they are orders to its thread and return at once.
 */
#ifndef SF_PAGER_PREFETCH_H
#define SF_PAGER_PREFETCH_H

#include <stdatomic.h>
#include "sfvmm/pager/mc_client.h"
#include "sfvmm/pager/page_store.h"
#include "sfvmm/pager/source.h"
#include "sfvmm/wire/pager_message.h"

struct prefetch;

struct prefetch_options {
    unsigned connections; /* for the first block; 0: the default */
    /* Both called in prefetch's thread. */
    void (*complete)(void *owner);
    void (*down)(const char *uri, const char *reason, void *owner);
    void *owner;
};

struct prefetch *prefetch_new(struct page_store *store, const struct prefetch_options *options);
bool prefetch_start(struct prefetch *prefetch); /* false and errno */
void prefetch_free(struct prefetch *prefetch);  /* ends the thread */

void prefetch_add_source(struct prefetch *prefetch, const struct source *source); /* lives as long */
void prefetch_store_is_set(struct prefetch *prefetch);
/* Pages are asked for by multicast while it works. Both outlive prefetch. */
void prefetch_set_multicast(struct prefetch *prefetch, struct mc_client *client, struct mc_listener *listener);
void prefetch_set(struct prefetch *prefetch, bool working_set, bool complete);
void prefetch_set_working_set(struct prefetch *prefetch, const struct sf_pager_run *runs, unsigned n); /* copied */

uint64_t prefetch_bytes(const struct prefetch *prefetch); /* fetched so far; any thread */

#endif

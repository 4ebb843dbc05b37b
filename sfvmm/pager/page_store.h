/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * page_store: the pages of one snapshot as the threads of sf-pager see them.
 *
 *        control (main thread)  --- page_store_set() once ---+
 *                                                            v
 *        memtap thread, prefetch thread  --- note pages ---> page_store <--- look, fetch --- NBD server thread
 *
 * A block is a base memfd with delta layers over it. A complete base (a snapshot taken here) has all its content; a
 * cache (taken elsewhere) fills, and says with two bits per page what it has. Both bits only ever go from 0 to 1:
 *
 *        known   the page is no longer absent
 *        has     it is in the memfd, whole; if not, it is zero
 *
 * The descriptors belong to the store and live as long. Everything but page_store_new(), _set() and _free() may be
 * called from any thread; nothing blocks or locks but page_store_fetch(), which takes a short lock.
 */
#ifndef SF_PAGE_STORE_H
#define SF_PAGE_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include "sfvmm/wire/page_run.h"
#include "sfvmm/wire/qemu_channel.h"

struct page_store;

struct page_layer {
    int delta; /* memfd, offsets as in the block */
    uint32_t n_extents;
    const struct sf_qc_extent *extents; /* sorted, disjoint: where the delta covers what is below */
};

struct page_block {
    char id[SF_QC_NAME_LEN];
    uint64_t length; /* bytes, multiple of SF_PAGE_SIZE */
    int base;        /* memfd; writable when it is a cache */
    bool is_cache;
    uint32_t n_present; /* of a cache: runs that have content at the source; the rest is zero */
    const struct sf_qc_extent *present;
    uint32_t n_layers; /* above the base, lowest first */
    struct page_layer layers[SF_QC_MAX_LAYERS];
};

enum page_state {
    PAGE_ABSENT, /* of a cache: has to be fetched */
    PAGE_ZERO,
    PAGE_DATA, /* read it from the descriptor */
};

struct page_store *page_store_new(void);
void page_store_free(struct page_store *store); /* after all threads have ended */

/*
 * The snapshot, once: takes blocks (malloc'd array), what they point to (malloc'd) and all descriptors. state: memfd of
 * the device state, state_length bytes. Threads that look see all of it or nothing. `id`: the snapshot's, copied.
 */
void page_store_set(struct page_store *store, const char *id, struct page_block *blocks, unsigned n_blocks, int state,
                    uint64_t state_length);

/* Until then there is nothing to serve. When it is: callbacks, in the control thread, registered by it. */
bool page_store_is_set(const struct page_store *store);
void page_store_when_set(struct page_store *store, void (*callback)(void *data), void *data);

/* Once set. */
const char *page_store_id(const struct page_store *store);
unsigned page_store_n_blocks(const struct page_store *store);
const struct page_block *page_store_block(const struct page_store *store, unsigned block);
int page_store_find(const struct page_store *store, const char *id); /* -1: no such block */
int page_store_state(const struct page_store *store, uint64_t *length); /* fd of the device state */

/*
 * What is at offset (any byte; below the block's length), over all layers: the state, and how many bytes from offset on
 * have it (at most max_length, > 0). With PAGE_DATA also where to read them, in one memfd.
 */
enum page_state page_store_look(const struct page_store *store, unsigned block, uint64_t offset, uint64_t max_length,
                                uint64_t *length, int *fd, uint64_t *fd_offset);

/* The same of one layer alone: 0 is the base, i the i-th delta. What the layer does not cover is PAGE_ZERO. */
enum page_state page_store_look_layer(const struct page_store *store, unsigned block, unsigned layer, uint64_t offset,
                                      uint64_t max_length, uint64_t *length, int *fd, uint64_t *fd_offset);

/*
 * Have a range of a cache fetched (whole pages; at most PAGE_STORE_FETCH_MAX bytes). The callback comes once, in the
 * memtap thread, when no page of it is absent any more (error 0), or with an errno when it could not be had within
 * the bound of a fault: EIO, ETIMEDOUT. Then look again. It must be quick, and may be called before this function
 * returns only when the memtap thread calls it.
 */
#define PAGE_STORE_FETCH_MAX (1u << 20)
typedef void (*page_store_done)(void *data, int error);
void page_store_fetch(struct page_store *store, unsigned block, uint64_t offset, uint64_t length, page_store_done done,
                      void *data);

/* ---- for memtap and prefetch ---- */

/* Of a page of a cache's base (offset: page-aligned), layers not looked at. */
enum page_state page_store_base_state(const struct page_store *store, unsigned block, uint64_t offset);

/* Pages that have been written to the memfd, or are known to be zero. Returns how many of them were new. */
unsigned page_store_note(struct page_store *store, unsigned block, uint64_t offset, uint64_t length, bool zero);

/*
 * Notes that nobody had asked for these pages when they came; those that are no longer absent keep what they are.
 * Before page_store_note(), or when they are asked for ahead. For the statistics of prefetching.
 */
void page_store_mark_unasked(struct page_store *store, unsigned block, uint64_t offset, uint64_t length);

/*
 * The bits of a cache's pages that came unasked, lowest page first; n words of 64, of them set at most max. Returns
 * n.
 */
uint64_t page_store_unasked(const struct page_store *store, unsigned block, uint64_t *words, uint64_t max);

/*
 * Another process may fill the same memfd (the pager of a snapshot below): asks the kernel whether the page is there,
 * notes it if so. One system call.
 */
bool page_store_recheck(struct page_store *store, unsigned block, uint64_t offset);
/* The same for all pages of a range; a few system calls, two for each run of pages that is there. */
void page_store_recheck_range(struct page_store *store, unsigned block, uint64_t offset, uint64_t length);

/*
 * Marks pages that the prefetch thread has asked for, so that neighbours of a fault are not asked for twice; unmark
 * when they have come, or have not. A hint: a fault fetches its page all the same.
 */
void page_store_claim(struct page_store *store, unsigned block, uint64_t offset, uint64_t length, bool claimed);
bool page_store_is_claimed(const struct page_store *store, unsigned block, uint64_t offset);

/* The first run of absent pages at or behind offset, at most max_length bytes. false: none up to the block's end. */
bool page_store_next_absent(const struct page_store *store, unsigned block, uint64_t offset, uint64_t max_length,
                            uint64_t *start, uint64_t *length);

uint64_t page_store_resident(const struct page_store *store); /* bytes in the memfds of caches */
bool page_store_is_cache(const struct page_store *store);     /* a block has to be fetched, or had to */
bool page_store_is_complete(const struct page_store *store);  /* set, and no page is absent */

/* Requests of page_store_fetch(), taken by the memtap thread when the eventfd is readable. */
struct page_fetch {
    struct page_fetch *next;
    unsigned block;
    uint64_t offset, length;
    page_store_done done;
    void *data;
};
int page_store_fetch_eventfd(const struct page_store *store);
struct page_fetch *page_store_take_fetches(struct page_store *store); /* oldest first; free() each */

#endif

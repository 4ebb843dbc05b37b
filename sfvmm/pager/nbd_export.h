/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the page server exports of a snapshot, by name:
 *
 *     SNAPSHOT/BLOCK        a RAM block over all its layers: what clones fetch
 *     SNAPSHOT/BLOCK/0..k   each of its layers alone, the base first
 *     SNAPSHOT/state        the device state
 */
#ifndef SF_NBD_EXPORT_H
#define SF_NBD_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "sfvmm/pager/page_store.h"

#define NBD_EXPORT_NAME_LEN 192
#define NBD_EXPORT_FLAT     (-1) /* layer: all */

struct nbd_export {
    const struct page_store *store;
    bool is_state;
    unsigned block;
    int layer; /* or NBD_EXPORT_FLAT */
    uint64_t size;
};

/* Does the name belong to this snapshot, whatever follows? */
bool nbd_export_is_of(const char *snapshot, const char *name, size_t length);

/* false: no such export. The store must be set. name: not terminated. */
bool nbd_export_find(const struct page_store *store, const char *snapshot, const char *name, size_t length,
                     struct nbd_export *export);

/* All of them, from *at = 0: true while there is one. */
bool nbd_export_next(const struct page_store *store, const char *snapshot, unsigned *at,
                     char name[NBD_EXPORT_NAME_LEN]);

/* As page_store_look(). */
enum page_state nbd_export_look(const struct nbd_export *export, uint64_t offset, uint64_t max_length, uint64_t *length,
                                int *fd, uint64_t *fd_offset);

/* One line for people. */
void nbd_export_describe(const struct nbd_export *export, char *text, size_t size);

#endif

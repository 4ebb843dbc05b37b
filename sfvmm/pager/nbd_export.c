/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names of exports and the views behind them. Stateless; any thread. */
#include "sfvmm/pager/nbd_export.h"

#include <stdio.h>
#include <string.h>

#define STATE_NAME       "state"
#define LAYER_DIGITS_MAX 2 /* SF_QC_MAX_LAYERS is below 100 */

bool nbd_export_is_of(const char *snapshot, const char *name, size_t length)
{
    size_t prefix = strlen(snapshot);

    return length > prefix + 1 && memcmp(name, snapshot, prefix) == 0 && name[prefix] == '/';
}

static int find_block(const struct page_store *store, const char *name, size_t length)
{
    char id[SF_QC_NAME_LEN];

    if (length >= sizeof(id)) {
        return -1;
    }
    memcpy(id, name, length);
    id[length] = '\0';
    return page_store_find(store, id);
}

/* BLOCK/k: the length of BLOCK, and the layer. 0: it is none. */
static size_t split_layer(const char *name, size_t length, int *layer)
{
    size_t digits = 0;

    while (digits < length && name[length - 1 - digits] >= '0' && name[length - 1 - digits] <= '9') {
        digits++;
    }
    size_t slash = length - digits;
    if (digits == 0 || digits > LAYER_DIGITS_MAX || slash < 2 || name[slash - 1] != '/' ||
        (digits > 1 && name[slash] == '0')) {
        return 0;
    }
    *layer = 0;
    for (size_t i = slash; i < length; i++) {
        *layer = *layer * 10 + (name[i] - '0');
    }
    return slash - 1;
}

bool nbd_export_find(const struct page_store *store, const char *snapshot, const char *name, size_t length,
                     struct nbd_export *export)
{
    size_t prefix = strlen(snapshot) + 1;
    int block, layer = NBD_EXPORT_FLAT;

    if (!nbd_export_is_of(snapshot, name, length)) {
        return false;
    }
    *export = (struct nbd_export){ .store = store, .layer = NBD_EXPORT_FLAT };
    name += prefix;
    length -= prefix;
    if (length == strlen(STATE_NAME) && memcmp(name, STATE_NAME, length) == 0) {
        export->is_state = true;
        return page_store_state(store, &export->size) >= 0;
    }
    block = find_block(store, name, length);
    if (block < 0) {
        length = split_layer(name, length, &layer);
        block = length > 0 ? find_block(store, name, length) : -1;
    }
    if (block < 0 || layer > (int)page_store_block(store, (unsigned)block)->n_layers) {
        return false;
    }
    export->block = (unsigned)block;
    export->layer = layer;
    export->size = page_store_block(store, export->block)->length;
    return true;
}

bool nbd_export_next(const struct page_store *store, const char *snapshot, unsigned *at, char name[NBD_EXPORT_NAME_LEN])
{
    unsigned left = (*at)++;
    uint64_t length;

    for (unsigned i = 0; i < page_store_n_blocks(store); i++) {
        const struct page_block *block = page_store_block(store, i);
        if (left == 0) {
            snprintf(name, NBD_EXPORT_NAME_LEN, "%s/%s", snapshot, block->id);
            return true;
        }
        if (left <= block->n_layers + 1) {
            snprintf(name, NBD_EXPORT_NAME_LEN, "%s/%s/%u", snapshot, block->id, left - 1);
            return true;
        }
        left -= block->n_layers + 2;
    }
    snprintf(name, NBD_EXPORT_NAME_LEN, "%s/" STATE_NAME, snapshot);
    return left == 0 && page_store_state(store, &length) >= 0;
}

enum page_state nbd_export_look(const struct nbd_export *export, uint64_t offset, uint64_t max_length, uint64_t *length,
                                int *fd, uint64_t *fd_offset)
{
    if (export->is_state) {
        uint64_t size;
        *fd = page_store_state(export->store, &size);
        *fd_offset = offset;
        *length = max_length;
        return PAGE_DATA;
    }
    if (export->layer == NBD_EXPORT_FLAT) {
        return page_store_look(export->store, export->block, offset, max_length, length, fd, fd_offset);
    }
    return page_store_look_layer(export->store, export->block, (unsigned)export->layer, offset, max_length, length, fd,
                                 fd_offset);
}

void nbd_export_describe(const struct nbd_export *export, char *text, size_t size)
{
    if (export->is_state) {
        snprintf(text, size, "device state of the snapshot");
    } else if (export->layer == NBD_EXPORT_FLAT) {
        snprintf(text, size, "memory of the snapshot, all layers");
    } else if (export->layer == 0) {
        snprintf(text, size, "memory of the snapshot, base alone");
    } else {
        snprintf(text, size, "memory of the snapshot, delta %d alone", export->layer);
    }
}

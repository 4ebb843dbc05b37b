/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/pager/mc_blob_out.h"

#include <stdlib.h>

struct mc_blob_chunk {
    bool due;
    uint32_t sequence, at_ms; /* of the datagram that it last went out with; at_ms 0: never */
};

void mc_blob_out_clear(struct mc_blob_out *blob)
{
    free(blob->bytes);
    free(blob->chunks);
    *blob = (struct mc_blob_out){ 0 };
}

void mc_blob_out_set(struct mc_blob_out *blob, uint8_t *bytes, uint32_t total, uint64_t id, unsigned payload)
{
    mc_blob_out_clear(blob);
    *blob = (struct mc_blob_out){ .bytes = bytes, .total = total, .id = id };
    blob->n_due = blob->n_chunks = mc_chunk_count(total, payload);
    blob->chunks = calloc(blob->n_chunks, sizeof(*blob->chunks));
    if (blob->chunks == NULL) {
        abort();
    }
    for (uint32_t i = 0; i < blob->n_chunks; i++) {
        blob->chunks[i].due = true;
    }
}

bool mc_blob_out_ask(struct mc_blob_out *blob, uint32_t chunk, uint32_t highest, uint32_t now_ms, uint32_t lockstep_ms)
{
    struct mc_blob_chunk *of = chunk < blob->n_chunks ? &blob->chunks[chunk] : NULL;

    if (of == NULL || of->due || ((int32_t)(of->sequence - highest) > 0 && now_ms - of->at_ms <= lockstep_ms)) {
        return false;
    }
    of->due = true;
    blob->n_due++;
    if (chunk < blob->cursor) {
        blob->cursor = chunk;
    }
    return true;
}

bool mc_blob_out_add(struct mc_blob_out *blob, struct mc_batch *batch, uint32_t now_ms)
{
    uint32_t length = mc_chunk_length(batch->payload), offset;

    if (blob->n_due == 0) {
        return false;
    }
    while (!blob->chunks[blob->cursor].due) {
        blob->cursor++;
    }
    offset = blob->cursor * length;
    if (length > blob->total - offset) {
        length = blob->total - offset;
    }
    if (!mc_batch_add_chunk(batch, blob->id, blob->total, offset, blob->bytes + offset, length)) {
        return false;
    }
    blob->chunks[blob->cursor] =
        (struct mc_blob_chunk){ false, (uint32_t)(batch->first_sequence + batch->n_datagrams - 1), now_ms };
    blob->n_due--;
    return true;
}

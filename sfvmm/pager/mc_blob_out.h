/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_blob_out: the blob that the origin sends to the group: once on its own, then what receivers lack of it. Private to
 * mc_sender. Times in ms of the sender's life.
 *
 *      chunks    0  1  2  3  4 ...
 *      due       .  .  x  .  x      all at first; then those that are asked for again
 */
#ifndef SF_PAGER_MC_BLOB_OUT_H
#define SF_PAGER_MC_BLOB_OUT_H

#include "sfvmm/pager/mc_batch.h"

struct mc_blob_out {
    uint8_t *bytes; /* NULL: there is no blob */
    uint32_t total, n_chunks;
    uint64_t id;
    uint32_t n_due, cursor; /* cursor: no chunk below it is due */
    struct mc_blob_chunk *chunks;
};

void mc_blob_out_clear(struct mc_blob_out *blob);

/* All of it is due. bytes: total > 0 of them, malloc'd, taken; payload: of the datagrams. */
void mc_blob_out_set(struct mc_blob_out *blob, uint8_t *bytes, uint32_t total, uint64_t id, unsigned payload);

/*
 * A receiver that had seen sequences up to `highest` (low bits) lacks chunk number `chunk`: it is due again, unless it
 * is on its way (lockstep_ms: mc_sender's). false: it is not, or there is none.
 */
bool mc_blob_out_ask(struct mc_blob_out *blob, uint32_t chunk, uint32_t highest, uint32_t now_ms, uint32_t lockstep_ms);

/* The next chunk that is due goes into the batch. false: none is, or the batch is full. */
bool mc_blob_out_add(struct mc_blob_out *blob, struct mc_batch *batch, uint32_t now_ms);

#endif

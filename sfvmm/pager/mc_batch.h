/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_batch: datagrams of one send. Records are packed one behind the other, bodies are cut where a datagram is full, so
 * that all datagrams but the last have the same length:
 *
 *      |<----- payload ------>|<----- payload ------>|<- shorter ->|
 *      | H A r1 r2 r3.. .. | T| H A ..r3 r4 r5.. | T | H A ..r5 |T |      H header, A announcement, T tag
 *
 * Header and tag are filled in by mc_sealer_seal_batch(). One sendmsg() with UDP_SEGMENT = payload then sends it all.
 */
#ifndef SF_PAGER_MC_BATCH_H
#define SF_PAGER_MC_BATCH_H

#include "sfvmm/pager/mc_datagram.h"

#define MC_BATCH_DATAGRAMS 40u    /* at most; UDP_SEGMENT takes 64 */
#define MC_BATCH_BYTES     65000u /* at most; an UDP_SEGMENT send is bounded like one datagram */

struct mc_batch {
    unsigned payload;        /* bytes of each datagram but the last */
    unsigned max_datagrams;  /* what the buffer holds, or what the budget allows */
    unsigned n_datagrams;    /* begun so far */
    size_t length;           /* bytes used, up to and with the last tag once it is finished */
    uint64_t first_sequence; /* of its first datagram; the others follow */
    struct mc_announcement announcement;
    size_t at, end;     /* of the datagram that is being filled */
    uint8_t *last_zero; /* the last record, if it is of zero pages: it can grow */
    uint8_t bytes[MC_BATCH_BYTES];
};

/* A new, empty batch. payload: MC_PAYLOAD_MIN..MAX. max_datagrams: fewer than the buffer's if wanted, at least 1. */
void mc_batch_begin(struct mc_batch *batch, unsigned payload, unsigned max_datagrams, uint64_t first_sequence,
                    const struct mc_announcement *announcement);

/* These return false, and add nothing, when there is no room for the whole. */
bool mc_batch_add_zero(struct mc_batch *batch, unsigned block, uint32_t page, unsigned pages);
/* kind: MC_KIND_RAW or MC_KIND_LZ4; body: total bytes, at most SF_PAGE_SIZE. */
bool mc_batch_add_page(struct mc_batch *batch, unsigned kind, unsigned block, uint32_t page, const uint8_t *body,
                       unsigned total);
bool mc_batch_add_dismiss(struct mc_batch *batch, unsigned receiver, uint32_t ms);
/* Of a blob of `total` bytes: `length` bytes of it, no more than mc_chunk_length(), that begin at `offset`. */
bool mc_batch_add_chunk(struct mc_batch *batch, uint64_t id, uint32_t total, uint32_t offset, const uint8_t *bytes,
                        unsigned length);

/* Ends the last datagram. A batch without records becomes one datagram with the announcement alone. */
void mc_batch_finish(struct mc_batch *batch);

/* Datagram i of a finished batch: where it begins, its length with header and tag. */
uint8_t *mc_batch_datagram(struct mc_batch *batch, unsigned i, size_t *length);

/* ---- bodies ---- */

/* Of a page: LZ4 if that is shorter, else the page itself. Returns the kind; MC_KIND_ZERO: all zero, no body. */
unsigned mc_page_pack(const uint8_t page[SF_PAGE_SIZE], uint8_t body[SF_PAGE_SIZE], unsigned *total);

/* The page of a body that was received. false: it is not one of SF_PAGE_SIZE bytes; page is undefined then. */
bool mc_page_unpack(unsigned kind, const uint8_t *body, unsigned total, uint8_t page[SF_PAGE_SIZE]);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Packing. `at` is where the next record goes in the datagram that is being filled, `end` where its tag has to begin.
 * A body is cut in units of MC_FRAGMENT_UNIT; room that is too short for a fragment stays zero, which is padding.
 * Before anything is written it is known that the whole fits: a page is never sent in part for want of room.
 */
#include "sfvmm/pager/mc_batch.h"

#include <lz4.h>
#include <string.h>
#include "sfvmm/wire/big_endian.h"

#define FRAGMENT_ROOM_MIN (MC_PAGE_HEADER_LENGTH + MC_FRAGMENT_MIN)

static size_t datagram_start(const struct mc_batch *batch, unsigned i)
{
    return (size_t)i * batch->payload;
}

static void begin_datagram(struct mc_batch *batch)
{
    size_t start = datagram_start(batch, batch->n_datagrams++);
    uint8_t *p = batch->bytes + start + MC_HEADER_LENGTH;

    batch->at = start + MC_HEADER_LENGTH + MC_ANNOUNCEMENT_LENGTH;
    batch->end = start + batch->payload - MC_TAG_LENGTH;
    sf_be_put32(p, batch->announcement.backoff_us);
    sf_be_put32(p + 4, batch->announcement.wait_us[MC_DEMAND]);
    sf_be_put32(p + 8, batch->announcement.wait_us[MC_PREFETCH]);
    sf_be_put16(p + 12, batch->announcement.report_ms);
    sf_be_put16(p + 14, batch->announcement.receivers);
}

/* Goes on in the next datagram; what is left of this one is padding. */
static void next_datagram(struct mc_batch *batch)
{
    memset(batch->bytes + batch->at, MC_KIND_PAD, batch->end - batch->at);
    begin_datagram(batch);
}

/* Of a datagram that holds nothing yet. */
static size_t room_of_new(const struct mc_batch *batch)
{
    return batch->payload - MC_OVERHEAD - MC_ANNOUNCEMENT_LENGTH;
}

/* What of `left` bytes of a body goes into `room`; 0: a fragment here is not worth its header. */
static unsigned fragment_length(size_t room, unsigned left)
{
    if (room >= MC_PAGE_HEADER_LENGTH + left) {
        return left;
    }
    if (room < FRAGMENT_ROOM_MIN) {
        return 0;
    }
    return (unsigned)((room - MC_PAGE_HEADER_LENGTH) / MC_FRAGMENT_UNIT * MC_FRAGMENT_UNIT);
}

static bool body_fits(const struct mc_batch *batch, unsigned total)
{
    unsigned datagrams = batch->n_datagrams;
    unsigned left = total - fragment_length(batch->end - batch->at, total);

    for (; left > 0; left -= fragment_length(room_of_new(batch), left)) {
        if (++datagrams > batch->max_datagrams) {
            return false;
        }
    }
    return true;
}

void mc_batch_begin(struct mc_batch *batch, unsigned payload, unsigned max_datagrams, uint64_t first_sequence,
                    const struct mc_announcement *announcement)
{
    unsigned fit = MC_BATCH_BYTES / payload;

    batch->payload = payload;
    batch->max_datagrams = fit < MC_BATCH_DATAGRAMS ? fit : MC_BATCH_DATAGRAMS;
    if (max_datagrams < batch->max_datagrams) {
        batch->max_datagrams = max_datagrams;
    }
    batch->n_datagrams = 0;
    batch->length = 0;
    batch->first_sequence = first_sequence;
    batch->announcement = *announcement;
    batch->last_zero = NULL;
    begin_datagram(batch);
}

/* Room for a record that is not cut. NULL: there is none. */
static uint8_t *take_room(struct mc_batch *batch, size_t length)
{
    uint8_t *p;

    if (batch->end - batch->at < length) {
        if (batch->n_datagrams == batch->max_datagrams) {
            return NULL;
        }
        next_datagram(batch);
    }
    p = batch->bytes + batch->at;
    batch->at += length;
    batch->last_zero = NULL;
    return p;
}

static uint8_t *add_short(struct mc_batch *batch, unsigned kind, unsigned block, unsigned number, uint32_t value)
{
    uint8_t *p = take_room(batch, MC_SHORT_RECORD_LENGTH);

    if (p == NULL) {
        return NULL;
    }
    p[0] = (uint8_t)kind;
    p[1] = (uint8_t)block;
    sf_be_put16(p + 2, (uint16_t)number);
    sf_be_put32(p + 4, value);
    return p;
}

/* The last record, if it is one of zeros that these pages follow, grows. */
static bool grow_zero(struct mc_batch *batch, unsigned block, uint32_t page, unsigned pages)
{
    uint8_t *p = batch->last_zero;
    unsigned n;

    if (p == NULL) {
        return false;
    }
    n = sf_be_get16(p + 2);
    if (p[1] != block || (uint64_t)sf_be_get32(p + 4) + n != page || n + pages > MC_RUN_MAX) {
        return false;
    }
    sf_be_put16(p + 2, (uint16_t)(n + pages));
    return true;
}

bool mc_batch_add_zero(struct mc_batch *batch, unsigned block, uint32_t page, unsigned pages)
{
    if (!grow_zero(batch, block, page, pages)) {
        batch->last_zero = add_short(batch, MC_KIND_ZERO, block, pages, page);
    }
    return batch->last_zero != NULL;
}

bool mc_batch_add_dismiss(struct mc_batch *batch, unsigned receiver, uint32_t ms)
{
    return add_short(batch, MC_KIND_DISMISS, 0, receiver, ms) != NULL;
}

bool mc_batch_add_chunk(struct mc_batch *batch, uint64_t id, uint32_t total, uint32_t offset, const uint8_t *bytes,
                        unsigned length)
{
    uint8_t *p = take_room(batch, MC_CHUNK_HEADER_LENGTH + length);

    if (p == NULL) {
        return false;
    }
    p[0] = MC_KIND_CHUNK;
    p[1] = 0;
    sf_be_put16(p + 2, (uint16_t)length);
    sf_be_put32(p + 4, offset);
    sf_be_put32(p + 8, total);
    sf_be_put64(p + 12, id);
    memcpy(p + MC_CHUNK_HEADER_LENGTH, bytes, length);
    return true;
}

bool mc_batch_add_page(struct mc_batch *batch, unsigned kind, unsigned block, uint32_t page, const uint8_t *body,
                       unsigned total)
{
    unsigned offset = 0, length;
    uint8_t *p;

    if (!body_fits(batch, total)) {
        return false;
    }
    batch->last_zero = NULL;
    for (; offset < total; offset += length) {
        length = fragment_length(batch->end - batch->at, total - offset);
        if (length == 0) {
            next_datagram(batch);
            length = fragment_length(batch->end - batch->at, total - offset);
        }
        p = batch->bytes + batch->at;
        p[0] = (uint8_t)kind;
        p[1] = (uint8_t)block;
        sf_be_put16(p + 2, (uint16_t)length);
        sf_be_put32(p + 4, page);
        sf_be_put16(p + 8, (uint16_t)total);
        sf_be_put16(p + 10, (uint16_t)offset);
        memcpy(p + MC_PAGE_HEADER_LENGTH, body + offset, length);
        batch->at += MC_PAGE_HEADER_LENGTH + length;
    }
    return true;
}

void mc_batch_finish(struct mc_batch *batch)
{
    batch->length = batch->at + MC_TAG_LENGTH;
}

uint8_t *mc_batch_datagram(struct mc_batch *batch, unsigned i, size_t *length)
{
    size_t start = datagram_start(batch, i);

    *length = i + 1 < batch->n_datagrams ? batch->payload : batch->length - start;
    return batch->bytes + start;
}

/* ---- bodies ---- */

static bool is_zero(const uint8_t page[SF_PAGE_SIZE])
{
    return page[0] == 0 && memcmp(page, page + 1, SF_PAGE_SIZE - 1) == 0;
}

unsigned mc_page_pack(const uint8_t page[SF_PAGE_SIZE], uint8_t body[SF_PAGE_SIZE], unsigned *total)
{
    int packed;

    *total = 0;
    if (is_zero(page)) {
        return MC_KIND_ZERO;
    }
    packed = LZ4_compress_default((const char *)page, (char *)body, SF_PAGE_SIZE, SF_PAGE_SIZE - 1);
    if (packed > 0) {
        *total = (unsigned)packed;
        return MC_KIND_LZ4;
    }
    memcpy(body, page, SF_PAGE_SIZE);
    *total = SF_PAGE_SIZE;
    return MC_KIND_RAW;
}

bool mc_page_unpack(unsigned kind, const uint8_t *body, unsigned total, uint8_t page[SF_PAGE_SIZE])
{
    switch (kind) {
    case MC_KIND_ZERO:
        memset(page, 0, SF_PAGE_SIZE);
        return true;
    case MC_KIND_RAW:
        if (total != SF_PAGE_SIZE) {
            return false;
        }
        memcpy(page, body, SF_PAGE_SIZE);
        return true;
    case MC_KIND_LZ4:
        return LZ4_decompress_safe((const char *)body, (char *)page, (int)total, SF_PAGE_SIZE) == (int)SF_PAGE_SIZE;
    default:
        return false;
    }
}

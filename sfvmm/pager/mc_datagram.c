/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Strict decoding of multicast datagrams. What is encrypted comes from who has a key, and is checked all the same: that
 * host may have been taken over. One function reads a record and checks what can be checked without the shape;
 * mc_data_decode() has it walk over all of the datagram before anything is used.
 */
#include "sfvmm/pager/mc_datagram.h"

#include "sfvmm/wire/big_endian.h"

/* Offsets, as drawn in the header file. */
enum {
    HEADER_VERSION = 4,
    HEADER_TYPE = 5,
    HEADER_SENDER = 6,
    HEADER_TAG = 8,
    HEADER_INCARNATION = 16,
    HEADER_SEQUENCE = 24
};
enum {
    REPORT_HIGHEST = 8,
    REPORT_RECEIVED = 16,
    REPORT_MISSING = 24,
    REPORT_FLAGS = 32,
    REPORT_ZERO = 33,
    REPORT_RUNS = 34
};

bool mc_header_decode(const uint8_t *bytes, size_t n, struct mc_header *header)
{
    if (n < MC_OVERHEAD || sf_be_get32(bytes) != MC_MAGIC || bytes[HEADER_VERSION] != MC_VERSION) {
        return false;
    }
    header->type = bytes[HEADER_TYPE];
    header->sender = sf_be_get16(bytes + HEADER_SENDER);
    header->tag = sf_be_get64(bytes + HEADER_TAG);
    header->incarnation = sf_be_get64(bytes + HEADER_INCARNATION);
    header->sequence = sf_be_get64(bytes + HEADER_SEQUENCE);
    return header->sequence > 0;
}

void mc_header_encode(uint8_t bytes[MC_HEADER_LENGTH], const struct mc_header *header)
{
    sf_be_put32(bytes, MC_MAGIC);
    bytes[HEADER_VERSION] = MC_VERSION;
    bytes[HEADER_TYPE] = header->type;
    sf_be_put16(bytes + HEADER_SENDER, header->sender);
    sf_be_put64(bytes + HEADER_TAG, header->tag);
    sf_be_put64(bytes + HEADER_INCARNATION, header->incarnation);
    sf_be_put64(bytes + HEADER_SEQUENCE, header->sequence);
}

uint32_t mc_chunk_length(unsigned payload)
{
    return payload - MC_OVERHEAD - MC_ANNOUNCEMENT_LENGTH - MC_CHUNK_HEADER_LENGTH;
}

uint32_t mc_chunk_count(uint32_t total, unsigned payload)
{
    return (total - 1) / mc_chunk_length(payload) + 1;
}

/* ---- data ---- */

static bool body_is_sound(const struct mc_record *record)
{
    unsigned end = (unsigned)record->offset + record->length;

    return (record->kind == MC_KIND_RAW ? record->total == SF_PAGE_SIZE
                                        : record->total > 0 && record->total < SF_PAGE_SIZE) &&
           record->length > 0 && end <= record->total && record->offset % MC_FRAGMENT_UNIT == 0 &&
           (record->length % MC_FRAGMENT_UNIT == 0 || end == record->total);
}

/* Of n bytes. Returns its length, 0 if it is none. */
static size_t chunk_decode(const uint8_t *bytes, size_t n, struct mc_record *record)
{
    if (n < MC_CHUNK_HEADER_LENGTH || record->block != 0) {
        return 0;
    }
    record->length = sf_be_get16(bytes + 2);
    record->blob_offset = sf_be_get32(bytes + 4);
    record->blob_total = sf_be_get32(bytes + 8);
    record->blob_id = sf_be_get64(bytes + 12);
    record->bytes = bytes + MC_CHUNK_HEADER_LENGTH;
    return record->length > 0 && record->length <= n - MC_CHUNK_HEADER_LENGTH && record->blob_total <= MC_BLOB_MAX &&
                   record->blob_offset < record->blob_total &&
                   record->length <= record->blob_total - record->blob_offset
               ? MC_CHUNK_HEADER_LENGTH + (size_t)record->length
               : 0;
}

/* The record at the beginning of n > 0 bytes. Returns its length, 0 if it is none, n if it is padding. */
static size_t record_decode(const uint8_t *bytes, size_t n, struct mc_record *record)
{
    *record = (struct mc_record){ .kind = bytes[0] };
    if (record->kind == MC_KIND_PAD) {
        for (size_t i = 1; i < n; i++) {
            if (bytes[i] != 0) {
                return 0;
            }
        }
        return n;
    }
    if (n < MC_SHORT_RECORD_LENGTH) {
        return 0;
    }
    record->block = bytes[1];
    switch (record->kind) {
    case MC_KIND_ZERO:
        record->pages = sf_be_get16(bytes + 2);
        record->page = sf_be_get32(bytes + 4);
        return record->pages > 0 && record->pages <= MC_RUN_MAX ? MC_SHORT_RECORD_LENGTH : 0;
    case MC_KIND_DISMISS:
        record->receiver = sf_be_get16(bytes + 2);
        record->dismiss_ms = sf_be_get32(bytes + 4);
        return record->block == 0 && record->receiver > 0 ? MC_SHORT_RECORD_LENGTH : 0;
    case MC_KIND_CHUNK:
        return chunk_decode(bytes, n, record);
    case MC_KIND_RAW:
    case MC_KIND_LZ4:
        if (n < MC_PAGE_HEADER_LENGTH) {
            return 0;
        }
        record->pages = 1;
        record->length = sf_be_get16(bytes + 2);
        record->page = sf_be_get32(bytes + 4);
        record->total = sf_be_get16(bytes + 8);
        record->offset = sf_be_get16(bytes + 10);
        record->bytes = bytes + MC_PAGE_HEADER_LENGTH;
        return body_is_sound(record) && record->length <= n - MC_PAGE_HEADER_LENGTH
                   ? MC_PAGE_HEADER_LENGTH + (size_t)record->length
                   : 0;
    default:
        return 0;
    }
}

static bool in_shape(const struct mc_shape *shape, unsigned block, uint32_t page, unsigned pages)
{
    return block < shape->n_blocks && page < shape->pages[block] && pages <= shape->pages[block] - page;
}

bool mc_data_decode(const uint8_t *bytes, size_t n, const struct mc_shape *shape, struct mc_announcement *announcement)
{
    size_t at = MC_ANNOUNCEMENT_LENGTH, length;
    struct mc_record record;

    if (n < MC_ANNOUNCEMENT_LENGTH) {
        return false;
    }
    announcement->backoff_us = sf_be_get32(bytes);
    announcement->wait_us[MC_DEMAND] = sf_be_get32(bytes + 4);
    announcement->wait_us[MC_PREFETCH] = sf_be_get32(bytes + 8);
    announcement->report_ms = sf_be_get16(bytes + 12);
    announcement->receivers = sf_be_get16(bytes + 14);
    for (; at < n; at += length) {
        length = record_decode(bytes + at, n - at, &record);
        if (length == 0) {
            return false;
        }
        if (shape != NULL && record.pages > 0 && !in_shape(shape, record.block, record.page, record.pages)) {
            return false;
        }
    }
    return true;
}

bool mc_data_next(const uint8_t *bytes, size_t n, size_t *at, struct mc_record *record)
{
    size_t length;

    if (*at == 0) {
        *at = MC_ANNOUNCEMENT_LENGTH;
    }
    if (*at >= n) {
        return false;
    }
    length = record_decode(bytes + *at, n - *at, record);
    *at += length;
    return length > 0 && record->kind != MC_KIND_PAD;
}

/* ---- requests ---- */

struct mc_run mc_request_run(const uint8_t *bytes, unsigned i)
{
    const uint8_t *p = bytes + MC_REPORT_LENGTH + (size_t)i * MC_RUN_LENGTH;

    return (struct mc_run){ p[0], p[1], sf_be_get16(p + 2), sf_be_get32(p + 4) };
}

/* Are there such pages, or can there be such chunks? */
static bool run_is_sound(const struct mc_run *run, const struct mc_shape *shape)
{
    if (run->pages == 0 || run->pages > MC_RUN_MAX) {
        return false;
    }
    return run->priority == MC_CHUNKS
               ? run->block == 0 && run->page < MC_BLOB_MAX
               : run->priority < MC_PRIORITIES && in_shape(shape, run->block, run->page, run->pages);
}

bool mc_request_decode(const uint8_t *bytes, size_t n, const struct mc_shape *shape, struct mc_report *report,
                       unsigned *n_runs)
{
    if (n < MC_REPORT_LENGTH) {
        return false;
    }
    report->incarnation = sf_be_get64(bytes);
    report->highest = sf_be_get64(bytes + REPORT_HIGHEST);
    report->received = sf_be_get64(bytes + REPORT_RECEIVED);
    report->missing = sf_be_get64(bytes + REPORT_MISSING);
    report->flags = bytes[REPORT_FLAGS];
    *n_runs = sf_be_get16(bytes + REPORT_RUNS);
    if ((report->flags & ~(MC_FLAG_LEAVING | MC_FLAG_UNICAST)) || bytes[REPORT_ZERO] != 0 ||
        n != MC_REPORT_LENGTH + (size_t)*n_runs * MC_RUN_LENGTH) {
        return false;
    }
    for (unsigned i = 0; i < *n_runs; i++) {
        struct mc_run run = mc_request_run(bytes, i);
        if (!run_is_sound(&run, shape) ||
            (run.priority == MC_CHUNKS) != (mc_request_run(bytes, 0).priority == MC_CHUNKS)) {
            return false;
        }
    }
    return true;
}

size_t mc_request_encode(uint8_t *bytes, const struct mc_report *report, const struct mc_run *runs, unsigned n_runs)
{
    uint8_t *p = bytes + MC_REPORT_LENGTH;

    sf_be_put64(bytes, report->incarnation);
    sf_be_put64(bytes + REPORT_HIGHEST, report->highest);
    sf_be_put64(bytes + REPORT_RECEIVED, report->received);
    sf_be_put64(bytes + REPORT_MISSING, report->missing);
    bytes[REPORT_FLAGS] = report->flags;
    bytes[REPORT_ZERO] = 0;
    sf_be_put16(bytes + REPORT_RUNS, (uint16_t)n_runs);
    for (unsigned i = 0; i < n_runs; i++, p += MC_RUN_LENGTH) {
        p[0] = runs[i].priority;
        p[1] = runs[i].block;
        sf_be_put16(p + 2, runs[i].pages);
        sf_be_put32(p + 4, runs[i].page);
    }
    return (size_t)(p - bytes);
}

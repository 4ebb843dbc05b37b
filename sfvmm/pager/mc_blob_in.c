/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * The origin sends the chunks in their order, once, without being asked: who loses none asks for nothing. What was lost
 * is asked for END_NS after the last chunk has come (what comes later than that has been overtaken by much), or
 * QUIET_NS after the last one that came at all; with many receivers a random part of the announced back-off later, so
 * that a chunk that many have lost is asked for by few. Without an answer it asks again after AGAIN_NS; after ASKS_DEAF
 * such requests if the group has never been heard, after ASKS if it has, or BOUND_NS in all, it gives up: somebody
 * waits, and has another way.
 *
 *      0  1  2  x  4  x  6  7(last)  --END_NS-->  ask for 3, 5  -->  3  5  whole
 *      0  1  2                       --QUIET_NS-> ask for 3..7  --AGAIN_NS-> ask ... --> given up
 */
#include "sfvmm/pager/mc_blob_in.h"

#include <stdlib.h>
#include <string.h>

#define NS_PER_MS 1000000ll
#define NS_PER_US 1000ll

#define END_NS   (1 * NS_PER_MS)
#define QUIET_NS (10 * NS_PER_MS) /* two bursts of the origin's, at any rate */
#define AGAIN_NS (40 * NS_PER_MS) /* above the origin's lockstep (30 ms) */
#define BOUND_NS (1000 * NS_PER_MS)

#define ASKS_DEAF 3u
#define ASKS      6u
#define RUNS_MAX  128u /* of one request: what is left comes with the next */

struct mc_blob_in {
    uint64_t id, random;
    uint32_t total, n_chunks, n_lacking;
    unsigned payload, unanswered;
    uint64_t incarnation, highest; /* that has come */
    uint32_t backoff_us;
    int64_t due, given_up_at;
    bool given_up;
    bool *has; /* of each chunk */
    uint8_t bytes[];
};

struct mc_blob_in *mc_blob_in_new(uint64_t id, uint32_t total, unsigned payload, uint64_t seed, int64_t now)
{
    struct mc_blob_in *blob = calloc(1, sizeof(*blob) + total);

    if (blob == NULL) {
        abort();
    }
    blob->id = id;
    blob->total = total;
    blob->payload = payload;
    blob->random = seed;
    blob->n_lacking = blob->n_chunks = mc_chunk_count(total, payload);
    blob->due = now + QUIET_NS;
    blob->given_up_at = now + BOUND_NS;
    blob->has = calloc(blob->n_chunks, sizeof(*blob->has));
    if (blob->has == NULL) {
        abort();
    }
    return blob;
}

void mc_blob_in_free(struct mc_blob_in *blob)
{
    if (blob != NULL) {
        free(blob->has);
        free(blob);
    }
}

enum mc_blob_state mc_blob_in_state(const struct mc_blob_in *blob)
{
    return blob->n_lacking == 0 ? MC_BLOB_WHOLE : blob->given_up ? MC_BLOB_GIVEN_UP : MC_BLOB_WAITED_FOR;
}

const uint8_t *mc_blob_in_bytes(const struct mc_blob_in *blob)
{
    return blob->bytes;
}

/* A part of the back-off. */
static int64_t random_delay(struct mc_blob_in *blob)
{
    blob->random = blob->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return blob->backoff_us > 0 ? (int64_t)((blob->random >> 32) % blob->backoff_us) * NS_PER_US : 0;
}

static void take_chunk(struct mc_blob_in *blob, const struct mc_record *record, int64_t now)
{
    uint32_t length = mc_chunk_length(blob->payload), chunk = record->blob_offset / length;
    uint32_t left = blob->total - chunk * length;

    if (record->blob_offset % length != 0 || record->length != (left < length ? left : length)) {
        return; /* not cut as it should be: the origin's datagrams have another length */
    }
    if (!blob->has[chunk]) {
        memcpy(blob->bytes + record->blob_offset, record->bytes, record->length);
        blob->has[chunk] = true;
        blob->n_lacking--;
        blob->unanswered = 0;
    }
    blob->due = now + (blob->has[blob->n_chunks - 1] ? END_NS : QUIET_NS) + random_delay(blob);
}

bool mc_blob_in_take(struct mc_blob_in *blob, uint64_t incarnation, uint64_t sequence, const uint8_t *content,
                     size_t length, int64_t now)
{
    struct mc_announcement said;
    struct mc_record record;
    size_t at = 0;

    if (!mc_data_decode(content, length, NULL, &said)) {
        return false;
    }
    blob->backoff_us = said.backoff_us;
    if (incarnation != blob->incarnation) {
        blob->incarnation = incarnation;
        blob->highest = 0;
    }
    if (sequence > blob->highest) {
        blob->highest = sequence;
    }
    while (mc_data_next(content, length, &at, &record)) {
        if (record.kind == MC_KIND_CHUNK && record.blob_id == blob->id && record.blob_total == blob->total) {
            take_chunk(blob, &record, now);
        }
    }
    return true;
}

int64_t mc_blob_in_next(const struct mc_blob_in *blob)
{
    return mc_blob_in_state(blob) != MC_BLOB_WAITED_FOR ? INT64_MAX
           : blob->due < blob->given_up_at              ? blob->due
                                                        : blob->given_up_at;
}

/* What is lacking, from the beginning on. */
static unsigned lacking_runs(const struct mc_blob_in *blob, struct mc_run *runs, unsigned max)
{
    unsigned n = 0;

    for (uint32_t i = 0; i < blob->n_chunks; i++) {
        if (blob->has[i]) {
            continue;
        }
        if (n > 0 && runs[n - 1].page + runs[n - 1].pages == i && runs[n - 1].pages < MC_RUN_MAX) {
            runs[n - 1].pages++;
        } else if (n < max) {
            runs[n++] = (struct mc_run){ MC_CHUNKS, 0, 1, i };
        } else {
            break;
        }
    }
    return n;
}

size_t mc_blob_in_poll(struct mc_blob_in *blob, uint8_t *content, int64_t now)
{
    unsigned max = (blob->payload - MC_OVERHEAD - MC_REPORT_LENGTH) / MC_RUN_LENGTH;
    struct mc_report report = { .incarnation = blob->incarnation, .highest = blob->highest };
    struct mc_run runs[RUNS_MAX];

    if (now < mc_blob_in_next(blob)) {
        return 0;
    }
    if (blob->unanswered == (blob->highest == 0 ? ASKS_DEAF : ASKS) || now >= blob->given_up_at) {
        blob->given_up = true;
        return 0;
    }
    blob->unanswered++;
    blob->due = now + AGAIN_NS + random_delay(blob);
    return mc_request_encode(content, &report, runs, lacking_runs(blob, runs, max < RUNS_MAX ? max : RUNS_MAX));
}

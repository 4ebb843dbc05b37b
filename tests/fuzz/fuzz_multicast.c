/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Multicast datagrams. The first byte of an input says where it arrives:
 *
 *     0   in front of the AEAD: whatever is on the network; nothing of it may be opened
 *     1   behind it, at a receiver: what somebody with the group's key could send
 *     2   behind it, at the origin: what a receiver could send
 *     3   behind it, at a host that awaits a blob, and does not know the snapshot yet
 *
 * 1 to 3: the rest is a sequence of datagrams, two bytes of length before each; time goes on between them. What the
 * receiver takes must lie within the memory, what it asks for must be well-formed to the origin, and what the origin
 * sends must be well-formed to a receiver.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/pager/mc_blob_in.h"
#include "sfvmm/pager/mc_receiver.h"
#include "sfvmm/pager/mc_seal.h"
#include "sfvmm/pager/mc_sender.h"
#include "sfvmm/wire/big_endian.h"

#define PAGES       64u
#define INCARNATION 1u
#define STEP_NS     7000000ll /* between datagrams */
#define TURNS_MAX   64u
#define BLOB_ID     UINT64_C(0x0102030405060708)
#define BLOB_LENGTH 3000u /* three chunks */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct mc_shape shape = { 2, { PAGES, 3 } };
static const uint8_t master[MC_KEY_LENGTH] = "nobody has this";
static bool has[2][PAGES];

static void need(bool what)
{
    if (!what) {
        abort();
    }
}

/* ---- in front ---- */

static void in_front(const uint8_t *data, size_t size)
{
    struct mc_receiver_keys keys;
    struct mc_opener *opener;
    struct mc_header header;
    const uint8_t *content;
    size_t length;
    uint8_t *copy = malloc(size + 1);

    need(copy != NULL && mc_keys_derive(master, 1, &keys));
    opener = mc_opener_new(MC_DATA, 0, keys.tag, keys.data);
    for (unsigned i = 0; i < 2; i++) { /* as it is, and with a tag that fits: the key is tried */
        memcpy(copy, data, size);
        if (i == 1 && size >= MC_HEADER_LENGTH) {
            sf_be_put64(copy + 8, keys.tag);
        }
        need(mc_opener_open(opener, copy, size, &header, &content, &length) != MC_OPENED);
    }
    mc_opener_free(opener);
    free(copy);
}

/* ---- at a receiver ---- */

static bool lacks(void *owner, unsigned block, uint32_t page)
{
    need(block < shape.n_blocks && page < shape.pages[block]);
    return !has[block][page];
}

static bool page_came(void *owner, unsigned block, uint32_t page, unsigned pages, const struct mc_body *body,
                      bool asked)
{
    uint8_t bytes[SF_PAGE_SIZE];

    need(block < shape.n_blocks && page < shape.pages[block] && pages <= shape.pages[block] - page);
    if (!mc_page_unpack(body->kind, body->bytes, body->total, bytes)) {
        return false;
    }
    for (unsigned i = 0; i < pages; i++) {
        has[block][page + i] = true;
    }
    return true;
}

static void fall_back(void *owner, unsigned block, uint32_t page, unsigned pages, enum mc_priority priority)
{
    need(block < shape.n_blocks && page < shape.pages[block] && pages <= shape.pages[block] - page);
}

static void changed(void *owner, enum mc_state state, const char *reason)
{
    need(reason != NULL);
}

/* The next datagram of the input; false: no more. */
static bool take_datagram(const uint8_t **data, size_t *size, const uint8_t **datagram, size_t *length)
{
    if (*size < 2) {
        return false;
    }
    *length = sf_be_get16(*data);
    *data += 2;
    *size -= 2;
    if (*length > *size) {
        *length = *size;
    }
    *datagram = *data;
    *data += *length;
    *size -= *length;
    return true;
}

static void at_receiver(const uint8_t *data, size_t size)
{
    struct mc_receiver_config config = { .shape = shape,
                                         .id = 1,
                                         .max_partial = 4,
                                         .max_pending = 16,
                                         .seed = size,
                                         .lacks = lacks,
                                         .page = page_came,
                                         .fall_back = fall_back,
                                         .changed = changed };
    struct mc_receiver *receiver = mc_receiver_new(&config, 0);
    uint8_t request[MC_PAYLOAD_DEFAULT];
    const uint8_t *datagram;
    int64_t now = 0;
    size_t length;

    memset(has, 0, sizeof(has));
    mc_receiver_want(receiver, 0, 3, 5, MC_DEMAND, now);
    mc_receiver_want(receiver, 0, 0, PAGES, MC_PREFETCH, now);
    for (uint64_t sequence = 1; take_datagram(&data, &size, &datagram, &length); sequence += 1 + length % 3) {
        struct mc_report report;
        unsigned n_runs, turns = 0;
        size_t n;
        mc_receiver_take(receiver, INCARNATION, sequence, datagram, length, now);
        now += STEP_NS;
        while ((n = mc_receiver_poll(receiver, request, now)) > 0) {
            need(mc_request_decode(request, n, &shape, &report, &n_runs) && ++turns < TURNS_MAX);
        }
        mc_receiver_want(receiver, 1, (uint32_t)(sequence % 3), 1, MC_DEMAND, now);
    }
    mc_receiver_free(receiver);
}

/* ---- at a host that awaits a blob ---- */

static void at_waiting(const uint8_t *data, size_t size)
{
    struct mc_blob_in *blob = mc_blob_in_new(BLOB_ID, BLOB_LENGTH, MC_PAYLOAD_DEFAULT, size, 0);
    uint8_t request[MC_PAYLOAD_DEFAULT];
    const uint8_t *datagram;
    int64_t now = 0;
    size_t length;

    for (uint64_t sequence = 1; take_datagram(&data, &size, &datagram, &length); sequence += 1 + length % 3) {
        struct mc_report report;
        unsigned n_runs;
        size_t n;
        mc_blob_in_take(blob, INCARNATION, sequence, datagram, length, now);
        now += STEP_NS;
        n = mc_blob_in_poll(blob, request, now);
        need(n == 0 || mc_request_decode(request, n, &shape, &report, &n_runs));
        need(mc_blob_in_next(blob) > now);
    }
    mc_blob_in_free(blob);
}

/* ---- at the origin ---- */

static unsigned read_page(void *owner, unsigned block, uint32_t page, uint8_t body[SF_PAGE_SIZE], unsigned *total)
{
    need(block < shape.n_blocks && page < shape.pages[block]);
    *total = 1000 + page;
    memset(body, (int)page, *total);
    return page % 4 == 0 ? MC_KIND_ZERO : page % 4 == 1 ? MC_KIND_PAD : MC_KIND_LZ4;
}

static void at_origin(const uint8_t *data, size_t size)
{
    struct mc_sender_config config = { .shape = shape, .max_receivers = 3, .push = true, .read = read_page };
    struct mc_sender *sender = mc_sender_new(&config, 0);
    struct mc_batch *batch = malloc(sizeof(*batch));
    const uint8_t *datagram;
    int64_t now = 0;
    size_t length;

    need(batch != NULL);
    mc_sender_set_incarnation(sender, INCARNATION);
    mc_sender_set_blob(sender, calloc(1, BLOB_LENGTH), BLOB_LENGTH, BLOB_ID);
    for (unsigned i = 0; take_datagram(&data, &size, &datagram, &length); i++) {
        struct mc_announcement said;
        unsigned turns = 0;
        mc_sender_take(sender, i % 5, datagram, length, now);
        now += STEP_NS;
        while (mc_sender_fill(sender, batch, now) > 0) {
            need(++turns < TURNS_MAX);
            for (unsigned d = 0; d < batch->n_datagrams; d++) {
                size_t n;
                const uint8_t *bytes = mc_batch_datagram(batch, d, &n);
                need(mc_data_decode(bytes + MC_HEADER_LENGTH, n - MC_OVERHEAD, &shape, &said));
            }
        }
    }
    free(batch);
    mc_sender_free(sender);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    if (data[0] == 0) {
        in_front(data + 1, size - 1);
    } else if (data[0] == 1) {
        at_receiver(data + 1, size - 1);
    } else if (data[0] == 2) {
        at_origin(data + 1, size - 1);
    } else if (data[0] == 3) {
        at_waiting(data + 1, size - 1);
    }
    return 0;
}

/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Multicast datagrams: what is packed comes out again, whatever the size of datagrams; what is malformed is refused as
 * a whole; what is forged, replayed or of another snapshot is not opened.
 */
#include <glib.h>
#include <string.h>
#include "sfvmm/pager/mc_seal.h"
#include "sfvmm/wire/big_endian.h"

#define PAGES 64u

static const struct mc_shape shape = { 2, { PAGES, 8 } };
static const struct mc_announcement said = { 1234, { 5, 6 }, 200, 9 };
static const uint8_t master[MC_KEY_LENGTH] = "a master for tests, of 32 bytes.";

/* Of page i: some zero, some that pack well, some that do not at all. */
static void make_page(unsigned i, uint8_t page[SF_PAGE_SIZE])
{
    memset(page, 0, SF_PAGE_SIZE);
    if (i % 4 == 0) {
        return;
    }
    for (unsigned at = 0; at < SF_PAGE_SIZE; at++) {
        page[at] = i % 4 == 1 ? (uint8_t)g_random_int() : i % 4 == 2 && at % 3 ? (uint8_t)(at * i) : (uint8_t)i;
    }
}

/* Gathers fragments in order, as a receiver without loss. */
struct gathered {
    uint8_t body[SF_PAGE_SIZE];
    unsigned got, n_pages;
    uint8_t pages[PAGES][SF_PAGE_SIZE];
    bool has[PAGES];
};

static void gather(struct gathered *gathered, const struct mc_record *record)
{
    g_assert_cmpuint(record->block, ==, 0);
    if (record->kind == MC_KIND_ZERO) {
        for (unsigned i = 0; i < record->pages; i++) {
            memset(gathered->pages[record->page + i], 0, SF_PAGE_SIZE);
            gathered->has[record->page + i] = true;
        }
        return;
    }
    g_assert_cmpuint(record->offset, ==, gathered->got);
    memcpy(gathered->body + record->offset, record->bytes, record->length);
    gathered->got += record->length;
    if (gathered->got == record->total) {
        g_assert_true(mc_page_unpack(record->kind, gathered->body, record->total, gathered->pages[record->page]));
        gathered->has[record->page] = true;
        gathered->got = 0;
    }
}

static unsigned walk(struct mc_batch *batch, struct gathered *gathered)
{
    unsigned records = 0;

    for (unsigned i = 0; i < batch->n_datagrams; i++) {
        struct mc_announcement heard;
        struct mc_record record;
        size_t length, at = 0;
        const uint8_t *content = mc_batch_datagram(batch, i, &length) + MC_HEADER_LENGTH;
        g_assert_cmpuint(length, <=, batch->payload);
        g_assert_true(i + 1 == batch->n_datagrams || length == batch->payload);
        g_assert_true(mc_data_decode(content, length - MC_OVERHEAD, &shape, &heard));
        g_assert_cmpmem(&heard, sizeof(heard), &said, sizeof(said));
        for (; mc_data_next(content, length - MC_OVERHEAD, &at, &record); records++) {
            gather(gathered, &record);
        }
    }
    return records;
}

static void test_pack(void)
{
    static const unsigned payloads[] = { MC_PAYLOAD_MIN, 1232, MC_PAYLOAD_DEFAULT, 8952, MC_PAYLOAD_MAX };
    struct mc_batch *batch = g_new(struct mc_batch, 1);
    uint8_t page[PAGES][SF_PAGE_SIZE], body[SF_PAGE_SIZE];

    for (unsigned i = 0; i < PAGES; i++) {
        make_page(i, page[i]);
    }
    for (unsigned p = 0; p < G_N_ELEMENTS(payloads); p++) {
        struct gathered *gathered = g_new0(struct gathered, 1);
        unsigned sent = 0;
        while (sent < PAGES) {
            unsigned before = sent;
            memset(batch->bytes, 0xee, sizeof(batch->bytes));
            mc_batch_begin(batch, payloads[p], MC_BATCH_DATAGRAMS, 1, &said);
            for (; sent < PAGES; sent++) {
                unsigned total, kind = mc_page_pack(page[sent], body, &total);
                g_assert_cmpuint(kind, ==, sent % 4 == 0 ? MC_KIND_ZERO : sent % 4 == 1 ? MC_KIND_RAW : MC_KIND_LZ4);
                if (kind == MC_KIND_ZERO ? !mc_batch_add_zero(batch, 0, sent, 1)
                                         : !mc_batch_add_page(batch, kind, 0, sent, body, total)) {
                    break;
                }
            }
            g_assert_cmpuint(sent, >, before);
            mc_batch_finish(batch);
            g_assert_cmpuint(batch->length, <=, sizeof(batch->bytes));
            walk(batch, gathered);
        }
        for (unsigned i = 0; i < PAGES; i++) {
            g_assert_true(gathered->has[i]);
            g_assert_cmpmem(gathered->pages[i], SF_PAGE_SIZE, page[i], SF_PAGE_SIZE);
        }
        g_free(gathered);
    }
    g_free(batch);
}

static void test_zero_runs(void)
{
    struct mc_batch *batch = g_new(struct mc_batch, 1);
    struct gathered *gathered = g_new0(struct gathered, 1);

    mc_batch_begin(batch, MC_PAYLOAD_DEFAULT, 1, 1, &said);
    for (unsigned i = 0; i < PAGES; i += i == 9 ? 2 : 1) {
        g_assert_true(mc_batch_add_zero(batch, 0, i, 1));
    }
    mc_batch_finish(batch);
    g_assert_cmpuint(walk(batch, gathered), ==, 2);
    g_assert_true(gathered->has[9] && !gathered->has[10] && gathered->has[11] && gathered->has[PAGES - 1]);
    g_free(gathered);
    g_free(batch);
}

static void test_empty(void)
{
    struct mc_batch *batch = g_new(struct mc_batch, 1);
    size_t length;

    mc_batch_begin(batch, MC_PAYLOAD_DEFAULT, 5, 1, &said);
    mc_batch_finish(batch);
    mc_batch_datagram(batch, 0, &length);
    g_assert_cmpuint(batch->n_datagrams, ==, 1);
    g_assert_cmpuint(length, ==, MC_OVERHEAD + MC_ANNOUNCEMENT_LENGTH);
    g_free(batch);
}

/* A page record by hand. */
struct by_hand {
    unsigned kind, block, length, total, offset;
    uint32_t page;
};

static bool accepted(const struct by_hand *record, size_t cut)
{
    uint8_t bytes[MC_ANNOUNCEMENT_LENGTH + MC_PAGE_HEADER_LENGTH + 5000] = { 0 }, *p = bytes + MC_ANNOUNCEMENT_LENGTH;
    struct mc_announcement heard;

    p[0] = (uint8_t)record->kind;
    p[1] = (uint8_t)record->block;
    sf_be_put16(p + 2, (uint16_t)record->length);
    sf_be_put32(p + 4, record->page);
    sf_be_put16(p + 8, (uint16_t)record->total);
    sf_be_put16(p + 10, (uint16_t)record->offset);
    return mc_data_decode(bytes, MC_ANNOUNCEMENT_LENGTH + MC_PAGE_HEADER_LENGTH + record->length - cut, &shape, &heard);
}

static void test_malformed_pages(void)
{
    static const struct by_hand good[] = {
        { MC_KIND_LZ4, 0, 100, 100, 0, 3 },    { MC_KIND_LZ4, 1, 64, 100, 0, 7 },
        { MC_KIND_LZ4, 0, 36, 100, 64, 0 },    { MC_KIND_RAW, 0, 4096, 4096, 0, 63 },
        { MC_KIND_RAW, 0, 16, 4096, 4080, 0 },
    };
    static const struct by_hand bad[] = {
        { 9, 0, 100, 100, 0, 3 },               /* no such kind */
        { MC_KIND_LZ4, 2, 100, 100, 0, 3 },     /* block */
        { MC_KIND_LZ4, 0, 100, 100, 0, PAGES }, /* page */
        { MC_KIND_LZ4, 0, 100, 100, 0, UINT32_MAX },
        { MC_KIND_LZ4, 1, 100, 100, 0, 8 },
        { MC_KIND_LZ4, 0, 0, 100, 0, 3 }, /* empty */
        { MC_KIND_LZ4, 0, 100, 0, 0, 3 },
        { MC_KIND_LZ4, 0, 101, 100, 0, 3 }, /* longer than the whole */
        { MC_KIND_LZ4, 0, 52, 100, 64, 3 },
        { MC_KIND_LZ4, 0, 50, 100, 0, 3 }, /* not cut at a unit */
        { MC_KIND_LZ4, 0, 50, 100, 50, 3 },
        { MC_KIND_LZ4, 0, 4096, 4096, 0, 3 }, /* as long as raw */
        { MC_KIND_LZ4, 0, 4500, 4500, 0, 3 },
        { MC_KIND_RAW, 0, 100, 100, 0, 3 },
        { MC_KIND_RAW, 0, 16, 4096, 4096, 3 },
        { MC_KIND_RAW, 0, 16, 4096, 65520, 3 },
        { MC_KIND_PAD, 0, 100, 0, 0, 0 }, /* not all zero */
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
        g_assert_true(accepted(&good[i], 0));
        g_assert_false(accepted(&good[i], 1));
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_false(accepted(&bad[i], 0));
    }
}

static void test_malformed_runs(void)
{
    static const struct mc_run good[] = { { 0, 0, 1, 63 }, { 1, 0, 64, 0 }, { 1, 1, 8, 0 } };
    static const struct mc_run bad[] = { { 3, 0, 1, 0 },  { 0, 2, 1, 0 },  { 0, 0, 0, 0 },         { 0, 0, 65, 0 },
                                         { 0, 0, 2, 63 }, { 0, 0, 1, 64 }, { 0, 0, 1, UINT32_MAX } };
    struct mc_report report = { 1, 2, 3, 4, MC_FLAG_UNICAST }, heard;
    uint8_t bytes[256];
    unsigned n;
    size_t length = mc_request_encode(bytes, &report, good, G_N_ELEMENTS(good));

    g_assert_true(mc_request_decode(bytes, length, &shape, &heard, &n));
    g_assert_cmpuint(n, ==, G_N_ELEMENTS(good));
    g_assert_cmpuint(heard.missing, ==, 4);
    for (unsigned i = 0; i < n; i++) {
        struct mc_run run = mc_request_run(bytes, i);
        g_assert_cmpmem(&run, sizeof(run), &good[i], sizeof(run));
    }
    for (size_t cut = 1; cut <= length; cut++) {
        g_assert_false(mc_request_decode(bytes, length - cut, &shape, &heard, &n));
    }
    g_assert_false(mc_request_decode(bytes, length + 1, &shape, &heard, &n));
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        length = mc_request_encode(bytes, &report, &bad[i], 1);
        g_assert_false(mc_request_decode(bytes, length, &shape, &heard, &n));
    }
    report.flags = 0x80;
    length = mc_request_encode(bytes, &report, good, 1);
    g_assert_false(mc_request_decode(bytes, length, &shape, &heard, &n));
}

/* ---- chunks of a blob ---- */

/* As decoded from a record by hand that is followed by `room` bytes. */
static bool chunk_accepted(const struct mc_record *record, size_t room, struct mc_record *decoded)
{
    uint8_t bytes[MC_ANNOUNCEMENT_LENGTH + MC_CHUNK_HEADER_LENGTH + 256] = { 0 }, *p = bytes + MC_ANNOUNCEMENT_LENGTH;
    size_t n = MC_ANNOUNCEMENT_LENGTH + MC_CHUNK_HEADER_LENGTH + room, at = 0;
    struct mc_announcement heard;

    p[0] = MC_KIND_CHUNK;
    p[1] = record->block;
    sf_be_put16(p + 2, record->length);
    sf_be_put32(p + 4, record->blob_offset);
    sf_be_put32(p + 8, record->blob_total);
    sf_be_put64(p + 12, record->blob_id);
    g_assert_cmpint(mc_data_decode(bytes, n, &shape, &heard), ==, mc_data_decode(bytes, n, NULL, &heard));
    return mc_data_decode(bytes, n, NULL, &heard) && mc_data_next(bytes, n, &at, decoded);
}

static void test_chunks(void)
{
    static const struct mc_record good[] = {
        { .length = 100, .blob_offset = 0, .blob_total = 100, .blob_id = 7 },
        { .length = 100, .blob_offset = 1000, .blob_total = 1100, .blob_id = UINT64_MAX },
        { .length = 100, .blob_offset = 0, .blob_total = MC_BLOB_MAX },
    };
    static const struct mc_record bad[] = {
        { .length = 0, .blob_offset = 0, .blob_total = 100 },
        { .length = 100, .blob_offset = 0, .blob_total = 99 },
        { .length = 100, .blob_offset = 1, .blob_total = 100 },
        { .length = 100, .blob_offset = 100, .blob_total = 100 },
        { .length = 100, .blob_offset = UINT32_MAX, .blob_total = 100 },
        { .length = 100, .blob_offset = 0, .blob_total = MC_BLOB_MAX + 1 },
        { .length = 100, .blob_offset = 0, .blob_total = 100, .block = 1 },
    };
    struct mc_record decoded;

    for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
        g_assert_true(chunk_accepted(&good[i], 100, &decoded));
        g_assert_cmpuint(decoded.blob_id, ==, good[i].blob_id);
        g_assert_cmpuint(decoded.blob_offset, ==, good[i].blob_offset);
        g_assert_true(chunk_accepted(&good[i], 130, &decoded)); /* padded */
        g_assert_false(chunk_accepted(&good[i], 99, &decoded));
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_false(chunk_accepted(&bad[i], 100, &decoded));
    }
}

static void test_chunk_runs(void)
{
    static const struct mc_run good[] = { { MC_CHUNKS, 0, 1, 0 }, { MC_CHUNKS, 0, 4096, 7000 } };
    static const struct mc_run bad[][2] = {
        { { MC_CHUNKS, 0, 1, 0 }, { MC_DEMAND, 0, 1, 0 } }, /* of pages as well */
        { { MC_PREFETCH, 0, 1, 0 }, { MC_CHUNKS, 0, 1, 0 } },
        { { MC_CHUNKS, 1, 1, 0 }, { MC_CHUNKS, 0, 1, 0 } },
        { { MC_CHUNKS, 0, 0, 0 }, { MC_CHUNKS, 0, 1, 0 } },
        { { MC_CHUNKS, 0, 4097, 0 }, { MC_CHUNKS, 0, 1, 0 } },
        { { MC_CHUNKS, 0, 1, MC_BLOB_MAX }, { MC_CHUNKS, 0, 1, 0 } },
    };
    struct mc_report report = { 1, 2, 3, 4, 0 }, heard;
    uint8_t bytes[256];
    unsigned n;

    g_assert_true(mc_request_decode(bytes, mc_request_encode(bytes, &report, good, 2), &shape, &heard, &n));
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_false(mc_request_decode(bytes, mc_request_encode(bytes, &report, bad[i], 2), &shape, &heard, &n));
    }
}

/* ---- sealing ---- */

struct line {
    struct mc_receiver_keys keys;
    struct mc_sealer *sealer;
    struct mc_opener *opener;
};

static struct mc_sealer *new_sealer(const struct line *line, uint64_t incarnation)
{
    return mc_sealer_new(MC_DATA, 0, line->keys.tag, line->keys.data, incarnation);
}

static void line_up(struct line *line)
{
    g_assert_true(mc_keys_derive(master, 7, &line->keys));
    line->sealer = new_sealer(line, 100);
    line->opener = mc_opener_new(MC_DATA, 0, line->keys.tag, line->keys.data);
}

static void line_down(struct line *line)
{
    mc_sealer_free(line->sealer);
    mc_opener_free(line->opener);
}

static const char text[] = "some content that nobody else may read";

static size_t seal(struct mc_sealer *sealer, uint64_t sequence, uint8_t bytes[256])
{
    memcpy(bytes + MC_HEADER_LENGTH, text, sizeof(text));
    return mc_sealer_seal(sealer, sequence, bytes, sizeof(text));
}

static enum mc_opened open_copy(struct mc_opener *opener, const uint8_t *bytes, size_t n)
{
    uint8_t copy[256];
    struct mc_header header;
    const uint8_t *content;
    size_t length;
    enum mc_opened opened;

    memcpy(copy, bytes, n);
    opened = mc_opener_open(opener, copy, n, &header, &content, &length);
    if (opened == MC_OPENED) {
        g_assert_cmpmem(content, length, text, sizeof(text));
    }
    return opened;
}

static void test_seal(void)
{
    struct line line;
    uint8_t bytes[256];
    size_t n;

    line_up(&line);
    n = seal(line.sealer, 1, bytes);
    g_assert_cmpuint(n, ==, sizeof(text) + MC_OVERHEAD);
    g_assert_null(memmem(bytes, n, text, 8));
    for (size_t i = 0; i < n; i++) { /* any byte that is changed */
        bytes[i] ^= 1;
        g_assert_cmpint(open_copy(line.opener, bytes, n), !=, MC_OPENED);
        bytes[i] ^= 1;
    }
    for (size_t i = 0; i < n; i++) {
        g_assert_cmpint(open_copy(line.opener, bytes, i), !=, MC_OPENED);
    }
    g_assert_cmpint(open_copy(line.opener, bytes, n), ==, MC_OPENED);
    g_assert_cmpint(open_copy(line.opener, bytes, n), ==, MC_REPLAYED);
    g_assert_cmpuint(seal(line.sealer, 1, bytes), ==, 0); /* a nonce is used once */
    line_down(&line);
}

static void test_replay_window(void)
{
    struct line line;
    uint8_t bytes[10][256];
    static const uint64_t sequences[10] = { 5, 6, 9, 4000, 4100, 4101, 4102, 8000, 100000, 100001 };
    size_t n = 0;

    line_up(&line);
    for (unsigned i = 0; i < 10; i++) {
        n = seal(line.sealer, sequences[i], bytes[i]);
    }
    g_assert_cmpint(open_copy(line.opener, bytes[1], n), ==, MC_OPENED);
    g_assert_cmpint(open_copy(line.opener, bytes[0], n), ==, MC_OPENED); /* late, but once */
    g_assert_cmpint(open_copy(line.opener, bytes[0], n), ==, MC_REPLAYED);
    g_assert_cmpint(open_copy(line.opener, bytes[4], n), ==, MC_OPENED);
    g_assert_cmpint(open_copy(line.opener, bytes[2], n), ==, MC_OPENED); /* 9 of 4100: just within */
    g_assert_cmpint(open_copy(line.opener, bytes[6], n), ==, MC_OPENED);
    g_assert_cmpint(open_copy(line.opener, bytes[5], n), ==, MC_OPENED);
    g_assert_cmpint(open_copy(line.opener, bytes[1], n), ==, MC_REPLAYED);
    g_assert_cmpint(open_copy(line.opener, bytes[9], n), ==, MC_OPENED);
    g_assert_cmpint(open_copy(line.opener, bytes[8], n), ==, MC_OPENED);
    g_assert_cmpint(open_copy(line.opener, bytes[7], n), ==, MC_REPLAYED); /* too old */
    g_assert_cmpint(open_copy(line.opener, bytes[3], n), ==, MC_REPLAYED);
    line_down(&line);
}

static void test_incarnations(void)
{
    struct line line;
    struct mc_sealer *later;
    uint8_t old[256], new[256], older[256], forged[256];
    size_t n;

    line_up(&line);
    later = new_sealer(&line, 101);
    n = seal(line.sealer, 1, old);
    seal(line.sealer, 2, older);
    seal(later, 1, new);
    g_assert_cmpint(memcmp(old + MC_HEADER_LENGTH, new + MC_HEADER_LENGTH, n - MC_HEADER_LENGTH), !=, 0);
    g_assert_cmpint(open_copy(line.opener, old, n), ==, MC_OPENED);
    memcpy(forged, old, n);
    sf_be_put64(forged + 16, UINT64_MAX); /* shuts nobody out */
    g_assert_cmpint(open_copy(line.opener, forged, n), ==, MC_FORGED);
    g_assert_cmpint(open_copy(line.opener, new, n), ==, MC_OPENED);
    g_assert_cmpint(open_copy(line.opener, new, n), ==, MC_REPLAYED);
    g_assert_cmpint(open_copy(line.opener, older, n), ==, MC_REPLAYED);
    mc_sealer_free(later);
    line_down(&line);
}

static void test_keys(void)
{
    static const uint8_t other_master[MC_KEY_LENGTH] = "another master";
    struct mc_receiver_keys keys[3];
    struct mc_sealer *sealer;
    struct mc_opener *opener;
    uint8_t bytes[256];
    size_t n;

    g_assert_true(mc_keys_derive(master, 1, &keys[0]));
    g_assert_true(mc_keys_derive(master, 2, &keys[1]));
    g_assert_true(mc_keys_derive(other_master, 1, &keys[2]));
    g_assert_cmpmem(keys[0].data, MC_KEY_LENGTH, keys[1].data, MC_KEY_LENGTH);
    g_assert_cmpuint(keys[0].tag, ==, keys[1].tag);
    g_assert_cmpuint(keys[0].tag, !=, keys[2].tag);
    g_assert_cmpint(memcmp(keys[0].request, keys[1].request, MC_KEY_LENGTH), !=, 0);
    g_assert_cmpint(memcmp(keys[0].request, keys[2].request, MC_KEY_LENGTH), !=, 0);

    /* receiver 2 with its key under the name of receiver 1 */
    sealer = mc_sealer_new(MC_REQUEST, 1, keys[0].tag, keys[1].request, 5);
    opener = mc_opener_new(MC_REQUEST, 1, keys[0].tag, keys[0].request);
    n = seal(sealer, 1, bytes);
    g_assert_cmpint(open_copy(opener, bytes, n), ==, MC_FORGED);
    mc_sealer_free(sealer);
    /* another snapshot */
    sealer = mc_sealer_new(MC_REQUEST, 1, keys[2].tag, keys[2].request, 5);
    n = seal(sealer, 1, bytes);
    g_assert_cmpint(open_copy(opener, bytes, n), ==, MC_FOREIGN);
    mc_sealer_free(sealer);
    mc_opener_free(opener);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mc/datagram/pack", test_pack);
    g_test_add_func("/mc/datagram/zero-runs", test_zero_runs);
    g_test_add_func("/mc/datagram/empty", test_empty);
    g_test_add_func("/mc/datagram/malformed-pages", test_malformed_pages);
    g_test_add_func("/mc/datagram/malformed-runs", test_malformed_runs);
    g_test_add_func("/mc/datagram/chunks", test_chunks);
    g_test_add_func("/mc/datagram/chunk-runs", test_chunk_runs);
    g_test_add_func("/mc/seal/seal", test_seal);
    g_test_add_func("/mc/seal/replay-window", test_replay_window);
    g_test_add_func("/mc/seal/incarnations", test_incarnations);
    g_test_add_func("/mc/seal/keys", test_keys);
    return g_test_run();
}

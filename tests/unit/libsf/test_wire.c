/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The codec of libsf/wire: round trips, strictness, and frames that were cut, lost, doubled or mixed with garbage.
 * Random input comes from a fixed generator, so a failure repeats.
 */
#include "libsf/wire/frame.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 400

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);           \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

static uint64_t random_state = 88172645463325252u;

static uint64_t random_number(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static size_t random_below(size_t n)
{
    return random_number() % n;
}

/* Bytes with many zeros, or with none: both ends of what COBS meets. */
static void random_bytes(uint8_t *data, size_t length)
{
    size_t zeros = random_below(3);

    for (size_t i = 0; i < length; i++) {
        data[i] = zeros == 0 ? (uint8_t)(random_number() | 1) : zeros == 1 ? (uint8_t)(random_number() & 1)
                                                                           : (uint8_t)random_number();
    }
}

/* ---- messages ---- */

#define ROUND_TRIP(name, NAME, ...)                                                   \
    do {                                                                              \
        struct sf_gp_##name in = { __VA_ARGS__ }, out;                                \
        uint8_t buf[SF_GP_##NAME##_LENGTH + 1];                                       \
        memset(&out, 0xaa, sizeof(out));                                              \
        CHECK(sf_gp_##name##_pack(buf, &in) == SF_GP_##NAME##_LENGTH);                \
        CHECK(sf_gp_##name##_parse(&out, buf, SF_GP_##NAME##_LENGTH));                \
        CHECK(memcmp(&in, &out, sizeof(in)) == 0);                                    \
        CHECK(!sf_gp_##name##_parse(&out, buf, SF_GP_##NAME##_LENGTH - 1));           \
        CHECK(!sf_gp_##name##_parse(&out, buf, SF_GP_##NAME##_LENGTH + 1));           \
        CHECK(!sf_gp_##name##_parse(&out, buf, 0));                                   \
    } while (0)

static void test_messages(void)
{
    ROUND_TRIP(error, ERROR, .error = 12, .text = "VM \"büro\": no memory");
    ROUND_TRIP(hello, HELLO, .version = 1, .nonce = 0x1122334455667788);
    ROUND_TRIP(identity, IDENTITY, .ticket = 7, .id = 3, .count = 8, .clone_request = 9, .realtime = 1,
               .seed = { 1, 2, 3 }, .hostname = "vm1-3", .parent = "vm1");
    ROUND_TRIP(network, NETWORK, .ticket = 7, .id = 3, .count = 8, .address = 0x0a4d0004, .parent = 0x0a4d0001,
               .first = 0x0a4d0002, .gateway = 0x0a4dfffe, .prefix = 16, .name = "vm1");
    ROUND_TRIP(network, NETWORK, .address = 0x0a4d0001, .parent = 0x0a4d0001, .prefix = 30, .name = "vm1");
    ROUND_TRIP(ticket, TICKET, .count = 8, .queue = SF_GP_MAX_QUEUE);
    ROUND_TRIP(granted, GRANTED, .ticket = UINT64_MAX, .granted = SF_GP_MAX_CLONES);
    ROUND_TRIP(clone, CLONE, .ticket = 0x8877665544332211);
    ROUND_TRIP(cloned, CLONED, .id = 0, .count = 8);
    ROUND_TRIP(exit, EXIT, .status = -1);
    ROUND_TRIP(join, JOIN, .ticket = 7, .flags = SF_GP_JOIN_NOHANG, .first = 65);
    ROUND_TRIP(member, MEMBER, .id = 2, .state = SF_GP_STATE_LOST, .status = -7, .count = 2,
               .result_length = SF_GP_MAX_RESULT, .text = "its QEMU was killed");
    ROUND_TRIP(fetch, FETCH, .ticket = 7, .id = 1, .length = SF_GP_MAX_CHUNK, .offset = 1ull << 40);
    ROUND_TRIP(kill, KILL, .ticket = 7);
    ROUND_TRIP(checkpoint, CHECKPOINT, .name = "warm-1");
    ROUND_TRIP(create, CREATE, .count = 8, .name = "w");
    ROUND_TRIP(self, SELF, .ticket = 7, .id = 1, .count = 1);
}

/* Every byte of a valid message set to every value: parse says yes or no, and never reads elsewhere (sanitizers). */
static void test_strictness(void)
{
    struct sf_gp_identity identity = { .ticket = 7, .id = 3, .count = 8, .realtime = 1, .hostname = "a",
                                       .parent = "b" };
    uint8_t buf[SF_GP_IDENTITY_LENGTH];
    const size_t reserved = 20, hostname = 32 + SF_GP_SEED_LEN;

    sf_gp_identity_pack(buf, &identity);
    for (size_t at = 0; at < sizeof(buf); at++) {
        uint8_t old = buf[at];

        for (int value = 0; value < 256; value++) {
            buf[at] = (uint8_t)value;
            CHECK(sf_gp_identity_parse(&identity, buf, sizeof(buf)) || value != old);
        }
        buf[at] = old;
    }
    buf[reserved] = 1;
    CHECK(!sf_gp_identity_parse(&identity, buf, sizeof(buf)));
    buf[reserved] = 0;
    buf[hostname + SF_GP_NAME_LEN - 1] = 'x'; /* behind the NUL */
    CHECK(!sf_gp_identity_parse(&identity, buf, sizeof(buf)));
    memset(buf + hostname, 'x', SF_GP_NAME_LEN); /* without NUL */
    CHECK(!sf_gp_identity_parse(&identity, buf, sizeof(buf)));
}

/* Addresses that contradict each other. */
static void test_network(void)
{
    const struct sf_gp_network good = { .ticket = 7, .id = 3, .count = 8, .address = 0x0a4d0004, .parent = 0x0a4d0001,
                                        .first = 0x0a4d0002, .prefix = 16, .name = "vm1" };
    struct sf_gp_network bad[8], out;
    uint8_t buf[SF_GP_NETWORK_LENGTH], mac[SF_GP_MAC_LENGTH];
    size_t n = 0;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        bad[i] = good;
    }
    bad[n++].id = 9;
    bad[n++].id = 2;
    bad[n++].id = 0; /* then its address is the parent's */
    bad[n++].count = SF_GP_MAX_CLONES + 1;
    bad[n++].prefix = 31;
    bad[n++].prefix = 0;
    bad[n++].ticket = 0;
    bad[n++].name[0] = '-';
    for (size_t i = 0; i < n; i++) {
        sf_gp_network_pack(buf, &bad[i]);
        CHECK(!sf_gp_network_parse(&out, buf, sizeof(buf)));
    }
    sf_gp_mac_of_address(mac, 0x0a4d0102);
    CHECK(memcmp(mac, "\x02\x5f\x0a\x4d\x01\x02", sizeof(mac)) == 0);
}

static void test_sync(void)
{
    uint8_t payload[SF_GP_SYNC_LENGTH + SF_GP_MAX_CHUNK + 1] = { 0 };
    struct sf_gp_sync value;
    const uint8_t *data;
    size_t length;

    sf_gp_sync_pack(payload, &(struct sf_gp_sync){ .offset = 10, .total = 15 });
    CHECK(sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH + 5));
    CHECK(data == payload + SF_GP_SYNC_LENGTH && length == 5 && value.offset == 10 && value.total == 15);
    CHECK(!sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH + 6));
    CHECK(!sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH));
    CHECK(!sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH - 1));
    sf_gp_sync_pack(payload, &(struct sf_gp_sync){ .offset = 0, .total = 0 });
    CHECK(sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH) && length == 0);
    sf_gp_sync_pack(payload, &(struct sf_gp_sync){ .offset = 0, .total = SF_GP_MAX_RESULT });
    CHECK(sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH + SF_GP_MAX_CHUNK));
    CHECK(!sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH + SF_GP_MAX_CHUNK + 1));
    sf_gp_sync_pack(payload, &(struct sf_gp_sync){ .offset = 0, .total = SF_GP_MAX_RESULT + 1ull });
    CHECK(!sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH + 1));
    sf_gp_sync_pack(payload, &(struct sf_gp_sync){ .offset = UINT64_MAX, .total = 1 });
    CHECK(!sf_gp_sync_parse(&value, &data, &length, payload, SF_GP_SYNC_LENGTH + 1));
}

static void test_texts(void)
{
    char text[16];
    struct sf_gp_error value;
    uint8_t payload[SF_GP_ERROR_LENGTH];

    sf_gp_text_set(text, sizeof(text), "%s", "a\x1b[31m\n\xff" "b");
    CHECK(strcmp(text, "a?[31m??b") == 0);
    sf_gp_text_set(text, sizeof(text), "%s", "12345678901234\xc3\xbc"); /* no half of a character */
    CHECK(strcmp(text, "12345678901234") == 0);
    sf_gp_text_set(text, sizeof(text), "%s", "\xc0\x80\xed\xa0\x80\xc2\x85"); /* overlong, surrogate, C1 */
    CHECK(strcmp(text, "???????") == 0);
    for (int round = 0; round < ROUNDS; round++) {
        value.error = 1;
        for (size_t i = 0; i < sizeof(value.text); i++) {
            value.text[i] = (char)random_number();
        }
        sf_gp_error_pack(payload, &value);
        CHECK(sf_gp_error_parse(&value, payload, sizeof(payload)));
    }
}

/* ---- frames ---- */

struct message {
    uint8_t type;
    uint32_t request;
    size_t length;
    uint8_t payload[SF_GP_MAX_PAYLOAD];
};

static struct message messages[8];
static uint8_t stream[8 * SF_FRAME_MAX_ENCODED + 4096];
static struct sf_frame_decoder decoder;

static size_t random_frame(uint8_t *at, struct message *message)
{
    static const size_t lengths[] = { 0, 1, 237, 238, 239, 254, 255, 508, SF_GP_MAX_PAYLOAD };
    size_t pick = random_below(16), encoded;

    message->type = (uint8_t)random_number();
    message->request = (uint32_t)random_number();
    message->length = pick < sizeof(lengths) / sizeof(lengths[0]) ? lengths[pick] : random_below(2000);
    random_bytes(message->payload, message->length);
    encoded = sf_frame_encode(at, SF_FRAME_MAX_ENCODED, message->type, message->request, message->payload,
                              message->length);
    CHECK(encoded > 0 && at[encoded - 1] == 0 && memchr(at, 0, encoded) == at + encoded - 1);
    return encoded;
}

static bool same(const struct message *message, const struct sf_gp_header *header, const uint8_t *payload)
{
    return header->type == message->type && header->request == message->request &&
           header->length == message->length && memcmp(payload, message->payload, message->length) == 0;
}

/* Messages are found whatever pieces they come in. */
static void test_split(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        size_t count = 1 + random_below(4), length = 0, found = 0, piece_max = 1 + random_below(600);

        for (size_t i = 0; i < count; i++) {
            length += random_frame(stream + length, &messages[i]);
        }
        sf_frame_decoder_init(&decoder);
        for (size_t at = 0; at < length;) {
            size_t piece = 1 + random_below(piece_max), left;
            const uint8_t *data = stream + at, *payload;
            struct sf_gp_header header;

            piece = piece < length - at ? piece : length - at;
            left = piece;
            while (sf_frame_decoder_next(&decoder, &data, &left, &header, &payload)) {
                CHECK(found < count && same(&messages[found], &header, payload));
                found++;
            }
            CHECK(left == 0);
            at += piece;
        }
        CHECK(found == count && decoder.frames == count && decoder.broken == 0);
    }
}

/* One message split at each of its bytes. */
static void test_split_everywhere(void)
{
    size_t length = sf_frame_encode(stream, sizeof(stream), 3, 4, "\0abc\0", 5);

    for (size_t cut = 0; cut <= length; cut++) {
        const uint8_t *data = stream, *payload;
        struct sf_gp_header header;
        size_t left = cut;
        bool found;

        sf_frame_decoder_init(&decoder);
        found = sf_frame_decoder_next(&decoder, &data, &left, &header, &payload);
        CHECK(found == (cut == length));
        left = length - cut;
        CHECK(found || sf_frame_decoder_next(&decoder, &data, &left, &header, &payload));
        CHECK(header.type == 3 && header.request == 4 && header.length == 5 && memcmp(payload, "\0abc\0", 5) == 0);
    }
}

/*
 * A damaged frame (a byte lost, doubled, changed, the front or the end cut off, garbage) is never taken for a message,
 * and what follows the next zero byte is.
 */
static void test_damage(void)
{
    for (int round = 0; round < ROUNDS * 4; round++) {
        size_t first = random_frame(stream, &messages[0]), at = random_below(first - 1), length, found = 0, left;
        const uint8_t *data = stream, *payload;
        struct sf_gp_header header;

        switch (random_below(6)) {
        case 0: /* lost */
            memmove(stream + at, stream + at + 1, --first - at);
            break;
        case 1: /* doubled */
            memmove(stream + at + 1, stream + at, first++ - at);
            break;
        case 2: /* changed */
            stream[at] ^= (uint8_t)(1 + random_below(255));
            break;
        case 3: /* the front is missing */
            memmove(stream, stream + at + 1, first -= at + 1);
            break;
        case 4: /* the end is missing */
            first = at;
            break;
        default:
            first = random_below(2 * SF_FRAME_MAX_DECODED);
            random_bytes(stream, first);
        }
        stream[first++] = 0;
        length = first + random_frame(stream + first, &messages[1]);
        left = length;
        sf_frame_decoder_init(&decoder);
        while (sf_frame_decoder_next(&decoder, &data, &left, &header, &payload)) {
            CHECK(same(&messages[1], &header, payload));
            found++;
        }
        CHECK(found == 1 && decoder.frames == 1);
    }
}

static void test_bounds(void)
{
    struct message *m = &messages[0];
    const uint8_t *data = stream, *payload;
    struct sf_gp_header header;
    size_t left = sizeof(stream);

    CHECK(sf_frame_encode(stream, sizeof(stream), 1, 1, m->payload, SF_GP_MAX_PAYLOAD + 1) == 0);
    CHECK(sf_frame_encode(stream, 10, 1, 1, m->payload, 5) == 0);
    /* Endless frames cost no memory and are one broken frame. */
    memset(stream, 0xff, sizeof(stream));
    sf_frame_decoder_init(&decoder);
    for (int i = 0; i < 3; i++, data = stream, left = sizeof(stream)) {
        CHECK(!sf_frame_decoder_next(&decoder, &data, &left, &header, &payload));
    }
    memset(stream, 0, 100); /* and a hundred empty ones behind it: not counted */
    left = 100;
    CHECK(!sf_frame_decoder_next(&decoder, &data, &left, &header, &payload));
    CHECK(decoder.broken == 1 && decoder.frames == 0);
    CHECK(sf_frame_crc32(0, "123456789", 9) == 0xcbf43926);
    CHECK(sf_frame_crc32(sf_frame_crc32(0, "1234", 4), "56789", 5) == 0xcbf43926);
}

int main(void)
{
    test_messages();
    test_strictness();
    test_network();
    test_sync();
    test_texts();
    test_split();
    test_split_everywhere();
    test_damage();
    test_bounds();
    return 0;
}
